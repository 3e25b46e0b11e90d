"""LoRA adapters: what the generated track adds to the shared backbone."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from align_jax.errors import UserError
from align_jax.models.param import param

Gate = Float[Array, 'batch'] | None  # None: the real track, which has no adapter


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Adapters of a tower.

  Attributes:
    rank: of the update; `full` learns a whole matrix, the upper end of the rank ablation.
    alpha: the update is scaled by `alpha / rank`; `full` is not scaled.
    layers: which linear layers of every block have one.
  """

  rank: int | Literal['full'] = 4
  alpha: float = 4.0
  layers: tuple[Literal['attention', 'mlp'], ...] = ('attention', 'mlp')

  def __post_init__(self) -> None:
    if self.rank != 'full' and self.rank < 1:
      raise UserError(f'config.model.lora.rank: {self.rank} must be at least 1, or full')
    if not self.layers:
      raise UserError(
        'config.model.lora.layers: empty; name attention, mlp or both, or set no lora'
      )


class Adapter(nnx.Module):
  """`x -> scale · x A B`, with B zero at first: an untrained adapter changes nothing.

  Source: Hu et al. 2021, arXiv 2106.09685, section 4.1.
  """

  def __init__(
    self, config: LoraConfig, size: tuple[int, int], axes: tuple[str, str], rngs: nnx.Rngs
  ):
    zeros = nnx.initializers.zeros
    self.full = config.rank == 'full'
    if config.rank == 'full':
      self.delta = param(rngs, zeros, size, axes)
      return
    self.scale = config.alpha / config.rank
    uniform = nnx.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
    self.a = param(rngs, uniform, (size[0], config.rank), (axes[0], 'rank'))
    self.b = param(rngs, zeros, (config.rank, size[1]), ('rank', axes[1]))

  def __call__(
    self, x: Float[Array, 'batch *positions in'], gate: Float[Array, 'batch']
  ) -> Float[Array, 'batch *positions out']:
    """Returns the update, each example's times its gate (0: none)."""
    gate = gate.reshape(gate.shape + (1,) * (x.ndim - 1)).astype(x.dtype)
    if self.full:
      return gate * (x @ self.delta[...].astype(x.dtype))
    # gated in the narrow middle, where it is cheapest
    inner = (x @ self.a[...].astype(x.dtype)) * (gate * jnp.asarray(self.scale, x.dtype))
    return inner @ self.b[...].astype(x.dtype)
