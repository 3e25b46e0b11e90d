"""`flow`: the generator learns the velocity from noise to images, given captions."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, UInt32

from align_jax.errors import UserError
from align_jax.losses.flow import TimeDistribution, flow_errors, interpolate, sample_time
from align_jax.losses.table import Losses
from align_jax.models.dit import Dit, DitConfig
from align_jax.train.objective import Batch, Metrics


@dataclasses.dataclass(frozen=True)
class Flow:
  """Rectified flow, conditioned on captions, some of them dropped for classifier-free guidance.

  With `config.model.autoencoder` the flow is over latents, which each step draws anew of its images
  (Rombach et al. 2022, arXiv 2112.10752, section 3.3). The autoencoder's weights are frozen: no
  gradient, optimiser state or average is kept of them.

  Attributes:
    time: distribution of the training times, see `losses.flow.sample_time`.
    time_mean, time_std: of the logit-normal distribution. A mean above 0 trains nearer to noise,
      where the caption decides: a short training else learns to denoise and little of the words.
    text_dropout: share of the captions that are replaced by no text, so that the same model also
      learns the unconditional velocity (Ho & Salimans 2022, arXiv 2207.12598).
  """

  time: TimeDistribution = 'logit_normal'
  time_mean: float = 0.8
  time_std: float = 1.0
  text_dropout: float = 0.1

  ModelConfig: ClassVar[type] = DitConfig
  texts: ClassVar[tuple[str, ...]] = ('plain',)
  batch_coupled: ClassVar[bool] = False

  def __post_init__(self) -> None:
    if not 0 <= self.text_dropout <= 1:
      raise UserError(f'config.objective.text_dropout: {self.text_dropout} is outside [0, 1]')
    if self.time_std <= 0:
      raise UserError(f'config.objective.time_std: {self.time_std} must be positive')

  @property
  def generated_only(self) -> bool:
    return False

  @property
  def needs_partner(self) -> bool:
    return False

  def create_model(self, config: DitConfig, rngs: nnx.Rngs) -> Dit:
    return Dit(config, rngs)

  def trainable(self, name: str) -> bool:
    return not name.startswith('autoencoder/')

  def prepare(self, batch: Batch, key: Array) -> Batch:
    time_key, noise_key, drop_key = jax.random.split(key, 3)
    count = len(batch['image'])
    return {
      **batch,
      'time': sample_time(time_key, count, self.time, self.time_mean, self.time_std),
      'noise': jax.random.normal(noise_key, batch['image'].shape, jnp.float32),
      'dropped': jax.random.bernoulli(drop_key, self.text_dropout, (count, 1)),
      # only the model knows how many numbers its latents are. Of `noise` and this, the compiler
      # drops the one that is not used
      'latent_seed': jax.random.bits(jax.random.fold_in(key, 3), (count,), jnp.uint32),
    }

  def embed(self, model: Dit, batch: Batch) -> Batch:
    image = batch['image'].astype(jnp.float32) / 127.5 - 1
    noise, time = batch['noise'], batch['time']
    if model.config.autoencoder is not None:
      noise, of_latents = latent_noise(batch['latent_seed'], model.config.shape)
      image = model.to_latents(image, of_latents)
    text = jnp.where(batch['dropped'], model.config.pad_id, batch['text'])
    velocity = model(interpolate(image, noise, time), time, text)
    return {'error': flow_errors(velocity, image, noise)}

  def loss(self, model: Dit, outputs: Batch, batch: Batch, losses: Losses) -> tuple[Array, Metrics]:
    del model, batch, losses
    return jnp.mean(outputs['error']), {}

  def flops(self, config: DitConfig) -> int:
    encoder = config.autoencoder
    encoded = 0 if encoder is None else encoder.encode_flops(config.image_size)
    return 3 * config.flops + encoded


def latent_noise(
  seeds: UInt32[Array, 'batch'], shape: tuple[int, int, int]
) -> tuple[Float[Array, 'batch *shape'], Float[Array, 'batch *shape']]:
  """Returns noise for the flow and noise for the draw of latents, each row from its own seed."""
  both = jax.vmap(lambda seed: jax.random.normal(jax.random.key(seed), (2, *shape)))(seeds)
  return both[:, 0], both[:, 1]
