"""`saha_mutual`: SaHa's query-space filter and B3's mutual hardness in one, whatever the data order.

SaHa asks that a negative be near while its owner's query is not, but only of the one query that a
cluster grows from, in the order of the data. B3 asks that hardness go both ways, but takes the very
nearest for hidden matches by their rank alone. Here every pair ranks the others; of those it keeps
the share whose queries are least like its own; an edge needs both ends to keep each other. What
either end has dropped may never share a cluster with it. Clusters grow by mean linkage: two merge
if they are each other's hardest partner.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from align_jax.errors import require
from align_jax.mining.graph import Edges, mutual, ranked_pairs
from align_jax.mining.pairs import Pairs


@dataclasses.dataclass(frozen=True)
class MutualConfig:
  """How clusters are built.

  Attributes:
    keep: share of the ranked others of a pair that are no hidden matches, by query-query cosine.
  """

  keep: float = 0.5

  def __post_init__(self) -> None:
    require(0 < self.keep <= 1, 'config.keep', f'{self.keep} is no share above 0')


def saha_mutual(
  pairs: Pairs,
  values: Float[np.ndarray, 'q depth'],
  pool: Int[np.ndarray, 'q depth'],
  k: int,
  config: MutualConfig = MutualConfig(),
) -> tuple[Int[np.ndarray, 'clusters size'], dict[str, int]]:
  """Builds the clusters.

  Args:
    pairs: what is mined; for clusters that do not depend on the data order, sorted by id.
    values, pool: the nearest candidates of each query, see `nearest`.
    k: hard negatives of a pair: clusters are of k + 1 pairs.

  Returns: numbers of pairs, -1 where the last clusters are smaller; and counts: ranked others,
    those dropped by the filter, mutual edges, pairs that fill clusters without an edge to them.
  """
  count, size = len(pairs), k + 1
  left, right, weight = ranked_pairs(pairs, values, pool, 0, pool.shape[1])
  kept = least_similar(pairs, left, right, config.keep)
  edges = mutual(count, left[kept], right[kept], weight[kept])
  vetoes = _keys(count, left[~kept], right[~kept])
  alone = Edges(edges.left, edges.right, edges.weight)
  is_vetoed = _member(_keys(count, alone.left, alone.right), vetoes)
  edges = Edges(*(x[~is_vetoed] for x in (alone.left, alone.right, alone.weight)))
  label = grow(count, edges, vetoes, size)
  clusters, filled = fill(label, vetoes, pairs, size)
  return clusters, {
    'ranked': len(left),
    'similar_queries': int((~kept).sum()),
    'mutual_edges': len(edges.left),
    'fillers': filled,
  }


def least_similar(
  pairs: Pairs, left: Int[np.ndarray, 'e'], right: Int[np.ndarray, 'e'], share: float
) -> Bool[np.ndarray, 'e']:
  """Says of each ranked pair whether its query is among the share least like the ranking one's."""
  cosine = np.concatenate(
    [
      np.einsum(
        'nd,nd->n', pairs.queries[pairs.query[left[at]]], pairs.queries[pairs.query[right[at]]]
      )
      for at in np.array_split(np.arange(len(left)), max(1, len(left) // 65_536))
    ]
  )
  order = np.lexsort((right, cosine, left))
  first = np.searchsorted(left[order], left[order])
  many = np.bincount(left, minlength=len(pairs))[left[order]]
  kept = np.empty(len(left), bool)
  kept[order] = np.arange(len(left)) - first < np.ceil(share * many)
  return kept


def grow(
  count: int, edges: Edges, vetoes: Int[np.ndarray, 'v'], size: int
) -> Int[np.ndarray, 'count']:
  """Merges clusters that are each other's hardest partner, up to `size` pairs.

  Args:
    count: pairs, each of which is a cluster at first.
    edges: between pairs; clusters are as hard for each other as all their edges together, missing
      ones counting 0, divided by the number of their pairs of members.
    vetoes: sorted `left * count + right` of pairs that may not share a cluster.
    size: the most pairs of a cluster.

  Returns: the cluster of each pair, named by its first pair.
  """
  label = np.arange(count, dtype=np.int64)
  sizes = np.ones(count, np.int64)
  key = _keys(count, edges.left, edges.right, unique=False)
  order = np.argsort(key)
  key, weight = key[order], edges.weight[order].astype(np.float64)
  while len(key):
    low, high = key // count, key % count
    gain = weight / (sizes[low] * sizes[high])
    # one order over all edges: the first edge of all is the first of both its clusters
    order = np.lexsort((key, -gain))
    rank = np.empty(len(key), np.int64)
    rank[order] = np.arange(len(key))
    best = np.full(count, len(key), np.int64)
    np.minimum.at(best, low, rank)
    np.minimum.at(best, high, rank)
    merged = (best[low] == rank) & (best[high] == rank)
    label[high[merged]] = low[merged]
    sizes[low[merged]] += sizes[high[merged]]
    label = label[label]
    key, weight = _total(_relabel(count, key, label), weight)
    vetoes, _ = _total(_relabel(count, vetoes, label), np.zeros(len(vetoes)))
    low, high = key // count, key % count
    fits = (low != high) & (sizes[low] + sizes[high] <= size) & ~_member(key, vetoes)
    key, weight = key[fits], weight[fits]
  return label


def fill(
  label: Int[np.ndarray, 'count'], vetoes: Int[np.ndarray, 'v'], pairs: Pairs, size: int
) -> tuple[Int[np.ndarray, 'clusters size'], int]:
  """Makes clusters of equal size: the smallest are dealt out to the largest.

  A filler goes where no one of the cluster was dropped by it or has its query or candidate, if there
  is such a place.

  Returns: clusters, -1 where the last are smaller; and how many fillers there are.
  """
  count = len(label)
  names, sizes = np.unique(label, return_counts=True)
  order = np.lexsort((names, -sizes))
  members = np.split(np.argsort(label, kind='stable'), np.cumsum(sizes)[:-1])
  wanted = -(-count // size)
  rows = [members[i].tolist() for i in order[:wanted]]
  rows += [[] for _ in range(wanted - len(rows))]
  spare = sorted(int(i) for place in order[wanted:] for i in members[place])
  against: dict[int, set[int]] = {i: set() for i in spare}
  for low, high in zip((vetoes // count).tolist(), (vetoes % count).tolist(), strict=True):
    if low in against:
      against[low].add(high)
    if high in against:
      against[high].add(low)
  open_ = [row for row in rows if len(row) < size]
  for node in spare:
    clash = against[node]

    def suits(row: list[int], node: int = node, clash: set[int] = clash) -> bool:
      return not any(
        other in clash
        or pairs.query[other] == pairs.query[node]
        or pairs.candidate[other] == pairs.candidate[node]
        for other in row
      )

    place = next((i for i, row in enumerate(open_) if suits(row)), 0)
    open_[place].append(node)
    if len(open_[place]) == size:
      del open_[place]
  out = np.full((wanted, size), -1, np.int32)
  for number, row in enumerate(sorted(rows, key=lambda row: (-len(row), row))):
    out[number, : len(row)] = sorted(row)
  return out, len(spare)


def _keys(
  count: int, left: Int[np.ndarray, 'e'], right: Int[np.ndarray, 'e'], unique: bool = True
) -> Int[np.ndarray, 'k']:
  low, high = np.minimum(left, right).astype(np.int64), np.maximum(left, right).astype(np.int64)
  key = low * count + high
  return np.unique(key) if unique else key


def _relabel(
  count: int, key: Int[np.ndarray, 'e'], label: Int[np.ndarray, 'count']
) -> Int[np.ndarray, 'e']:
  return _keys(count, label[key // count], label[key % count], unique=False)


def _total(
  key: Int[np.ndarray, 'e'], weight: Float[np.ndarray, 'e']
) -> tuple[Int[np.ndarray, 'k'], Float[np.ndarray, 'k']]:
  """Adds up the weights of equal keys."""
  if not len(key):
    return key, weight
  order = np.argsort(key, kind='stable')
  names, first = np.unique(key[order], return_index=True)
  return names, np.add.reduceat(weight[order], first)


def _member(key: Int[np.ndarray, 'e'], sorted_keys: Int[np.ndarray, 'k']) -> Bool[np.ndarray, 'e']:
  if not len(sorted_keys):
    return np.zeros(len(key), bool)
  place = np.minimum(np.searchsorted(sorted_keys, key), len(sorted_keys) - 1)
  return sorted_keys[place] == key
