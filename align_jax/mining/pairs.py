"""What is mined: pairs of a query and the candidate that it matches."""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float, Int

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
    """The owners of all candidates: those of candidate c are `owners[ends[c]:ends[c + 1]]`, sorted."""
    both = np.unique(np.stack([self.candidate, self.query]), axis=1)
    ends = np.searchsorted(both[0], np.arange(len(self.candidates) + 1))
    return ends.astype(np.int32), both[1].astype(np.int32)

  @functools.cached_property
  def last(self) -> Int[np.ndarray, 'q']:
    """The last pair of each query."""
    out = np.zeros(len(self.queries), np.int32)
    out[self.query] = np.arange(len(self), dtype=np.int32)
    return out

  def check(self) -> None:
    """Says what is wrong with them.

    Raises:
      UserError: sizes that differ, numbers out of range, a query in no pair, a candidate without an
        owner, a pair that is there twice, or vectors that are not finite.
    """
    if self.query.shape != self.candidate.shape:
      raise UserError(f'mining: {len(self.query)} queries of pairs, {len(self.candidate)} candidates')
    for name, vectors, numbers, role in (
      ('queries', self.queries, self.query, 'no positive'),
      ('candidates', self.candidates, self.candidate, 'no owner'),
    ):
      if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(vectors):
        raise UserError(f'mining: pairs name {name} outside 0 to {len(vectors) - 1}')
      without = np.setdiff1d(np.arange(len(vectors)), numbers)
      if len(without):
        raise UserError(
          f'mining: {len(without)} of {len(vectors)} {name} have {role}, first number {without[0]}; '
          'leave them out'
        )
      bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
      if len(bad):
        raise UserError(
          f'mining: {len(bad)} of {len(vectors)} {name} are not finite, first number {bad[0]}'
        )
    both, count = np.unique(np.stack([self.query, self.candidate]), axis=1, return_counts=True)
    if len(count) and count.max() > 1:
      twice = both[:, count > 1]
      raise UserError(
        f'mining: {twice.shape[1]} pairs are there more than once, first query {twice[0, 0]} with '
        f'candidate {twice[1, 0]}; leave the others out'
      )
