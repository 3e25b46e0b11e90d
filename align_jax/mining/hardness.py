"""How hard the negatives of clusters are, in the terms of sentence-transformers' own summary."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from align_jax.mining.pairs import Pairs

BINS = 40  # of the histogram, from -1 to 1
_FINE = 8000  # bins that quantiles are read from, from -2 to 2
_PLACES = 1 << 22  # products that are looked at together


@dataclasses.dataclass(frozen=True)
class Spread:
  """Of many numbers.

  Attributes:
    count, mean, std, least, most: exact.
    quarter, median, three_quarters: to 0.0005.
  """

  count: int
  mean: float
  std: float
  least: float
  quarter: float
  median: float
  three_quarters: float
  most: float


@dataclasses.dataclass(frozen=True)
class Hardness:
  """Of all ordered pairs of members of a cluster: a query with another's candidate.

  Attributes:
    positive: products of queries with their own candidates, once for each pair that is in a
      cluster.
    negative: with those of the others; known matches are not counted.
    difference: positive less negative.
    above: share of the negatives that are at least as near as the positive.
    histogram: of the negatives, `BINS` from -1 to 1.
    members: pairs that are in a cluster.
    known_matches: ordered pairs of members that are known matches.
  """

  positive: Spread
  negative: Spread
  difference: Spread
  above: float
  histogram: tuple[int, ...]
  members: int
  known_matches: int


class _Tally:
  """Adds numbers up, some at a time."""

  def __init__(self) -> None:
    self.count, self.total, self.square = 0, 0.0, 0.0
    self.least, self.most = np.inf, -np.inf
    self.fine = np.zeros(_FINE, np.int64)

  def add(self, x: Float[np.ndarray, '...']) -> None:
    if x.size:
      self.count += x.size
      self.total += float(x.sum(dtype=np.float64))
      self.square += float(np.square(x, dtype=np.float64).sum())
      self.least, self.most = min(self.least, float(x.min())), max(self.most, float(x.max()))
      place = ((x + 2) * (_FINE / 4)).astype(np.int64).clip(0, _FINE - 1)
      self.fine += np.bincount(place.reshape(-1), minlength=_FINE)

  def spread(self) -> Spread:
    if not self.count:
      none = float('nan')
      return Spread(0, none, none, none, none, none, none, none)
    mean = self.total / self.count
    std = max(0.0, self.square / self.count - mean**2) ** 0.5
    reached = np.cumsum(self.fine) / self.count
    middles = (np.arange(_FINE) + 0.5) * (4 / _FINE) - 2
    low, middle, high = (float(middles[np.searchsorted(reached, q)]) for q in (0.25, 0.5, 0.75))
    return Spread(self.count, mean, std, self.least, low, middle, high, self.most)


def measure(clusters: Int[np.ndarray, 'clusters size'], pairs: Pairs) -> Hardness:
  """Measures clusters; -1 is nobody."""
  inside = np.unique(clusters[clusters >= 0])
  queries = np.asarray(pairs.queries, np.float32)
  candidates = np.asarray(pairs.candidates, np.float32)
  own = np.einsum('nd,nd->n', queries[pairs.query], candidates[pairs.candidate])
  positive, negative, difference = _Tally(), _Tally(), _Tally()
  positive.add(own[inside])
  above = known = 0
  size = clusters.shape[1]
  step = max(1, _PLACES // (size * max(size, queries.shape[1])))
  for start in range(0, len(clusters), step):
    rows = clusters[start : start + step]
    products = queries[pairs.query[rows]] @ candidates[pairs.candidate[rows]].swapaxes(1, 2)
    left, right = np.broadcast_arrays(rows[:, :, None], rows[:, None, :])
    there = (left >= 0) & (right >= 0) & ~np.eye(size, dtype=bool)
    one, other, product = left[there], right[there], products[there]
    match = pairs.match(one, other)
    known += int(match.sum())
    one, product = one[~match], product[~match]
    negative.add(product)
    difference.add(own[one] - product)
    above += int((product >= own[one]).sum())
  wide = negative.fine.reshape(-1, _FINE // BINS // 2).sum(axis=1)
  low, high = BINS // 2, BINS // 2 + BINS
  bins = wide[low:high].copy()
  bins[0] += wide[:low].sum()
  bins[-1] += wide[high:].sum()
  return Hardness(
    positive=positive.spread(),
    negative=negative.spread(),
    difference=difference.spread(),
    above=above / max(1, negative.count),
    histogram=tuple(bins.tolist()),
    members=len(inside),
    known_matches=known,
  )


def false_negative_rate(
  clusters: Int[np.ndarray, 'clusters size'], labels: Int[np.ndarray, 'n']
) -> float:
  """Returns the share of negatives that are true matches, where it is known what matches.

  Args:
    clusters: numbers of pairs, -1 where a place is empty.
    labels: of the pairs: the candidate of one matches the query of another exactly if they are
      equal; below 0 where nobody knows, and those pairs are not counted.

  Returns: of all ordered pairs of different members, a share in [0, 1]; nan if there are none.
  """
  many, false = 0, 0
  step = max(1, _PLACES // clusters.shape[1] ** 2)
  for start in range(0, len(clusters), step):
    rows = clusters[start : start + step]
    label = np.where(rows >= 0, labels[rows], -1)
    known = label >= 0
    apart = rows[:, :, None] != rows[:, None, :]
    there = known[:, :, None] & known[:, None, :] & apart
    many += int(there.sum())
    false += int((there & (label[:, :, None] == label[:, None, :])).sum())
  return false / many if many else float('nan')
