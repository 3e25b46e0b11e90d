"""The conditional VAE as a generator: a prompt and a seed in, one decoded draw of the prior out."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Bool, Float, Int, UInt8

from align_jax.errors import require
from align_jax.models.cvae import Cvae, CvaeConfig, latents_at
from align_jax.models.flat import Params, Skeleton
from align_jax.parallel.mesh import BATCH_AXES, MeshConfig, batch_sharding, make_mesh, replicated
from align_jax.synth.generators.trained import TrainedModel, draw_full_batches, load_model
from align_jax.synth.sampler import (
  Draw,
  check_tokenizer,
  seeded_noise,
  weights_digest,
)


@dataclasses.dataclass(frozen=True)
class CvaeGeneratorConfig:
  """How a conditional VAE draws.

  Attributes:
    name: begins its id, `cvae:<digest of the weights>`.
    temperature: of the prior: 1 draws as trained; smaller ones nearer to its mean, with fewer wild
      pictures and less variety; 0 is one picture a prompt, whatever the seed.
    batch_size: images that each device draws at a time. Another number may change the last bit of
      an image, the number of devices does not.
    averaged: the moving average of the weights where the run kept one.
    step: of the checkpoint; None: the newest.
  """

  name: str = 'cvae'
  temperature: float = 1.0
  batch_size: int = 32
  averaged: bool = True
  step: int | None = None

  def check(self, where: str) -> None:
    """Raises a UserError, `where.field: …`, for a value out of range."""
    finite = 0 <= self.temperature < float('inf')
    require(finite, f'{where}.temperature', f'{self.temperature} must be 0 or more')
    require(self.batch_size >= 1, f'{where}.batch_size', f'{self.batch_size} must be at least 1')
    require(bool(self.name), f'{where}.name', 'empty; it begins the id of the generator')


class CvaeGenerator:
  """A trained `Cvae` for use; see `synth.rows.Generator`.

  Batches are always full, short ones filled up: one program draws every image, so that it is the
  same to the last bit whatever was drawn beside it, and on however many devices.

  Attributes:
    generator_id, settings, batch_size: see `Generator`; the batch is of all devices together.
  """

  def __init__(
    self, model: TrainedModel[CvaeConfig], config: CvaeGeneratorConfig, where: str = 'generator'
  ):
    """Makes it ready.

    Args:
      model: what draws.
      config: see `CvaeGeneratorConfig`.
      where: names the generator in messages.

    Raises:
      UserError: a setting out of range, or a tokenizer that is not the model's.
    """
    config.check(where)
    check_tokenizer(model.config.text, model.tokenizer, model.length, where)
    digest = weights_digest(model.params)
    self.generator_id = f'{config.name}:{digest}'
    self.settings: Mapping[str, Any] = {
      'weights': digest,
      'temperature': config.temperature,
      'dtype': model.config.dtype,
      'image_size': model.config.image_size,
      'text_length': model.length,
    }
    # this process's devices alone: other processes draw other images
    mesh = make_mesh(MeshConfig(), jax.local_devices())
    self.batch_size = config.batch_size * mesh.shape['data']
    self._tokenizer, self._length = model.tokenizer, model.length
    self._rows = batch_sharding(mesh)
    self._params = jax.device_put(dict(model.params), replicated(mesh))
    self._draw = make_draw(model.config, config.temperature, mesh)

  def generate(
    self, prompts: Sequence[str], seeds: Sequence[int]
  ) -> list[UInt8[np.ndarray, 'height width 3'] | None]:
    """See `synth.rows.Generator`; longer prompts are cut to the model's text length.

    Raises:
      UserError: not as many seeds as prompts, or one outside 0 to 2**63 - 1.
    """
    return draw_full_batches(
      lambda *batch: self._draw(self._params, *jax.device_put(batch, self._rows)),
      prompts,
      seeds,
      self.batch_size,
      lambda texts: self._tokenizer.encode(texts, self._length),
    )


def make_draw(config: CvaeConfig, temperature: float, mesh: Mesh) -> Draw:
  """Returns the jitted function that draws images on all devices of a mesh.

  Each device holds all weights and draws its own rows of the batch, by the program that one device
  alone would run.
  """
  skeleton = Skeleton(lambda rngs: Cvae(config, rngs))

  def draw(params: Params, text: Array, seeds: Array) -> tuple[Array, Array]:
    noise = seeded_noise(seeds, (config.latents, config.latent_dim))
    return sample(skeleton.bind(params), text, noise, temperature)

  rows = PartitionSpec(BATCH_AXES)
  return jax.jit(
    jax.shard_map(draw, mesh=mesh, in_specs=(PartitionSpec(), rows, rows), out_specs=(rows, rows))
  )


def sample(
  model: Cvae,
  text: Int[Array, 'batch length'],
  noise: Float[Array, 'batch latents dim'],
  temperature: float,
) -> tuple[UInt8[Array, 'batch size size 3'], Bool[Array, 'batch']]:
  """Draws images of captions; to be called under `jit`.

  Returns: the images, and for each whether all its numbers were finite.
  """
  context = model.encode_text(text)
  x = model.decode(latents_at(model.prior_of(context), noise, temperature), context)
  finite = jnp.all(jnp.isfinite(x), axis=(1, 2, 3))
  pixels = jnp.round(127.5 * (jnp.clip(x, -1, 1) + 1))
  return jnp.where(jnp.isfinite(x), pixels, 0).astype(jnp.uint8), finite


def make_cvae_generator(
  config: CvaeGeneratorConfig, model: TrainedModel[CvaeConfig] | str, where: str = 'generator'
) -> CvaeGenerator:
  """A generator from a trained conditional VAE.

  Args:
    config: how it draws.
    model: what draws, or the folder of its training run.
    where: names the generator in messages.

  Raises:
    UserError: a bad setting, no such run, a run of another objective, no such checkpoint.
  """
  config.check(where)
  if isinstance(model, str):
    model = load_model(
      model, 'cvae', CvaeConfig, averaged=config.averaged, step=config.step, where=where
    )
  return CvaeGenerator(model, config, where)
