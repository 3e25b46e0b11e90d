"""From scores to thresholds, one a category: given, a share of the pool, or from real images."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from align_jax.errors import require
from align_jax.synth.filtration.similarity import mean_similarity, nearest_similarity

Kind = Literal['none', 'fixed', 'quantile', 'calibrated']


@dataclasses.dataclass(frozen=True)
class ThresholdConfig:
  """Below what a score drops an image.

  Attributes:
    kind: `none` drops nothing; `fixed`: below `value`; `quantile`: the lowest `drop` of each
      category, known once all images are scored; `calibrated`: below what `keep` of held-out real
      images of the category reach.
    value: of `fixed`, a cosine. DiverGen keeps similarities of 0.6 and more with CLIP ViT-L/14;
      every encoder has a scale of its own.
    drop: of `quantile`, a share in [0, 1).
    keep: of `calibrated`, a share in (0, 1].
    at_least: of `quantile` and `calibrated`: a category with fewer scores takes the threshold of
      all categories together.
  """

  kind: Kind = 'none'
  value: float = 0.6
  drop: float = 0.1
  keep: float = 0.95
  at_least: int = 8

  def check(self, where: str) -> None:
    """Says what is wrong with it.

    Raises:
      UserError: a value outside its range; `where` names the group.
    """
    require(-1 <= self.value <= 1, f'{where}.value', f'{self.value} is no cosine, -1 to 1')
    require(0 <= self.drop < 1, f'{where}.drop', f'{self.drop} is no share, 0 to below 1')
    require(0 < self.keep <= 1, f'{where}.keep', f'{self.keep} is no share, above 0 to 1')
    require(self.at_least >= 1, f'{where}.at_least', f'{self.at_least} must be at least 1')


@dataclasses.dataclass(frozen=True)
class Cuts:
  """The thresholds of one score.

  Attributes:
    pooled: of the categories that have none of their own; None: nothing is dropped there.
    own: of categories, by name.
    falls_back: whether a category without its own is worth a note.
  """

  pooled: float | None = None
  own: Mapping[str, float] = dataclasses.field(default_factory=dict)
  falls_back: bool = False

  def of(self, category: str) -> tuple[float | None, str]:
    """Returns the threshold of a category, and a note where it is that of all together."""
    if category in self.own:
      return self.own[category], ''
    return self.pooled, 'threshold of all categories' if self.falls_back else ''


@dataclasses.dataclass(frozen=True)
class Thresholds:
  """The thresholds of a run.

  Attributes:
    similarity, text: of the two scores.
  """

  similarity: Cuts = Cuts()
  text: Cuts = Cuts()


def fixed_cuts(config: ThresholdConfig) -> Cuts:
  """Thresholds that need no data."""
  return Cuts(config.value if config.kind == 'fixed' else None)


def quantile_cuts(
  config: ThresholdConfig, scores: Sequence[float | None], categories: Sequence[str]
) -> Cuts:
  """The thresholds below which the lowest `drop` of each category lie.

  Args:
    scores: of the pool; None is left out.
    categories: of the same images, by name.
  """
  return _cuts(config, _by_category(scores, categories), config.drop)


def calibrated_cuts(
  config: ThresholdConfig, scores: Float[np.ndarray, 'm'], categories: Sequence[str]
) -> Cuts:
  """The thresholds that `keep` of the real images reach.

  Args:
    scores: of real images, each held out in turn, see `held_out_similarity`; NaN is left out.
    categories: of the same images, by name.
  """
  values = [float(s) if np.isfinite(s) else None for s in scores]
  return _cuts(config, _by_category(values, categories), 1 - config.keep)


def held_out_similarity(
  held_out: Float[np.ndarray, 'm dim'],
  real: Float[np.ndarray, 'm dim'],
  category: Int[np.ndarray, 'm'],
  k: int = 0,
) -> Float[np.ndarray, 'm']:
  """Similarity of each real instance to the *other* real ones of its category.

  Args:
    held_out: the instances as generated ones are shown: else the difference between the two views
      would count as a flaw of what is generated.
    real: the same instances as real ones are shown; both unit vectors, finite.
    category: numbers, from 0.
    k: of the nearest; 0: the mean over all.

  Returns: NaN where the category has no other.
  """
  members = np.bincount(category)[category]
  own = np.einsum('ij,ij->i', held_out, real, dtype=np.float64)
  if not k:
    others = _sums(mean_similarity(held_out, category, real, category), members) - own
    return _over(others, members - 1)
  most = np.minimum(members, k + 1)
  sums = _sums(nearest_similarity(held_out, category, real, category, k + 1), most)
  without = _sums(nearest_similarity(held_out, category, real, category, k), np.minimum(members, k))
  # it is itself among the k + 1 nearest, or else not among the k nearest either
  inside = (own >= sums - without) | (members <= k)
  return _over(np.where(inside, sums - own, without), np.where(inside, most - 1, k))


def _sums(means: np.ndarray, counts: np.ndarray) -> np.ndarray:
  return means.astype(np.float64) * counts


def _over(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
  return np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)


def _by_category(
  scores: Sequence[float | None], categories: Sequence[str]
) -> dict[str, list[float]]:
  out: dict[str, list[float]] = {}
  for score, name in zip(scores, categories, strict=True):
    if score is not None:
      out.setdefault(name, []).append(score)
  return out


def _cuts(config: ThresholdConfig, scores: Mapping[str, list[float]], below: float) -> Cuts:
  """At the value that a share `below` of the scores, rounded down, lie under."""
  everything = [score for name in sorted(scores) for score in scores[name]]
  if not everything:
    return Cuts(None, falls_back=True)
  return Cuts(
    _lowest(everything, below),
    {
      name: _lowest(values, below)
      for name, values in sorted(scores.items())
      if len(values) >= config.at_least
    },
    falls_back=True,
  )


def _lowest(values: Sequence[float], below: float) -> float:
  """The lowest score that stays: so many lie below it, or fewer where scores are equal."""
  ordered = sorted(values)
  # 1e-9: a share such as 0.1 · 30 is a little less or more than the whole number that it means
  return ordered[min(int(below * len(ordered) + 1e-9), len(ordered) - 1)]
