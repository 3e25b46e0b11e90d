"""Parts as one shuffled, endless stream of examples."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import grain
import numpy as np
from jaxtyping import Int

from align_jax.data.embed_prompt import Level
from align_jax.data.examples import Example, Part, Reader, Text, partner_positions
from align_jax.data.pair_examples import PairExample, PairReader
from align_jax.data.quarantine import Skipped
from align_jax.data.questions import things_in
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


AnyExample = Example | PairExample


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Parts as one stream of groups of examples: of one each, or clusters.

  Attributes:
    groups: by their position in it.
    size: of a group.
    epoch: records of all sources.
    data: what positions are in, for the state.
  """

  groups: grain.MapDataset
  size: int
  epoch: int
  data: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Group:
  """Makes the examples of a group; a cluster of which one cannot be used is left out whole.

  Attributes:
    reader: of one example.
    positions: of the members of each cluster; None: groups of one.
  """

  reader: Reader | PairReader
  positions: Int[np.ndarray, 'clusters size'] | None

  def __call__(self, number: int, rng: np.random.Generator) -> list[AnyExample | Skipped]:
    if self.positions is None:
      return [self.reader(number, rng)]
    found = [self.reader(int(position), rng) for position in self.positions[number]]
    skipped: list[AnyExample | Skipped] = [item for item in found if isinstance(item, Skipped)]
    return skipped or list(found)


class Mixer:
  """Mixes parts, and mixes them again when their sources have grown.

  Which part a position of the stream is of depends on the weights alone; which record of the part,
  on the seed, the part's number and its size. So when a source grows, the other parts go on as if
  nothing had happened, and the part itself goes on at the same position of a shuffled epoch over
  all its records: some may come again sooner, none can be left out of the epochs that follow.
  """

  def __init__(
    self,
    seed: int,
    transform: Transform,
    require_caption: bool,
    max_pixels: int,
    text: Text = 'plain',
    level: Level = 'hierarchical',
    questions: int = 1,
    summaries: float = 0.0,
  ):
    self._questions, self._summaries = questions, summaries
    self._seed, self._transform, self._text, self._level = seed, transform, text, level
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
      clusters = None if part.clusters is None else part.clusters.positions
      groups = len(part.source) if clusters is None else len(clusters)
      dataset = grain.MapDataset.range(groups).seed(part_seed(self._seed, number))
      # The generator is seeded by the position before sharing out: an example's augmentation does
      # not depend on which process makes it.
      group = _Group(self._reader(part, positions), clusters)
      datasets.append(dataset.shuffle().repeat().random_map(group))
    self._partners = partners
    weights = [float(part.weight) for part in parts]
    plan = parts[0].clusters
    return Mixture(
      groups=datasets[0] if len(datasets) == 1 else grain.MapDataset.mix(datasets, weights),
      size=1 if plan is None else plan.positions.shape[1],
      epoch=sum(len(part.source) for part in parts),
      data={
        'records': [len(part.source) for part in parts],
        'weights': weights,
        'seed': self._seed,
        **({} if plan is None else {'plan': plan.checksum}),
      },
    )

  def _reader(self, part: Part, positions: Mapping[str, int] | None) -> Reader | PairReader:
    if self._text == 'pairs':
      # whoever asks for pairs opened a source of pairs
      source = cast(Any, part.source)
      return PairReader(source, self._transform, self._level, self._max_pixels)
    return Reader(
      part,
      self._transform,
      self._require_caption,
      self._max_pixels,
      positions,
      self._text,
      things_in(part.source) if self._text == 'questions' else (),
      self._questions,
      self._summaries,
    )

  def _positions(self, source: Source) -> Mapping[str, int]:
    for other, positions in self._partners:
      if other is source:
        return positions
    return partner_positions(source)
