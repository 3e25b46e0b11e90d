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
from align_jax.mining.products import Turns, in_parts, products

_LEAST = 1e-5  # of products near 1, float32 says no more
_ROWS = 256  # pairs whose ranked others are put in order together


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
  pairs: Pairs,
  left: Int[np.ndarray, 'e'],
  right: Int[np.ndarray, 'e'],
  share: float,
  turns: Turns | None = None,
) -> Bool[np.ndarray, 'e']:
  """Says of each pair `right` whether its query is, of all that `left` has, among the most alike.

  Args:
    pairs: what is mined.
    left, right: who ranks and who is ranked, `left` in ascending order.
    share: so large a part of those that a pair ranks.
    turns: see `products`.
  """
  cosine = products(pairs.queries, pairs.queries, pairs.query[left], pairs.query[right], turns)
  ends = np.searchsorted(left, np.arange(len(pairs) + 1))
  out = np.empty(len(left), bool)

  def some(part: slice) -> None:
    stop = ends[part.start : part.stop + 1]
    many, own = np.diff(stop), slice(stop[0], stop[-1])
    there = np.arange(many.max(initial=0)) < many[:, None]
    row = np.full(there.shape, np.inf, np.float32)
    row[there] = -cosine[own]
    out[own] = _first(row, np.ceil(share * many).astype(np.int64))[there]

  in_parts(len(pairs), some, _ROWS)
  return out


def _first(
  row: Float[np.ndarray, 'n many'], count: Int[np.ndarray, 'n']
) -> Bool[np.ndarray, 'n many']:
  """Which are the `count` smallest of each row, of equal ones those further left."""
  if not row.shape[1]:
    return np.zeros(row.shape, bool)
  last = np.take_along_axis(np.sort(row, axis=1), np.maximum(count - 1, 0)[:, None], axis=1)
  below, equal = row < last, row == last
  room = count - below.sum(axis=1)
  return below | (equal & (np.cumsum(equal, axis=1) <= room[:, None]))
