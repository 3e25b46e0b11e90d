"""Inner products of chosen rows: of the edges of a graph, of pairs with clusters.

On the host, where all embeddings are: each product is of two rows that have to be fetched first,
which is what takes the time, and a thread for each core fetches.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float, Int

_ROWS = 512  # fetched together: they stay in the cache
_PART = 16 * _ROWS  # of a thread


def products(
  left: Float[np.ndarray, 'n dim'],
  right: Float[np.ndarray, 'm dim'],
  at: Int[np.ndarray, 'e'],
  to: Int[np.ndarray, 'e'],
) -> Float[np.ndarray, 'e']:
  """Returns `left[at] · right[to]`."""
  out = np.empty(len(at), np.float32)

  def some(part: slice) -> None:
    out[part] = np.vecdot(left[at[part]], right[to[part]])

  in_parts(len(at), some)
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
