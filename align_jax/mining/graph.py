"""Which pairs are hard for each other, as a graph, and its cut into clusters of equal size."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from align_jax.errors import UserError
from align_jax.mining.pairs import Pairs


@dataclasses.dataclass(frozen=True)
class Edges:
  """Edges between pairs, each once: `left < right`.

  Attributes:
    left, right: numbers of pairs.
    weight: how hard each is for the other.
  """

  left: Int[np.ndarray, 'e']
  right: Int[np.ndarray, 'e']
  weight: Float[np.ndarray, 'e']


def ranked_pairs(
  pairs: Pairs,
  values: Float[np.ndarray, 'q depth'],
  pool: Int[np.ndarray, 'q depth'],
  skip: int,
  keep: int,
) -> tuple[Int[np.ndarray, 'e'], Int[np.ndarray, 'e'], Float[np.ndarray, 'e']]:
  """Ranks the other pairs by their candidate's product with a pair's query.

  Pairs whose match is known, of the one's query with the other's candidate or the other way round,
  are no others. Of pairs with an equal candidate the earlier comes first.

  Args:
    pairs, values, pool: see `nearest`.
    skip: so many of the first ranks are left out.
    keep: so many of those after them are taken.

  Returns: who ranks, who is ranked, and the product.
  """
  # the pairs of candidate c are by_candidate[ends[c]:ends[c + 1]]
  by_candidate = np.argsort(pairs.candidate, kind='stable').astype(np.int32)
  ends = np.searchsorted(pairs.candidate[by_candidate], np.arange(len(pairs.candidates) + 1))
  # pairs whose query owns a candidate, for each candidate: so many may be no others
  pairs_of = np.bincount(pairs.query, minlength=len(pairs.queries))
  spare = np.bincount(pairs.candidate, pairs_of[pairs.query], len(pairs.candidates)).astype(int)
  out: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
  for start in range(0, len(pairs), 4096):
    who = np.arange(start, min(start + 4096, len(pairs)))
    near = pool[pairs.query[who]]
    many = np.where(near >= 0, ends[near + 1] - ends[near], 0)
    own = pairs.number(np.broadcast_to(pairs.query[who][:, None], near.shape), near) >= 0
    many[own] = 0
    # no more than are wanted, and of those that the query's own candidates may take away again: a
    # candidate may have thousands of owners
    before = np.cumsum(many, axis=1) - many
    many = np.clip(skip + keep + spare[pairs.candidate[who]][:, None] - before, 0, many)
    flat = many.reshape(-1)
    row = np.repeat(np.repeat(who, near.shape[1]), flat)
    step = np.arange(flat.sum()) - np.repeat(np.cumsum(flat) - flat, flat)
    other = by_candidate[np.repeat(ends[near].reshape(-1), flat) + step]
    score = np.repeat(values[pairs.query[who]].reshape(-1), flat)
    known = pairs.match(other, row)
    row, other, score = row[~known], other[~known], score[~known]
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    kept = (rank >= skip) & (rank < skip + keep)
    out.append((row[kept].astype(np.int32), other[kept], score[kept]))
  left, right, weight = (np.concatenate(part) for part in zip(*out, strict=True))
  return left, right, weight


def mutual(
  count: int,
  left: Int[np.ndarray, 'e'],
  right: Int[np.ndarray, 'e'],
  weight: Float[np.ndarray, 'e'],
) -> Edges:
  """Keeps the edges that go both ways; an edge weighs the mean of the two."""
  low, high = np.minimum(left, right).astype(np.int64), np.maximum(left, right)
  key = low * count + high
  order = np.argsort(key, kind='stable')
  key, weight = key[order], weight[order]
  first = np.flatnonzero(key[1:] == key[:-1]) if len(key) else np.zeros(0, np.int64)
  both = (weight[first].astype(np.float64) + weight[first + 1]) / 2
  return Edges(
    (key[first] // count).astype(np.int32),
    (key[first] % count).astype(np.int32),
    both.astype(np.float32),
  )


def need_metis() -> Any:
  """Returns pymetis; raises UserError where it is not installed."""
  try:
    import pymetis  # an extra
  except ImportError as error:
    raise UserError(
      f'strategy b3 needs pymetis: pip install "align_jax[mining]" ({error})'
    ) from error
  return pymetis


def metis_parts(count: int, edges: Edges, size: int) -> Int[np.ndarray, 'count']:
  """Cuts a graph into parts of about `size` nodes with few edges between them, by METIS.

  Args:
    count: nodes.
    edges: their weights are not looked at (as in B3).
    size: of a part.

  Returns: the part of each node.

  Raises:
    UserError: pymetis is not installed.

  Source: Karypis and Kumar 1998, doi 10.1137/S1064827595287997.
  """
  pymetis = need_metis()
  parts = -(-count // size)
  if parts < 2:
    return np.zeros(count, np.int32)
  ends = np.concatenate([edges.left, edges.right])
  other = np.concatenate([edges.right, edges.left])
  order = np.lexsort((other, ends))
  starts = np.searchsorted(ends[order], np.arange(count + 1))
  kind = pymetis.zero_copy_dtype()
  graph = pymetis.CSRAdjacency(starts.astype(kind), other[order].astype(kind))
  # the k-way method leaves parts empty where they are small; the seed makes it the same every time
  options = pymetis.Options(seed=0, ufactor=1)
  found = pymetis.part_graph(parts, adjacency=graph, recursive=True, options=options)
  return np.asarray(found.vertex_part, np.int32)


def even_out(
  part: Int[np.ndarray, 'count'], edges: Edges, size: int
) -> tuple[Int[np.ndarray, 'clusters size'], int]:
  """Makes parts of `size` nodes each, of parts that are about that large.

  Too large ones give up the nodes that hang least on the others; those fill the smaller ones up,
  and what is left makes parts of its own.

  Returns: nodes, in ascending order, -1 in the last part, where the count is no multiple of `size`;
    and how many were moved.
  """
  count = len(part)
  inside = part[edges.left] == part[edges.right]
  hold = np.bincount(edges.left[inside], minlength=count)
  hold += np.bincount(edges.right[inside], minlength=count)
  order = np.lexsort((np.arange(count), -hold, part))  # of a part, those that hang on most first
  rank = np.arange(count) - np.searchsorted(part[order], part[order])
  spare = np.sort(order[rank >= size])
  kept = order[rank < size]
  sizes = np.bincount(part[kept], minlength=int(part.max(initial=0)) + 1)
  full = np.flatnonzero(sizes > 0)
  # fullest first: what is left over comes from the fewest parts
  full = full[np.lexsort((full, -sizes[full]))]
  groups = dict(zip(full.tolist(), range(len(full)), strict=True))
  rows: list[list[int]] = [[] for _ in full]
  for node in kept.tolist():
    rows[groups[int(part[node])]].append(node)
  pool = spare.tolist()
  wanted = -(-count // size)
  for row in rows[wanted:]:  # more parts than there is room for: the smallest are dealt out
    pool.extend(row)
  rows = rows[:wanted] + [[] for _ in range(wanted - len(rows))]
  pool.sort(reverse=True)
  moved = len(pool)
  for row in rows:
    while len(row) < size and pool:
      row.append(pool.pop())
  out = np.full((wanted, size), -1, np.int32)
  for number, row in enumerate(rows):
    out[number, : len(row)] = sorted(row)
  return out, moved
