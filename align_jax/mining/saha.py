"""SaHa: clusters of queries that are hard for each other and yet no hidden matches, as published.

Greedy and in the order of the pairs, so the loop runs query by query; it is compiled, and all its
arrays stay on the device.

Source: Ju et al. 2025, arXiv 2508.00955, section 3.3, and its published code.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from align_jax.mining.pairs import Pairs

_CHUNK = 96  # owners that are looked at together: the paper's pool, of an owner each


def saha(
  pairs: Pairs, pool: Int[np.ndarray, 'q depth'], k: int, mult: int, *, labelled: bool = False
) -> tuple[Int[np.ndarray, 'clusters size'], dict[str, int]]:
  """Builds the clusters.

  Phase 1 takes the pairs in order, whose query is not used yet. It walks the query's nearest
  candidates, without the pair's own, takes of each the owner most similar to the query among those
  not used, until it has `k * mult` owners, and keeps the k owners *least* similar to the query:
  their candidates are near, they themselves are not, so those are no hidden matches. The query and
  its owners are used from then on. Phase 2 does the same for the queries that are left, lets each
  query be an owner once more, and takes twice as many owners before it chooses.

  Args:
    pairs: what is mined.
    pool: the nearest candidates of each query, nearest first, -1 where there are no more; the
      paper takes `2 * k * mult`.
    k: hard negatives of a cluster.
    mult: how many times k owners are gathered.
    labelled: keep the first k owners found: for labelled classes, where another class is no match.

  Returns: numbers of pairs, the query's own first, -1 where a cluster has fewer than k + 1 (as
    published, a pair may be in a cluster twice); and counts: owners gathered, those of them left
    out for being the more similar ones, clusters of phase 2, queries that are in no cluster.
  """
  ends, owners = pairs.owners
  held = [jnp.asarray(x) for x in (pairs.queries.astype(np.float32), pool, ends, owners)]
  rows = jnp.asarray(pairs.query), jnp.asarray(pairs.candidate)
  used = jnp.zeros(len(pairs.queries), bool)
  found, gathered = [], 0
  for caps in (k * mult, 2 * k * mult):
    again = bool(np.asarray(used).any())  # phase 2: those used before may be owners
    taken = jnp.zeros_like(used) if again else used
    made, kept, many, used = _phase(
      *held, *rows, used, taken, np.int32(caps), np.bool_(labelled), np.bool_(again), k
    )
    where = np.flatnonzero(made)
    negatives = np.asarray(kept)[where]
    members = np.where(negatives >= 0, pairs.last[negatives], -1)
    found.append(np.concatenate([where[:, None].astype(np.int32), members], axis=1))
    gathered += int(np.asarray(many, np.int64).sum())
  clusters = np.concatenate(found)
  return clusters, {
    'gathered': gathered,
    'similar_queries': gathered - int((clusters[:, 1:] >= 0).sum()),
    'second_phase': len(found[1]),
    'left_over': int((~np.asarray(used)).sum()),
  }


@functools.partial(jax.jit, static_argnums=11)
def _phase(
  queries: Float[Array, 'q dim'],
  pool: Int[Array, 'q depth'],
  ends: Int[Array, 'ends'],
  owners: Int[Array, 'owned'],
  query: Int[Array, 'n'],
  candidate: Int[Array, 'n'],
  used: Bool[Array, 'q'],
  taken: Bool[Array, 'q'],
  cap: Int[Array, ''],
  labelled: Bool[Array, ''],
  again: Bool[Array, ''],
  k: int,
) -> tuple[Bool[Array, 'n'], Int[Array, 'n k'], Int[Array, 'n'], Bool[Array, 'q']]:
  """One phase: whether each pair has a cluster, its k owners (-1: fewer) of how many that were
  gathered, and who is used now.

  `taken` may not be owners: in phase 1 those used, in phase 2 (`again`) the owners of phase 2.
  """

  def step(carry: tuple[Array, Array], pair: tuple[Array, Array]) -> tuple[tuple, tuple]:
    used, taken = carry
    number, own = pair

    def skip() -> tuple[Array, Array, Array]:
      return jnp.bool_(False), jnp.full(k, -1, jnp.int32), jnp.int32(0)

    def cluster() -> tuple[Array, Array, Array]:
      near = jnp.where(pool[number] == own, -1, pool[number])
      owner, there, chosen = gather(
        queries, number, near, ends, owners, taken, cap, labelled, min(k, len(near))
      )
      kept = jnp.where(there[chosen], owner[chosen], -1)
      kept = jnp.pad(kept, (0, k - len(kept)), constant_values=-1)
      return there.any(), kept, there.sum(dtype=jnp.int32)

    made, kept, many = jax.lax.cond(used[number], skip, cluster)
    # the place after the last is nobody's
    mark = jnp.where(kept >= 0, kept, len(used))
    used = used.at[mark].set(True, mode='drop').at[number].max(made)
    taken = taken.at[mark].set(True, mode='drop').at[number].max(made & ~again)
    return (used, taken), (made, kept, many)

  (used, _), (made, kept, many) = jax.lax.scan(step, (used, taken), (query, candidate))
  return made, kept, many, used


def gather(
  queries: Float[Array, 'q dim'],
  number: Int[Array, ''],
  near: Int[Array, 'depth'],
  ends: Int[Array, 'ends'],
  owners: Int[Array, 'owned'],
  taken: Bool[Array, 'q'],
  cap: Int[Array, ''],
  labelled: Bool[Array, ''],
  k: int,
) -> tuple[Int[Array, 'depth'], Bool[Array, 'depth'], Int[Array, 'k']]:
  """Gathers owners for a query's cluster.

  Args:
    number: of the query.
    near: its nearest candidates, without its own.
    queries, ends, owners, taken, cap: see `best_owners`.
    labelled, k: see `saha`.

  Returns: the owner found for each candidate, -1 for none; whether it is gathered; and the places
    of the k that are kept, of which those come last that are not gathered.
  """
  owner, score = best_owners(queries, queries[number], near, ends, owners, taken, cap)
  there = owner >= 0
  there &= jnp.cumsum(there) <= cap
  rank = jnp.arange(len(owner))
  order = jnp.where(there, jnp.where(labelled, rank, score), jnp.inf)
  return owner, there, jax.lax.top_k(-order, k)[1]  # of equal ones the first


def best_owners(
  queries: Float[Array, 'q dim'],
  query: Float[Array, 'dim'],
  near: Int[Array, 'depth'],
  ends: Int[Array, 'ends'],
  owners: Int[Array, 'owned'],
  taken: Bool[Array, 'q'],
  cap: int | Int[Array, ''],
) -> tuple[Int[Array, 'depth'], Float[Array, 'depth']]:
  """Finds of each candidate the owner most similar to a query, and how similar.

  Args:
    queries: embeddings of all queries.
    query: that of one.
    near: candidates, -1 where there is none.
    ends, owners: see `Pairs.owners`.
    taken: queries that may not be owners.
    cap: the search may end when so many candidates have one.

  Returns: -1 and -inf where there is none; of equally similar ones the first.
  """
  depth = len(near)
  start = ends[near]
  many = jnp.where(near >= 0, ends[near + 1] - start, 0)
  stop = jnp.cumsum(many)
  total = stop[-1]

  def more(carry: tuple[Array, Array, Array]) -> Array:
    at, owner, _ = carry
    return (at < total) & (jnp.sum((owner >= 0) & (stop <= at)) < cap)

  def look(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    at, owner, best = carry
    entry = at + jnp.arange(_CHUNK)
    rank = jnp.searchsorted(stop, entry, side='right', method='compare_all')
    rank = jnp.minimum(rank, depth - 1)
    who = owners[jnp.where(entry < total, start[rank] + entry - (stop - many)[rank], 0)]
    free = (entry < total) & ~taken[who]
    score = jnp.where(free, jnp.dot(queries[who], query, precision='highest'), -jnp.inf)
    now = best.at[rank].max(score)
    first = jnp.where(free & (score == now[rank]), jnp.arange(_CHUNK), _CHUNK)
    first = jnp.full(depth, _CHUNK).at[rank].min(first)
    better = (now > best) & (first < _CHUNK)
    owner = jnp.where(better, who[jnp.minimum(first, _CHUNK - 1)], owner)
    return at + _CHUNK, owner, now

  none = jnp.int32(0), jnp.full(depth, -1, jnp.int32), jnp.full(depth, -jnp.inf, jnp.float32)
  _, owner, best = jax.lax.while_loop(more, look, none)
  return owner, best
