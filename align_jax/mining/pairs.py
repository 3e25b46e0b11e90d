"""What is mined: pairs of a query and the candidate that it matches."""

import dataclasses
import functools

import numpy as np
from jaxtyping import Bool, Float, Int

from align_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Pairs, as numbers of distinct queries and candidates.

  A query may be in several pairs, and so may a candidate: its queries are its owners.

  Attributes:
    queries, candidates: unit-norm embeddings.
    query, candidate: the two sides of each pair.
  """

  queries: Float[np.ndarray, 'q dim']
  candidates: Float[np.ndarray, 'm dim']
  query: Int[np.ndarray, 'n']
  candidate: Int[np.ndarray, 'n']

  def __len__(self) -> int:
    return len(self.query)

  @functools.cached_property
  def owners(self) -> tuple[Int[np.ndarray, 'ends'], Int[np.ndarray, 'owned']]:
    """The owners of all candidates, sorted: of candidate c `owners[ends[c]:ends[c + 1]]`."""
    both = np.unique(np.stack([self.candidate, self.query]), axis=1)
    ends = np.searchsorted(both[0], np.arange(len(self.candidates) + 1))
    return ends.astype(np.int32), both[1].astype(np.int32)

  @functools.cached_property
  def last(self) -> Int[np.ndarray, 'q']:
    """The last pair of each query."""
    out = np.zeros(len(self.queries), np.int32)
    out[self.query] = np.arange(len(self), dtype=np.int32)
    return out

  @functools.cached_property
  def most(self) -> tuple[int, int]:
    """The most pairs that a query is in, and a candidate."""
    return int(np.bincount(self.query).max(initial=0)), int(
      np.bincount(self.candidate).max(initial=0)
    )

  @functools.cached_property
  def _keys(self) -> tuple[Int[np.ndarray, 'n'], Int[np.ndarray, 'n']]:
    """Sorted names of all pairs, and their numbers."""
    key = self.query.astype(np.int64) * len(self.candidates) + self.candidate
    order = np.argsort(key, kind='stable')
    return key[order], order.astype(np.int32)

  def number(
    self, query: Int[np.ndarray, '*some'], candidate: Int[np.ndarray, '*some']
  ) -> Int[np.ndarray, '*some']:
    """Returns the numbers of the pairs of these queries and candidates, -1 where there is none."""
    keys, order = self._keys
    key = np.asarray(query, np.int64) * len(self.candidates) + candidate
    place = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
    there = (keys[place] == key) & (np.asarray(query) >= 0) & (np.asarray(candidate) >= 0)
    return np.where(there, order[place], -1).astype(np.int32)

  def match(
    self, left: Int[np.ndarray, '*some'], right: Int[np.ndarray, '*some']
  ) -> Bool[np.ndarray, '*some']:
    """Says whether the left pair's query is known to match the right pair's candidate."""
    known = self.candidate[left] == self.candidate[right]
    if self.most[0] > 1:  # otherwise a query has but its own
      many = np.bincount(self.query)[self.query[left]] > 1
      known[many] = self.number(self.query[left[many]], self.candidate[right[many]]) >= 0
    return known

  def clash(
    self, left: Int[np.ndarray, '*some'], right: Int[np.ndarray, '*some']
  ) -> Bool[np.ndarray, '*some']:
    """Says whether either's query is known to match the other's candidate."""
    return self.match(left, right) | self.match(right, left)

  def check(self) -> None:
    """Says what is wrong with them.

    Raises:
      UserError: sizes that differ, numbers out of range, a query in no pair, a candidate without an
        owner, a pair that is there twice, or vectors that are not finite.
    """
    self.check_numbers()
    for name, vectors, numbers, role in self._sides():
      without = np.setdiff1d(np.arange(len(vectors)), numbers)
      if len(without):
        raise UserError(
          f'mining: {len(without)} of {len(vectors)} {name} have {role}, first number '
          f'{without[0]}; leave them out'
        )
      bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
      if len(bad):
        raise UserError(
          f'mining: {len(bad)} of {len(vectors)} {name} are not finite, first number {bad[0]}; '
          'leave them out'
        )
    both, count = np.unique(np.stack([self.query, self.candidate]), axis=1, return_counts=True)
    if len(count) and count.max() > 1:
      twice = both[:, count > 1]
      raise UserError(
        f'mining: {twice.shape[1]} pairs are there more than once, first query {twice[0, 0]} with '
        f'candidate {twice[1, 0]}; leave the others out'
      )

  def check_numbers(self) -> None:
    """Raises UserError where sizes differ or numbers are out of range."""
    if self.query.shape != self.candidate.shape:
      raise UserError(
        f'mining: {len(self.query)} queries of pairs, {len(self.candidate)} candidates'
      )
    for name, vectors, numbers, _ in self._sides():
      if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(vectors):
        raise UserError(f'mining: pairs name {name} outside 0 to {len(vectors) - 1}')

  def _sides(self) -> tuple[tuple[str, np.ndarray, np.ndarray, str], ...]:
    return (
      ('queries', self.queries, self.query, 'no positive'),
      ('candidates', self.candidates, self.candidate, 'no owner'),
    )


def without_bad(pairs: Pairs) -> tuple[Pairs, Int[np.ndarray, 'kept'], dict[str, int]]:
  """Leaves out what `Pairs.check` refuses.

  Returns: the pairs that are left, their numbers, and how many of what was left out: `not_finite`
    and `repeated` pairs, `no_owner` candidates, `no_positive` queries (of which some had one before
    their pairs were left out).

  Raises:
    UserError: sizes that differ, numbers out of range.
  """
  pairs.check_numbers()
  finite = [np.isfinite(x).all(axis=1) for x in (pairs.queries, pairs.candidates)]
  good = finite[0][pairs.query] & finite[1][pairs.candidate]
  kept = np.flatnonzero(good)
  both = np.stack([pairs.query[kept], pairs.candidate[kept]])
  first = np.sort(np.unique(both, axis=1, return_index=True)[1])
  counts = {'not_finite': len(pairs) - len(kept), 'repeated': len(kept) - len(first)}
  kept = kept[first]
  order = np.arange(len(pairs))[kept]
  out = select(pairs, order)
  counts['no_owner'] = len(pairs.candidates) - len(out.candidates)
  counts['no_positive'] = len(pairs.queries) - len(out.queries)
  return out, order, counts


def select(pairs: Pairs, chosen: Int[np.ndarray, 'n']) -> Pairs:
  """Returns these pairs in this order, with none but their queries and candidates, each numbered
  by its first pair: equal for equal pairs, in whatever order they were before.
  """
  query, candidate = pairs.query[chosen], pairs.candidate[chosen]
  (one, query), (other, candidate) = _by_first(query), _by_first(candidate)
  return Pairs(pairs.queries[one], pairs.candidates[other], query, candidate)


def _by_first(
  numbers: Int[np.ndarray, 'n'],
) -> tuple[Int[np.ndarray, 'distinct'], Int[np.ndarray, 'n']]:
  names, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
  order = np.argsort(first)
  rank = np.empty(len(names), np.int32)
  rank[order] = np.arange(len(names))
  return names[order], rank[inverse]
