"""Parts as one shuffled, endless stream of examples."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import grain
import numpy as np

from align_jax.data.examples import Part, Reader, partner_positions
from align_jax.data.transforms import Transform
from align_jax.errors import UserError

if TYPE_CHECKING:
  from align_jax.data.sources import Source
else:
  Source = Any  # the shape check of the tests cannot follow a name that exists for mypy only


def part_seed(seed: int, number: int) -> int:
  """Returns the seed of a part's order and augmentation."""
  if seed < 0:
    raise UserError(f'seed {seed}: set 0 or more')
  return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Parts as one stream of examples.

  Attributes:
    examples: by their position in it.
    epoch: records of all sources.
    data: what positions are in, for the state.
  """

  examples: grain.MapDataset
  epoch: int
  data: dict[str, Any]


class Mixer:
  """Mixes parts, and mixes them again when their sources have grown.

  Which part a position of the stream is of depends on the weights alone; which record of the part,
  on the seed, the part's number and its size. So when a source grows, the other parts go on as if
  nothing had happened, and the part itself goes on at the same position of a shuffled epoch over
  all its records: some may come again sooner, none can be left out of the epochs that follow.
  """

  def __init__(self, seed: int, transform: Transform, require_caption: bool, max_pixels: int):
    self._seed, self._transform = seed, transform
    self._require_caption, self._max_pixels = require_caption, max_pixels
    self._partners: list[tuple[Source, Mapping[str, int]]] = []  # of the mixture before

  def mix(self, parts: Sequence[Part]) -> Mixture:
    """Returns the stream of these parts."""
    partners, datasets = [], []
    for number, part in enumerate(parts):
      positions = None
      if part.partners is not None:
        positions = self._positions(part.partners)
        partners.append((part.partners, positions))
      dataset = grain.MapDataset.range(len(part.source)).seed(part_seed(self._seed, number))
      # The generator is seeded by the position before sharing out: an example's augmentation does
      # not depend on which process makes it.
      reader = Reader(part, self._transform, self._require_caption, self._max_pixels, positions)
      datasets.append(dataset.shuffle().repeat().random_map(reader))
    self._partners = partners
    weights = [float(part.weight) for part in parts]
    return Mixture(
      examples=datasets[0] if len(datasets) == 1 else grain.MapDataset.mix(datasets, weights),
      epoch=sum(len(part.source) for part in parts),
      data={
        'records': [len(part.source) for part in parts],
        'weights': weights,
        'seed': self._seed,
      },
    )

  def _positions(self, source: Source) -> Mapping[str, int]:
    for other, positions in self._partners:
      if other is source:
        return positions
    return partner_positions(source)
