"""Inner products of chosen rows: of the edges of a graph, of pairs with clusters.

On the host, where all embeddings are: each product is of two rows that have to be fetched first,
which is what takes the time. A thread for each core fetches, and where many products are wanted,
those of rows that are near each other (`near_order`) come one after another: half of what they
fetch is then in a cache.
"""

import dataclasses
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float, Int

_ROWS = 512  # fetched together: they stay in the cache
_PART = 16 * _ROWS  # of a thread
_GROUPS = 64  # of a thread's step
_PIVOTS = 256  # rows about which the others are gathered
_EACH = 256  # at least so many about each
_BLOCK = 8192  # rows that are compared with the pivots together


@dataclasses.dataclass(frozen=True)
class Turns:
  """In what order products are taken; it changes none of them.

  Attributes:
    group: of each product, in ascending order.
    order: of the groups: which comes first.
  """

  group: Int[np.ndarray, 'e']
  order: Int[np.ndarray, 'groups']


def near_order(x: Float[np.ndarray, 'n dim']) -> Int[np.ndarray, 'n']:
  """An order of rows in which neighbours are near each other: of each, by its nearest pivot."""
  pivots = x[:: max(1, -(-len(x) // min(_PIVOTS, max(1, len(x) // _EACH))))].T
  starts = range(0, len(x), _BLOCK)
  nearest = [(x[start : start + _BLOCK] @ pivots).argmax(axis=1) for start in starts]
  return np.argsort(np.concatenate(nearest), kind='stable')


def products(
  left: Float[np.ndarray, 'n dim'],
  right: Float[np.ndarray, 'm dim'],
  at: Int[np.ndarray, 'e'],
  to: Int[np.ndarray, 'e'],
  turns: Turns | None = None,
) -> Float[np.ndarray, 'e']:
  """Returns `left[at] · right[to]`."""
  out = np.empty(len(at), np.float32)

  def some(part: slice) -> None:
    out[part] = np.vecdot(left[at[part]], right[to[part]])

  if turns is None:
    in_parts(len(at), some)
    return out
  ends = np.searchsorted(turns.group, np.arange(len(turns.order) + 1))

  def groups(part: slice) -> None:
    which = turns.order[part]
    many = ends[which + 1] - ends[which]
    entry = np.repeat(ends[which + 1] - np.cumsum(many), many) + np.arange(many.sum())
    for start in range(0, len(entry), _ROWS):
      one = entry[start : start + _ROWS]
      out[one] = np.vecdot(left[at[one]], right[to[one]])

  in_parts(len(turns.order), groups, _GROUPS)
  return out


def in_parts(count: int, some: Callable[[slice], None], rows: int = _ROWS) -> None:
  """Calls `some` with slices of at most `rows`, until all of `count` are done, on all cores."""

  def many(start: int) -> None:
    stop = min(start + _PART, count)
    for first in range(start, stop, rows):
      some(slice(first, min(first + rows, stop)))

  starts = range(0, count, _PART)
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
  if len(starts) < 2 or cores < 2:
    for start in starts:
      many(start)
    return
  with ThreadPoolExecutor(min(cores, len(starts))) as pool:
    list(pool.map(many, starts))
