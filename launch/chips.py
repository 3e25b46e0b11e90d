"""Slices of TPU chips: how `--topology` names one, and how libtpu is asked for it."""

import dataclasses
import math
import re
from typing import Any

import jax

from align_jax.errors import UserError, did_you_mean
from align_jax.parallel.chips import CHIPS, Chip

# other names in use for the same chips
_ALIASES = {
  'v5litepod': 'v5e',
  'v5lite': 'v5e',
  'trillium': 'v6e',
  'v7x': 'tpu7x',
  'ironwood': 'tpu7x',
}


@dataclasses.dataclass(frozen=True)
class Topology:
  """A slice of chips.

  Attributes:
    name: as libtpu takes it, `v5e:16x16`.
    chip: its figures; None for a chip that this table does not have.
    shape: chips along each axis.
  """

  name: str
  chip: Chip | None
  shape: tuple[int, ...]

  @property
  def chips(self) -> int:
    """Number of chips."""
    return math.prod(self.shape)


def parse_topology(text: str) -> Topology:
  """Reads `--topology`.

  Raises:
    UserError: not of the form chip:AxB, or a shape that the chip does not have.
  """
  found = re.fullmatch(r'([\w ]+):(\d+(?:x\d+){0,2})', text.strip().lower())
  examples = 'v5e:16x16, v6e:4x4, v5p:4x4x4, v4:2x2x1, tpu7x:2x2x1'
  if not found:
    raise UserError(f'--topology: {text!r} is not understood; write chip:shape, like {examples}')
  name = _ALIASES.get(found[1], found[1])
  shape = tuple(int(n) for n in found[2].split('x'))
  chip = CHIPS.get(name)
  if chip is not None and len(shape) != chip.axes:
    sizes = 'x'.join('AB' if chip.axes == 2 else 'ABC')
    raise UserError(f'--topology: {text!r}: {name} has {chip.axes} axes; write {name}:{sizes}')
  side = round(chip.largest**0.5) if chip is not None and chip.axes == 2 else max(shape)
  if chip is not None and (math.prod(shape) > chip.largest or max(shape) > side):
    most = f'{side}x{side}' if chip.axes == 2 else f'{chip.largest} chips'
    raise UserError(f'--topology: {text!r} is larger than a pod of {name}, {most}')
  if 0 in shape:
    raise UserError(f'--topology: {text!r}: every axis has at least one chip')
  return Topology(f'{name}:{"x".join(map(str, shape))}', chip, shape)


def open_topology(topology: Topology) -> list[jax.Device]:
  """Devices one can compile for, without having them.

  Raises:
    UserError: libtpu knows no such chip or shape.
  """
  from jax.experimental import topologies  # loads libtpu: only now, when the environment is set

  options: dict[str, Any] = dict(topology.chip.options) if topology.chip else {}
  # libtpu expects hosts of 2x2 chips; smaller slices exist as well
  host = [math.gcd(n, 2) for n in (*topology.shape, 1, 1)[:2]]
  if host != [2, 2]:
    options['chips_per_host_bounds'] = [*host, 1]
  try:
    found = topologies.get_topology_desc(topology.name, 'tpu', **options)
  except jax.errors.JaxRuntimeError as error:
    hint = '' if topology.chip else did_you_mean(topology.name.split(':')[0], CHIPS)
    raise UserError(
      f'--topology: libtpu does not take {topology.name!r}: {_short(error)}{hint}'
    ) from error
  return list(found.devices)


def _short(error: Exception) -> str:
  """The first sentence of an error of libtpu, without its code."""
  return str(error).split('\n')[0].split('; ')[0].removeprefix('INVALID_ARGUMENT: ')[:160]
