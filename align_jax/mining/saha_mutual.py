"""`saha_mutual`: SaHa's query-space filter and B3's mutual hardness in one, in any data order.

SaHa asks that a negative be near while its owner's query is not, but only of the one query that a
cluster grows from, in the order of the data. B3 asks that hardness go both ways, but takes the very
nearest for hidden matches by their rank alone. Here a near pair is a hidden match if the two could
exchange their candidates at no loss and their queries are alike (`hidden`); hidden matches never
share a cluster. How hard two pairs are for each other is the mean of both products. Clusters grow
by merging those that are each other's hardest (`grow`); what is left over is dealt out to where it
is hardest, and pairs swap places as long as that makes clusters harder (`places`).
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse

from align_jax.errors import require
from align_jax.mining.apart import VETO, Apart
from align_jax.mining.graph import ranked_pairs
from align_jax.mining.grow import grow
from align_jax.mining.hidden import alike, exchange_loss, largest_loss
from align_jax.mining.pairs import Pairs
from align_jax.mining.places import both_sides, deal, dealt, rows_of, swap
from align_jax.mining.products import Turns, near_order, products


@dataclasses.dataclass(frozen=True)
class MutualConfig:
  """How clusters are built.

  Attributes:
    alike: hidden matches are looked for among this share of a pair's ranked others, those whose
      queries are most like its own.
    missed: share of the hidden matches that may be missed: smaller ones cost more that are none.
    swaps: rounds of swaps, at most.
  """

  alike: float = 0.5
  missed: float = 0.01
  swaps: int = 10

  def __post_init__(self) -> None:
    require(0 < self.alike <= 1, 'config.alike', f'{self.alike} is no share above 0')
    require(0 <= self.missed < 1, 'config.missed', f'{self.missed} is no share below 1')
    require(self.swaps >= 0, 'config.swaps', f'{self.swaps} is below 0')


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

  Returns: numbers of pairs, each in one place, -1 where the last places are empty; and counts:
    pairs ranked, hidden matches and hard partners among them (each two once), pairs dealt out to
    other clusters, swaps, and pairs that are with a hidden match after all, for want of room.
  """
  n, size = len(pairs), k + 1
  order = near_order(pairs.queries[pairs.query])
  left, right, across, back, hidden = hidden_matches(pairs, values, pool, config, order)
  # Whom neither ranks counts 0: who is ranked counts by how much more that is.
  least = np.where(np.isfinite(values), values, np.inf).min(axis=1)[pairs.query]
  weight = np.maximum((across + back - least[left] - least[right]) / 2, 0)
  vetoes = _either(n, left[hidden], right[hidden], np.ones(int(hidden.sum())))
  graph = _either(n, left, right, weight)
  graph = sparse.csr_array(graph - graph.multiply(vetoes))  # a hidden match is no hard partner
  graph.eliminate_zeros()
  u, apart = both_sides(pairs), Apart.of(pairs, sparse.csr_array(VETO * vetoes))
  label = grow(graph, apart, size)
  cluster = deal(label, u, apart, size)
  cluster, swaps = swap(cluster, graph, u, apart, size, config.swaps, order)
  return rows_of(cluster, size), {
    'ranked': len(left),
    'hidden': vetoes.nnz // 2,
    'hard': graph.nnz // 2,
    'dealt': dealt(label, size),
    'swaps': swaps,
    'with_hidden': apart.close(cluster),
  }


def hidden_matches(
  pairs: Pairs,
  values: Float[np.ndarray, 'q depth'],
  pool: Int[np.ndarray, 'q depth'],
  config: MutualConfig,
  order: Int[np.ndarray, 'n'] | None = None,
) -> tuple[
  Int[np.ndarray, 'e'],
  Int[np.ndarray, 'e'],
  Float[np.ndarray, 'e'],
  Float[np.ndarray, 'e'],
  Bool[np.ndarray, 'e'],
]:
  """Says of all pairs that a pair ranks whether they are hidden matches.

  `order`: of the pairs, in which rows near each other are read together; None: `near_order`.

  Returns: who ranks, in ascending order; who is ranked; the product of the one's query with the
    other's candidate, and the other way round; whether it is a hidden match.
  """
  left, right, across = ranked_pairs(pairs, values, pool, 0, pool.shape[1])
  turns = Turns(left, near_order(pairs.queries[pairs.query]) if order is None else order)
  back = products(pairs.queries, pairs.candidates, pairs.query[right], pairs.candidate[left], turns)
  loss = exchange_loss(pairs, left, right, across, back)
  hidden = loss <= largest_loss(loss, config.missed)
  hidden &= alike(pairs, left, right, config.alike, turns)
  return left, right, across, back, hidden


def _either(
  n: int,
  left: Int[np.ndarray, 'e'],
  right: Int[np.ndarray, 'e'],
  weight: Float[np.ndarray, 'e'],
) -> sparse.csr_array:
  """A graph with the edges that either end ranks, of both weights the larger."""
  one = sparse.coo_array((weight.astype(np.float64), (left, right)), shape=(n, n)).tocsr()
  graph = sparse.csr_array(one.maximum(one.T.tocsr()))
  graph.eliminate_zeros()
  return graph
