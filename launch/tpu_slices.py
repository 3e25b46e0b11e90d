"""TPU slices by one name, `v5e:4x4`, and what Cloud TPU, GKE and XPK call them."""

import dataclasses
import math

from align_jax.errors import UserError, did_you_mean

_CHIPS_PER_HOST = 4
_SHAPES_2D = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')


@dataclasses.dataclass(frozen=True)
class Generation:
  """A kind of TPU.

  Attributes:
    cloud: its name in Cloud TPU accelerator types.
    cores: TensorCores per chip as those names count them.
    gke: the value of the node label cloud.google.com/gke-tpu-accelerator.
    image: the TPU VM software version for JAX (cloud.google.com/tpu/docs/runtimes).
    dimensions: of its topologies.
    shaped: Cloud TPU takes a topology (`--type --topology`), not only a number of cores.
  """

  cloud: str
  cores: int
  gke: str
  image: str
  dimensions: int
  shaped: bool = False


GENERATIONS = {
  'v4': Generation('v4', 2, 'tpu-v4-podslice', 'tpu-ubuntu2204-base', 3, shaped=True),
  'v5e': Generation('v5litepod', 1, 'tpu-v5-lite-podslice', 'v2-alpha-tpuv5-lite', 2),
  'v5p': Generation('v5p', 2, 'tpu-v5p-slice', 'v2-alpha-tpuv5', 3),
  'v6e': Generation('v6e', 1, 'tpu-v6e-slice', 'v2-alpha-tpuv6e', 2),
}


@dataclasses.dataclass(frozen=True)
class TpuSlice:
  """A slice: a generation and the shape of its chips."""

  generation: Generation
  shape: tuple[int, ...]

  @property
  def topology(self) -> str:
    """The shape as the tools write it."""
    return 'x'.join(map(str, self.shape))

  @property
  def chips(self) -> int:
    """How many chips there are."""
    return math.prod(self.shape)

  @property
  def hosts(self) -> int:
    """How many machines, and so how many processes."""
    return self.chips // self.chips_per_host

  @property
  def chips_per_host(self) -> int:
    """Chips of one machine: 4 in a slice of several; v5e and v6e have one machine with 8."""
    whole = 8 if self.generation.dimensions == 2 else _CHIPS_PER_HOST
    return self.chips if self.chips <= whole else _CHIPS_PER_HOST

  @property
  def accelerator_type(self) -> str:
    """Cloud TPU's and XPK's name, `v5litepod-16`: it counts cores, not chips, on v4 and v5p."""
    return f'{self.generation.cloud}-{self.chips * self.generation.cores}'


def parse_slice(text: str) -> TpuSlice:
  """Reads `v5e:4x4`.

  Raises:
    UserError: an unknown generation, or a shape that it does not come in.
  """
  name, _, shape = text.partition(':')
  if name not in GENERATIONS:
    raise UserError(f'--topology: {name!r} is no TPU{did_you_mean(name, GENERATIONS)}')
  generation = GENERATIONS[name]
  sizes = shape.split('x')
  if len(sizes) != generation.dimensions or not all(s.isdigit() and int(s) for s in sizes):
    example = '4x4' if generation.dimensions == 2 else '4x4x4'
    raise UserError(f'--topology: {text!r} is no shape of {name}; write it like {name}:{example}')
  if generation.dimensions == 2 and shape not in _SHAPES_2D:
    raise UserError(f'--topology: {name} does not come as {shape}{did_you_mean(shape, _SHAPES_2D)}')
  found = TpuSlice(generation, tuple(map(int, sizes)))
  if generation.dimensions == 3 and found.chips % _CHIPS_PER_HOST:
    raise UserError(f'--topology: {text} is no whole number of machines with 4 chips each')
  return found
