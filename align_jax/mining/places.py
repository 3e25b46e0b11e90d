"""Clusters of equal size: the smallest are dealt out to the rest, then pairs swap places.

How hard a pair is for a cluster is a product with the sum of its members: with `u = [q, c]` and
`turn(u) = [c, q] / 2`, `u · turn(u')` is the mean of the two products of two pairs. So real
products are looked at, not those of edges alone.
"""

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse

from align_jax.mining.apart import Apart
from align_jax.mining.nearest import nearest
from align_jax.mining.pairs import Pairs
from align_jax.mining.products import Turns, in_parts, products

_OPTIONS = 32  # clusters that a pair may be dealt to
_LEAST = 1e-4  # that a swap gains: float32 sums of products say no less
_ROWS = 16  # pairs of a block, whose partners are all looked at


def both_sides(pairs: Pairs) -> Float[np.ndarray, 'n both']:
  """Returns `[q, c]` of each pair."""
  sides = pairs.queries[pairs.query], pairs.candidates[pairs.candidate]
  return np.concatenate(sides, axis=1, dtype=np.float32)


def turn(u: Float[np.ndarray, 'n both']) -> Float[np.ndarray, 'n both']:
  """Returns `[c, q] / 2` of `[q, c]`."""
  half = u.shape[1] // 2
  return np.concatenate([u[:, half:], u[:, :half]], axis=1) / 2


