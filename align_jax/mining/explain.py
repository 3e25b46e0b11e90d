"""Why a cluster is as it is: what became of each of the nearest candidates of its first pair.

Nothing is remembered while clusters are made. What a strategy decided is worked out again for a few
clusters from what it found, by the very functions that decided.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from align_jax.errors import require
from align_jax.mining import ranked
from align_jax.mining.graph import mutual, ranked_pairs
from align_jax.mining.saha import gather
from align_jax.mining.saha_mutual import hidden_matches
from align_jax.mining.strategy import Found, Mined, rules_of

# Why a near candidate is no negative, or is one, in words.
REASONS = {
  'kept': 'negative',
  'filled': 'negative by lot',
  'far': 'negative, not among the nearest',
  'own': 'a positive of the query',
  'known_match': 'a known match of the pair',
  'margin': 'within the margin of the positive',
  'percentage': 'above the percentage of the positive',
  'label': 'of the same label',
  'skipped': 'among the first ranks',
  'same_owner': 'its owner is there already',
  'used': 'its owners are in clusters already',
  'similar_query': "its owner's query is too similar",
  'hidden': 'hidden match',
  'one_way': 'does not rank this pair itself',
  'elsewhere': 'in another cluster',
  'removed': 'twice, or a known match of another member',
  'further': 'after the last one taken',
}
MEMBERS = ('kept', 'filled', 'far')  # those that say why somebody is in the cluster


@dataclasses.dataclass(frozen=True)
class Seen:
  """A candidate, and what became of it.

  Attributes:
    pair: number of a pair of it: the one that is in the cluster, or would have been.
    product: with the query.
    reason: one of `REASONS`.
  """

  pair: int
  product: float
  reason: str


@dataclasses.dataclass(frozen=True)
class Explained:
  """A cluster as its first pair sees it.

  Attributes:
    cluster: its place in `Mined.clusters`.
    pair: number of its first pair.
    members: of the others, in order, why they are there.
    left_out: near candidates that are not in the cluster, nearest first.
  """

  cluster: int
  pair: int
  members: tuple[Seen, ...]
  left_out: tuple[Seen, ...]


def explain(
  mined: Mined, found: Sequence[Found], clusters: Int[np.ndarray, 'some']
) -> list[Explained]:
  """Says of some clusters what became of the nearest candidates of their first pairs.

  Args:
    mined: what `mine` returned.
    found: what it gave to its `found`.
    clusters: places in `mined.clusters`.
  """
  first = mined.clusters[clusters, 0]
  out: dict[int, Explained] = {}
  for one in found:
    # the first pair of a cluster is never taken out
    head = np.full(int(one.numbers.max(initial=-1)) + 2, -1)
    head[one.numbers[one.clusters[:, 0]]] = np.arange(len(one.clusters))
    row = head[np.minimum(first, len(head) - 1)]
    here = np.flatnonzero(row >= 0)
    if not len(here):
      continue
    looked = judge(one, row[here])
    for place, seen in zip(here.tolist(), looked, strict=True):
      number = int(clusters[place])
      out[place] = _explained(one, number, mined.clusters[number], one.clusters[row[place]], seen)
  require(len(out) == len(clusters), 'explain', 'what was found is of another mining')
  return [out[place] for place in range(len(clusters))]


def judge(found: Found, rows: Int[np.ndarray, 'some']) -> list[list[Seen]]:
  """Says of clusters what became of each near candidate, nearest first, before places were filled.

  Args:
    found: of a task.
    rows: places in `found.clusters`.

  Returns: numbers of pairs are those of `found.pairs`. Strategies that cut a graph rank pairs, so
    that a candidate of several owners is there several times.
  """
  if found.pool is None:
    return [[] for _ in rows]
  strategies: dict[str, Callable[[Found, np.ndarray], list[list[Seen]]]] = {
    'saha': _saha,
    'saha_mutual': functools.partial(_cut, _hidden),
    'b3': functools.partial(_cut, _one_way),
  }
  return strategies.get(found.strategy, _ranked)(found, rows)


def _explained(
  found: Found,
  number: int,
  cluster: Int[np.ndarray, 'size'],
  before: Int[np.ndarray, 'size'],
  seen: Sequence[Seen],
) -> Explained:
  """Puts together what was found and what `mine` made of it.

  Args:
    found: of the task.
    number: of the cluster.
    cluster: numbers of pairs as given to `mine`.
    before: of pairs of `found`, -1 where a place is empty.
    seen: see `judge`.
  """
  made = {int(found.numbers[i]) for i in before if i >= 0}
  seen = [dataclasses.replace(s, pair=int(found.numbers[s.pair])) for s in seen]
  near = {s.pair: s for s in reversed(seen) if s.reason == 'kept'}
  members = []
  for other in cluster[1:].tolist():
    reason = 'far' if other in made and found.pool is not None else 'filled'
    product = _product(found, int(cluster[0]), other)
    members.append(near.get(other) or Seen(other, product, reason))
  inside = {*cluster.tolist()}
  left = []
  for one in seen:
    if one.reason == 'kept' and one.pair not in inside:
      left.append(dataclasses.replace(one, reason='removed'))
    elif one.reason != 'kept':
      left.append(one)
  return Explained(number, int(cluster[0]), tuple(members), tuple(left))


def _product(found: Found, pair: int, other: int) -> float:
  """Of a pair's query with another one's candidate; nan where that is of another task."""
  one, two = (np.flatnonzero(found.numbers == number) for number in (pair, other))
  if not len(one) or not len(two):
    return float('nan')
  pairs = found.pairs
  candidate = pairs.candidates[pairs.candidate[two[0]]]
  return float(pairs.queries[pairs.query[one[0]]] @ candidate)


def _ranked(found: Found, rows: Int[np.ndarray, 'some']) -> list[list[Seen]]:
  assert found.pool is not None and found.values is not None
  pairs, config = found.pairs, found.settings
  rules = rules_of(found.strategy, config)
  verdict, owner = ranked.judge(
    pairs, found.values, found.pool, found.k, rules, found.labels, found.clusters[rows, 0]
  )
  names = (*ranked.REASONS, 'kept', 'further')
  return [
    _seen(found, int(found.clusters[row, 0]), owner[i], [names[v] for v in verdict[i]])
    for i, row in enumerate(rows.tolist())
  ]


def _saha(found: Found, rows: Int[np.ndarray, 'some']) -> list[list[Seen]]:
  assert found.pool is not None
  pairs, k, mult = found.pairs, found.k, found.settings.mult
  ends, owners = (jnp.asarray(x) for x in pairs.owners)
  queries = jnp.asarray(pairs.queries.astype(np.float32))
  again = len(found.clusters) - found.counts['second_phase']
  kept_least = min(k, found.pool.shape[1])
  look = jax.jit(gather, static_argnums=8)
  out = []
  for row in rows.tolist():
    pair = int(found.clusters[row, 0])
    query, near = int(pairs.query[pair]), found.pool[pairs.query[pair]]
    own = near == pairs.candidate[pair]
    second = row >= again
    taken = _taken(found, again if second else 0, row, heads=not second)
    cap = k * mult * (2 if second else 1)
    owner, there, chosen = (
      np.asarray(x)
      for x in look(
        queries,
        np.int32(query),
        np.where(own, -1, near),
        ends,
        owners,
        taken,
        np.int32(cap),
        np.bool_(found.classes),
        kept_least,
      )
    )
    kept = np.zeros(len(near), bool)
    kept[chosen] = there[chosen]
    last = np.flatnonzero(there)[-1] if there.sum() == cap else len(near)
    reasons = []
    for place in range(len(near)):
      if own[place]:
        reasons.append('own')
      elif kept[place]:
        reasons.append('kept')
      elif there[place]:
        reasons.append('further' if found.classes else 'similar_query')
      else:
        reasons.append('used' if place < last else 'further')
    # as published, an owner comes with its last pair, whichever of its candidates is near
    member = np.where(kept, pairs.last[owner], pairs.number(owner, near))
    out.append(_seen(found, pair, member, reasons))
  return out


def _taken(found: Found, start: int, stop: int, *, heads: bool) -> Bool[np.ndarray, 'q']:
  """Queries that clusters `start` to `stop` have made use of: their owners, and their own."""
  rows = found.clusters[start:stop, 0 if heads else 1 :]
  out = np.zeros(len(found.pairs.queries), bool)
  out[found.pairs.query[rows[rows >= 0]]] = True
  return out


def _cut(
  reason: Callable[[Found], Callable[[int, int], str]],
  found: Found,
  rows: Int[np.ndarray, 'some'],
) -> list[list[Seen]]:
  """For strategies that cut a graph of pairs.

  Args:
    reason: makes of `found` what says why two pairs that are near are not in one cluster, '' if
      nothing kept them apart.
  """
  assert found.pool is not None and found.values is not None
  pairs = found.pairs
  why = reason(found)
  left, right, _ = ranked_pairs(pairs, found.values, found.pool, 0, found.pool.shape[1])
  ends = np.searchsorted(left, np.arange(len(pairs) + 1))
  out = []
  for row in rows.tolist():
    pair = int(found.clusters[row, 0])
    query = int(pairs.query[pair])
    near, own = found.pool[query], _own(found, query)
    inside = {*found.clusters[row].tolist()}
    mine = slice(ends[pair], ends[pair + 1])
    others: dict[int, list[int]] = {}
    for other in right[mine].tolist():
      others.setdefault(int(pairs.candidate[other]), []).append(other)
    seen = []
    for place in np.flatnonzero(near >= 0).tolist():
      candidate, value = int(near[place]), float(found.values[query, place])
      if own[place] >= 0:
        seen.append(Seen(int(own[place]), value, 'own'))
      elif candidate not in others:
        seen.append(Seen(*_unranked(found, pair, candidate, value)))
      for other in others.get(candidate, []):
        word = 'kept' if other in inside else why(pair, other) or 'elsewhere'
        seen.append(Seen(other, value, word))
    out.append(seen)
  return out


def _unranked(found: Found, pair: int, candidate: int, value: float) -> tuple[int, float, str]:
  """A candidate none of whose pairs is ranked: all are known matches, or enough were nearer."""
  theirs = np.flatnonzero(found.pairs.candidate == candidate)
  known = found.pairs.match(theirs, np.full(len(theirs), pair)).all()
  return int(theirs[0]), value, 'known_match' if known else 'further'


def _hidden(found: Found) -> Callable[[int, int], str]:
  """`saha_mutual`: hidden matches are kept apart, whoever of the two ranks the other."""
  assert found.pool is not None and found.values is not None
  left, right, _, _, hidden = hidden_matches(
    found.pairs, found.values, found.pool, found.settings.mutual
  )
  n = len(found.pairs)
  apart = np.unique(left[hidden].astype(np.int64) * n + right[hidden])

  def why(pair: int, other: int) -> str:
    return 'hidden' if _has(apart, pair * n + other) or _has(apart, other * n + pair) else ''

  return why


def _one_way(found: Found) -> Callable[[int, int], str]:
  """`b3`: edges are of ranks after the first ones, and go both ways."""
  assert found.pool is not None and found.values is not None
  pairs, config = found.pairs, found.settings
  n = len(pairs)
  left, right, product = ranked_pairs(pairs, found.values, found.pool, 0, config.skip + config.keep)
  place = np.arange(len(left)) - np.searchsorted(left, left)
  first, later = place < config.skip, place >= config.skip
  edges = mutual(n, left[later], right[later], product[later])
  both = np.sort(edges.left.astype(np.int64) * n + edges.right)
  key = left.astype(np.int64) * n + right
  skipped, ranked_ = np.sort(key[first]), np.sort(key[later])

  def why(pair: int, other: int) -> str:
    if _has(skipped, pair * n + other):
      return 'skipped'
    if not _has(ranked_, pair * n + other):
      return 'further'
    return '' if _has(both, min(pair, other) * n + max(pair, other)) else 'one_way'

  return why


def _has(keys: Int[np.ndarray, 'sorted'], key: int) -> bool:
  place = int(np.searchsorted(keys, key))
  return place < len(keys) and int(keys[place]) == key


def _seen(
  found: Found, pair: int, member: Int[np.ndarray, 'depth'], reasons: Sequence[str]
) -> list[Seen]:
  """Of the nearest candidates of a pair; where none is named, any pair of the candidate serves."""
  assert found.pool is not None and found.values is not None
  query = int(found.pairs.query[pair])
  near, own = found.pool[query], _own(found, query)
  out = []
  for place in np.flatnonzero(near >= 0).tolist():
    number = next((int(n) for n in (member[place], own[place]) if n >= 0), -1)
    number = _any_pair(found, int(near[place])) if number < 0 else number
    out.append(Seen(number, float(found.values[query, place]), reasons[place]))
  return out


def _own(found: Found, query: int) -> Int[np.ndarray, 'depth']:
  """The pairs of a query with its near candidates, -1 where there is none."""
  assert found.pool is not None
  near = found.pool[query]
  return found.pairs.number(np.full(len(near), query), near)


def _any_pair(found: Found, candidate: int) -> int:
  return int(np.flatnonzero(found.pairs.candidate == candidate)[0])
