"""Which pairs are hidden matches: they mean the same, though nobody says so.

Two tests, and only who fails both is one.

Exchange: two pairs that mean the same may exchange their candidates and lose nothing,
`loss = q·c + q'·c' − q·c' − q'·c = (q − q')·(c − c')`. What is peculiar to either side, and what
all queries or all candidates have in common (a modality's own direction), cancels out; so for
hidden matches it is noise about 0, and for others about their squared distance in meaning. A loss
below 0 is noise alone: how far below tells how far above 0 hidden matches reach, with no label and
no threshold to be set.

Query space (SaHa's test): the queries of hidden matches are alike. Of the pairs that rank near, so
are only the first few by query-query product.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

from align_jax.mining.pairs import Pairs
from align_jax.mining.products import products

_LEAST = 1e-5  # of products near 1, float32 says no more


def exchange_loss(
  pairs: Pairs,
  left: Int[np.ndarray, 'e'],
  right: Int[np.ndarray, 'e'],
  across: Float[np.ndarray, 'e'],
  back: Float[np.ndarray, 'e'],
) -> Float[np.ndarray, 'e']:
  """Returns what is lost when two pairs exchange their candidates: `(q − q')·(c − c')`.

  Args:
    pairs: what is mined.
    left, right: the two.
    across, back: of the left one's query with the right one's candidate, and the other way round.
  """
  own = products(pairs.queries, pairs.candidates, pairs.query, pairs.candidate)
  return own[left] + own[right] - across - back


def largest_loss(loss: Float[np.ndarray, 'e'], missed: float) -> float:
  """Returns how much hidden matches lose at most, but for a share `missed` of them.

  Their losses are noise about 0, as often below as above; nothing else is below 0. So of those
  below, the share `missed` furthest down says where the same share above begins.
  """
  below = loss[loss < 0]
  return max(_LEAST, -float(np.quantile(below, missed))) if len(below) else _LEAST


def alike(
  pairs: Pairs, left: Int[np.ndarray, 'e'], right: Int[np.ndarray, 'e'], share: float
) -> Bool[np.ndarray, 'e']:
  """Says of each pair `right` whether its query is, of all that `left` has, among the most alike.

  Args:
    pairs: what is mined.
    left, right: who ranks and who is ranked, `left` in ascending order.
    share: so large a part of those that a pair ranks.
  """
  cosine = products(pairs.queries, pairs.queries, pairs.query[left], pairs.query[right])
  many = np.bincount(left, minlength=len(pairs))
  place = np.arange(len(left)) - (np.cumsum(many) - many)[left]
  row = np.full((len(pairs), int(many.max(initial=0))), -np.inf, np.float32)
  row[left, place] = cosine
  order = np.argsort(-row, axis=1, kind='stable')  # of equal ones the nearer candidate first
  rank = np.empty(row.shape, np.int32)
  np.put_along_axis(rank, order, np.arange(row.shape[1], dtype=np.int32)[None], axis=1)
  return rank[left, place] < share * many[left]