def deal(
  label: Int[np.ndarray, 'n'], u: Float[np.ndarray, 'n both'], apart: Apart, size: int
) -> Int[np.ndarray, 'n']:
  """Keeps the largest clusters and deals the others' pairs out to them, the hardest fit first.

  Args:
    label: the cluster of each pair, at most `size` in each.
    u: see `both_sides`.
    apart: who may not share a cluster, if there is another place.
    size: of a cluster.

  Returns: the cluster of each pair, 0 to `ceil(n / size) - 1`, at most `size` in each.
  """
  many = -(-len(label) // size)
  names, place, sizes = np.unique(label, return_inverse=True, return_counts=True)
  rank = np.empty(len(names), np.int64)
  rank[np.lexsort((names, -sizes))] = np.arange(len(names))
  cluster = rank[place]
  cluster[cluster >= many] = -1
  strict = True  # until nobody finds a place so
  while len(spare := np.flatnonzero(cluster < 0)):
    room = size - np.bincount(cluster[cluster >= 0], minlength=many)
    open_ = np.flatnonzero(room)
    middle = turn(sums(cluster, u, many)[open_]) / (size - room[open_, None]).astype(np.float32)
    value, option = nearest(u[spare], middle, min(_OPTIONS, len(open_)))
    option = open_[option]
    who = np.repeat(spare, option.shape[1])
    cost = apart.clusters(cluster, many).cost(who, option.reshape(-1)).reshape(option.shape)
    value = np.where((cost < 0) & strict, -np.inf, value + np.maximum(cost, -4))  # products: ±1
    placed = _choose(value, option, room)
    strict = bool((placed >= 0).any())
    cluster[spare] = placed
  return cluster


def dealt(label: Int[np.ndarray, 'n'], size: int) -> int:
  """Returns how many pairs `deal` takes out of their clusters."""
  sizes = np.sort(np.unique(label, return_counts=True)[1])[::-1]
  return int(sizes[-(-len(label) // size) :].sum())


def _choose(
  value: Float[np.ndarray, 's options'],
  option: Int[np.ndarray, 's options'],
  room: Int[np.ndarray, 'clusters'],
) -> Int[np.ndarray, 's']:
  """Gives everyone the best option that has room; a cluster takes those with the largest values.

  Returns: the options chosen, -1 for those left without.
  """
  room, value = room.copy(), value.copy()
  out = np.full(len(value), -1)
  left = np.arange(len(value))
  while len(left):
    value[left] = np.where(room[option[left]] > 0, value[left], -np.inf)
    best = value[left].argmax(axis=1)
    most, wanted = value[left, best], option[left, best]
    some = np.isfinite(most)
    left, most, wanted = left[some], most[some], wanted[some]
    order = np.lexsort((left, -most, wanted))
    place = np.arange(len(left)) - np.searchsorted(wanted[order], wanted[order])
    taken = order[place < room[wanted[order]]]
    out[left[taken]] = wanted[taken]
    room -= np.bincount(wanted[taken], minlength=len(room))
    left = np.delete(left, taken)
  return out


def swap(
  cluster: Int[np.ndarray, 'n'],
  graph: sparse.csr_array,
  u: Float[np.ndarray, 'n both'],
  apart: Apart,
  size: int,
  rounds: int,
  order: Int[np.ndarray, 'n'] | None = None,
) -> tuple[Int[np.ndarray, 'n'], int]:
  """Lets pairs swap places as long as clusters become harder by it.

  In each round every pair looks at the clusters of those it has an edge with, for the one that is
  hardest, and for the member there with whom to swap. Of the swaps that gain, those are done that
  are the best of both their clusters; so every round gains. Where neither cluster has changed since
  the last round, nothing is looked at again.

  Args:
    cluster: of each pair, see `deal`.
    graph: edges lead to clusters that are looked at.
    u: see `both_sides`.
    apart: who may not share a cluster: it costs more than any swap gains.
    size: of a cluster; with places that are empty pairs may swap as well.
    rounds: at most.
    order: of pairs, in which products are taken, see `products.near_order`.

  Returns: the cluster of each pair, and how many swaps were done.
  """
  n, many = len(cluster), int(cluster.max(initial=-1)) + 1
  empty = np.repeat(np.arange(many), size - np.bincount(cluster, minlength=many))
  cluster = np.concatenate([cluster, empty])
  u = np.concatenate([u, np.zeros((len(empty), u.shape[1]), np.float32)])
  apart = apart.with_blanks(len(empty))
  near = sparse.csr_array((np.ones(graph.nnz, np.int8), graph.indices, graph.indptr), graph.shape)
  everyone = np.arange(len(u))
  half = u.shape[1] // 2
  own = np.vecdot(u[:, :half], u[:, half:])
  changed = np.ones(many, bool)
  done = 0
  for _ in range(rounds):
    total = turn(sums(cluster, u, many))
    against = apart.clusters(cluster, many)
    hold = products(u, total, everyone, cluster) - own + against.cost(everyone, cluster)
    who, where = _reach(near, cluster, changed)
    turns = None if order is None else Turns(who, order)
    gain = products(u, total, who, where, turns) + against.cost(who, where) - hold[who]
    first = _first_of_most(who, gain)
    first = first[gain[first] > 0]
    who, where, gain = who[first], where[first], gain[first]
    # with whom: what it gains, and what the two would have counted twice
    members = np.argsort(cluster, kind='stable').reshape(many, size)
    one, other = np.repeat(who, size), members[where].reshape(-1)
    value = np.repeat(gain, size) - hold[other] - 2.0 * apart.cost(one, other)
    value += against.cost(other, cluster[one])
    value += _exchanges(u, total, cluster, who, members[where]).reshape(-1)
    first = _first_of_most(np.repeat(np.arange(len(who)), size), value)
    first = first[value[first] > _LEAST]
    one, other, value = one[first], other[first], value[first]
    if not len(one):
      break
    rank = np.empty(len(one), np.int64)
    rank[np.lexsort((other, one, -value))] = np.arange(len(one))
    best = np.full(many, len(one))
    np.minimum.at(best, cluster[one], rank)
    np.minimum.at(best, cluster[other], rank)
    now = (best[cluster[one]] == rank) & (best[cluster[other]] == rank)
    one, other = one[now], other[now]
    cluster[one], cluster[other] = cluster[other], cluster[one]
    changed = np.zeros(many, bool)
    changed[cluster[one]] = changed[cluster[other]] = True
    done += len(one)
  return cluster[:n], done


def _reach(
  near: sparse.csr_array, cluster: Int[np.ndarray, 'n'], changed: Bool[np.ndarray, 'clusters']
) -> tuple[Int[np.ndarray, 'e'], Int[np.ndarray, 'e']]:
  """Who might go to which cluster, in ascending order: where they have an edge to."""
  n = near.shape[0]
  ones = np.ones(n, np.int32)
  members = sparse.csr_array((ones, cluster[:n], np.arange(n + 1)), shape=(n, len(changed)))
  reach = sparse.csr_array(near @ members)
  reach.sort_indices()
  who = np.repeat(np.arange(n), np.diff(reach.indptr))
  where = reach.indices.astype(np.int64)
  some = (cluster[who] != where) & (changed[where] | changed[cluster[who]])
  return who[some], where[some]


def _exchanges(
  u: Float[np.ndarray, 'n both'],
  total: Float[np.ndarray, 'clusters both'],
  cluster: Int[np.ndarray, 'n'],
  who: Int[np.ndarray, 'e'],
  members: Int[np.ndarray, 'e size'],
) -> Float[np.ndarray, 'e size']:
  """How hard those who might come instead of a pair are for its cluster, less twice for itself."""
  out = np.empty(members.shape, np.float32)

  # those that look at one cluster one after another: its members are fetched once
  order = np.argsort(members[:, 0], kind='stable')

  def some(part: slice) -> None:
    own = order[part]
    left = total[cluster[who[own]]] - 2 * turn(u[who[own]])
    out[own] = np.vecdot(u[members[own]], left[:, None])

  in_parts(len(members), some, _ROWS)
  return out


def _first_of_most(
  group: Int[np.ndarray, 'e'], value: Float[np.ndarray, 'e']
) -> Int[np.ndarray, 'groups']:
  """Returns where each group's largest value is, the first of equal ones; `group` ascends."""
  if not len(group):
    return np.zeros(0, np.int64)
  starts = np.flatnonzero(np.concatenate([[True], group[1:] != group[:-1]]))
  sizes = np.diff(np.append(starts, len(group)))
  largest = np.flatnonzero(value == np.repeat(np.maximum.reduceat(value, starts), sizes))
  return largest[np.searchsorted(largest, starts)]


def sums(
  cluster: Int[np.ndarray, 'n'], u: Float[np.ndarray, 'n both'], many: int
) -> Float[np.ndarray, 'clusters both']:
  """Returns the sum of each cluster's members."""
  inside = np.flatnonzero(cluster >= 0)
  ones = np.ones(len(inside), np.float32)
  members = sparse.csr_array((ones, (cluster[inside], inside)), shape=(many, len(u)))
  return np.asarray(members @ u)


def rows_of(cluster: Int[np.ndarray, 'n'], size: int) -> Int[np.ndarray, 'clusters size']:
  """Returns who is in each cluster, in ascending order, -1 in places that are empty."""
  out = np.full((int(cluster.max(initial=-1)) + 1, size), -1, np.int32)
  order = np.argsort(cluster, kind='stable')
  held = cluster[order]
  out[held, np.arange(len(held)) - np.searchsorted(held, held)] = order
  return out
