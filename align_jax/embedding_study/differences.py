"""Differences between strategies, and between levels of the prompt, paired by seed."""

import dataclasses
import itertools
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from align_jax.embedding_study.config import EmbeddingStudyConfig
from align_jax.embedding_study.runner import Found, Scores
from align_jax.study.results import margin

JUDGED = ('average', 'in_distribution', 'out_of_distribution')

PerSeed = Mapping[int, Scores]


@dataclasses.dataclass(frozen=True)
class Gap:
  """A mean difference, and how large it had to be: the 95 % interval of the paired t test."""

  mean: float
  margin: float

  @property
  def clear(self) -> bool:
    """Whether it is beyond what seeds alone bring about."""
    return abs(self.mean) > self.margin


@dataclasses.dataclass(frozen=True)
class Compared:
  """One row of cells less another.

  Attributes:
    where: the level of the prompt, or that it is over all; empty where levels are compared.
    one, other: titles of strategies or levels.
    gaps: metric -> `one - other`, over the seeds that both have; empty where there is none yet.
  """

  where: str
  one: str
  other: str
  gaps: Mapping[str, Gap]


def differences(config: EmbeddingStudyConfig, found: Found) -> list[Compared]:
  """The comparisons of the config at each level and over all, then levels over all strategies."""
  strategies = {strategy.name: strategy.title for strategy in config.strategies}
  levels = {level.name: level.title for level in config.levels}
  out = []
  for level, title in levels.items():
    for one, other in config.comparisons:
      gaps = _gaps(_cells_of(found, level, one), _cells_of(found, level, other))
      out.append(Compared(title, strategies[one], strategies[other], gaps))
  if len(levels) > 1:
    for one, other in config.comparisons:
      gaps = _gaps(_over_levels(found, levels, one), _over_levels(found, levels, other))
      out.append(Compared('mean of prompts', strategies[one], strategies[other], gaps))
  for one, other in itertools.combinations(levels, 2):
    gaps = _gaps(_level(found, one, other), _level(found, other, one))
    out.append(Compared('', levels[one], levels[other], gaps))
  return [compared for compared in out if compared.gaps]


def _cells_of(found: Found, level: str, strategy: str) -> PerSeed:
  return {c.seed: c.scores for c in found.cells if (c.level, c.strategy) == (level, strategy)}


def _over_levels(found: Found, levels: Collection[str], strategy: str) -> PerSeed:
  """The mean of a strategy over all levels, by seed."""
  each = [_cells_of(found, level, strategy) for level in levels]
  whole = set.intersection(*(set(scores) for scores in each))
  return {seed: _mean([scores[seed] for scores in each]) for seed in sorted(whole)}


def _level(found: Found, level: str, other: str) -> PerSeed:
  """The mean of a level over the strategies that are there for the other one as well, by seed."""
  there = [{(c.strategy, c.seed) for c in found.cells if c.level == x} for x in (level, other)]
  both = there[0] & there[1]
  out = {}
  for seed in sorted({seed for _, seed in both}):
    some = [
      c.scores
      for c in found.cells
      if c.level == level and c.seed == seed and (c.strategy, seed) in both
    ]
    out[seed] = _mean(some)
  return out


def _mean(scores: Sequence[Scores]) -> Scores:
  return {key: float(np.mean([s[key] for s in scores])) for key in JUDGED if key in scores[0]}


def _gaps(one: PerSeed, other: PerSeed) -> dict[str, Gap]:
  seeds = sorted(one.keys() & other.keys())
  out = {}
  for key in JUDGED:
    gaps: Sequence[float] = [one[s][key] - other[s][key] for s in seeds if key in one[s]]
    if gaps:
      error = np.std(gaps, ddof=1) / np.sqrt(len(gaps)) if len(gaps) > 1 else float('nan')
      out[key] = Gap(float(np.mean(gaps)), margin(float(error), len(gaps)))
  return out
