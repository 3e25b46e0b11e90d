"""The rectified-flow transformer as a generator: a prompt and a seed in, one image out."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import UInt8

from align_jax.errors import require
from align_jax.models.dit import Dit, DitConfig
from align_jax.models.flat import Skeleton
from align_jax.parallel.mesh import MeshConfig, batch_sharding, make_mesh
from align_jax.synth.generators.trained import TrainedModel, draw_full_batches, load_model
from align_jax.synth.sampler import (
  Method,
  Solver,
  check_tokenizer,
  make_draw,
  weights_digest,
)
from align_jax.train.state import param_shardings

_NOISE = 'threefry2x32'  # how a seed becomes noise, see `sampler.seeded_noise`


@dataclasses.dataclass(frozen=True)
class FlowGeneratorConfig:
  """How a trained flow draws.

  Attributes:
    name: begins its id, `dit-rf:<digest of the weights>`.
    steps, guidance, method: see `sampler.Solver`.
    dtype: of the computation; '' as trained. The solver, and the parameters as they are kept, are
      float32 in any case.
    batch_size: images that each device draws at a time. Another number may change the last bit of
      an image, the number of devices does not.
    averaged: the moving average of the weights where the run kept one.
    step: of the checkpoint; None: the newest.
    scan: the blocks as one loop: compiles in a fraction of the time where there are many of them.
    mesh: of this process's own devices, for other processes draw other images. As it is, each
      holds all weights; `fsdp` splits those that are too large for that.
  """

  name: str = 'dit-rf'
  steps: int = 50
  guidance: float = 3.0
  method: Method = 'euler'
  dtype: Literal['', 'float32', 'bfloat16'] = ''
  batch_size: int = 32
  averaged: bool = True
  step: int | None = None
  scan: bool = False
  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

  @property
  def solver(self) -> Solver:
    return Solver(self.steps, self.guidance, self.method)

  def check(self, where: str) -> None:
    """Raises a UserError, `where.field: …`, for a value out of range."""
    self.solver.check(where)
    require(self.batch_size >= 1, f'{where}.batch_size', f'{self.batch_size} must be at least 1')
    require(bool(self.name), f'{where}.name', 'empty; it begins the id of the generator')


class FlowGenerator:
  """A trained `Dit` for use; see `synth.rows.Generator`.

  Batches are always full, short ones filled up: one program draws every image, so that it is the
  same to the last bit whatever was drawn beside it, and on however many devices.

  Attributes:
    generator_id, settings, batch_size: see `Generator`; the batch is of all devices together.
  """

  def __init__(
    self, model: TrainedModel[DitConfig], config: FlowGeneratorConfig, where: str = 'generator'
  ):
    """Makes it ready.

    Args:
      model: what draws.
      config: see `FlowGeneratorConfig`.
      where: names the generator in messages.

    Raises:
      UserError: a setting out of range, or a tokenizer that is not the model's.
    """
    config.check(where)
    check_tokenizer(model.config, model.tokenizer, model.length, where)
    computed = dataclasses.replace(model.config, dtype=config.dtype or model.config.dtype)
    digest = weights_digest(model.params)
    self.generator_id = f'{config.name}:{digest}'
    self.settings: Mapping[str, Any] = {
      'weights': digest,
      **dataclasses.asdict(config.solver),
      'dtype': computed.dtype,
      'image_size': computed.image_size,
      'text_length': model.length,
      'noise': _NOISE,
    }
    mesh = make_mesh(config.mesh, jax.local_devices())
    self.batch_size = config.batch_size * mesh.shape['data'] * mesh.shape['fsdp']
    self._tokenizer, self._length = model.tokenizer, model.length
    self._rows = batch_sharding(mesh)
    rules = config.mesh.rules
    shardings = param_shardings(Skeleton(lambda rngs: Dit(computed, rngs)), mesh, rules)
    self._params = {n: jax.device_put(model.params[n], shardings[n]) for n in shardings}
    self._draw = make_draw(computed, config.solver, mesh, rules, scan=config.scan)

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


def make_flow_generator(
  config: FlowGeneratorConfig, model: TrainedModel[DitConfig] | str, where: str = 'generator'
) -> FlowGenerator:
  """A generator from a trained flow.

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
      model, 'flow', DitConfig, averaged=config.averaged, step=config.step, where=where
    )
  return FlowGenerator(model, config, where)
