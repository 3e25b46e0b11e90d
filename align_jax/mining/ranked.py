"""The hardest candidates of each query, after the rules that people use against hidden matches.

Every rule is a filter on the ranked candidates of a query; what passes, hardest first, are its
negatives. Clusters of different queries overlap.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from align_jax.errors import require
from align_jax.mining.pairs import Pairs
from align_jax.mining.saha import best_owners

REASONS = ('own', 'margin', 'percentage', 'label', 'skipped', 'same_owner')
KEPT, FURTHER = len(REASONS), len(REASONS) + 1  # what else becomes of a candidate
_ROWS = 1024  # pairs of a block


@dataclasses.dataclass(frozen=True)
class Rules:
  """Which candidates are no negatives.

  Attributes:
    skip: so many of the nearest that the other rules let pass (near the top are hidden matches).
    margin: those whose product exceeds the positive's less this; None: no such rule.
    percentage: those whose product exceeds the positive's less what is missing from 1 here of its
      size (NV-Retriever, arXiv 2407.15831: 0.95; sentence-transformers says
      `relative_margin=0.05`); None: no such rule.
    different_labels: those of the pair's own label.
  """

  skip: int = 0
  margin: float | None = None
  percentage: float | None = None
  different_labels: bool = False

  def __post_init__(self) -> None:
    require(self.skip >= 0, 'config.skip', f'{self.skip} is below 0')
    if self.percentage is not None:
      require(0 < self.percentage <= 2, 'config.percentage', f'{self.percentage}: above 0, to 2')


def ranked(
  pairs: Pairs,
  values: Float[np.ndarray, 'q depth'],
  pool: Int[np.ndarray, 'q depth'],
  k: int,
  rules: Rules = Rules(),
  labels: Int[np.ndarray, 'm'] | None = None,
) -> tuple[Int[np.ndarray, 'n size'], dict[str, int]]:
  """Takes the k hardest candidates of each pair that the rules let pass.

  As `mine_hard_negatives` of sentence-transformers does with `sampling_strategy='top'`: of a query
  with several positives the weakest is what the others are compared with, and `skip` counts what
  the other rules have let pass. Here a negative comes with its owner, since a batch needs pairs: of
  several the one most similar to the query; a candidate whose owner is there already is left out.

  Args:
    pairs: what is mined.
    values, pool: the nearest candidates of each query and their products, see `nearest`.
    k: hard negatives of a pair.
    rules: which candidates are no negatives.
    labels: of the candidates, where the rules ask for them.

  Returns: numbers of pairs, each pair's own first, then those of its negatives, hardest first, -1
    where there are fewer; and how many candidates each rule left out that ranked before the last
    one taken.
  """
  out = np.full((len(pairs), k + 1), -1, np.int32)
  out[:, 0] = np.arange(len(pairs))
  counts = np.zeros(len(REASONS), np.int64)
  for who, chosen in _blocks(pairs, values, pool, k, rules, labels, np.arange(len(pairs))):
    found = pairs.number(chosen.owner, chosen.candidate)
    out[who, 1 : 1 + found.shape[1]] = found
    counts += chosen.dropped.sum(axis=0)
  return out, dict(zip(REASONS, counts.tolist(), strict=True))


def judge(
  pairs: Pairs,
  values: Float[np.ndarray, 'q depth'],
  pool: Int[np.ndarray, 'q depth'],
  k: int,
  rules: Rules,
  labels: Int[np.ndarray, 'm'] | None,
  which: Int[np.ndarray, 'some'],
) -> tuple[Int[np.ndarray, 'some depth'], Int[np.ndarray, 'some depth']]:
  """Says what became of each of the nearest candidates of some pairs.

  Args:
    pairs, values, pool, k, rules, labels: see `ranked`.
    which: numbers of pairs.

  Returns: of each candidate the place in `REASONS` of the rule that left it out, `KEPT`, or
    `FURTHER` if it comes after the last one taken; and the number of its owner's pair, -1 where
    nobody asked.
  """
  verdict = np.full((len(which), pool.shape[1]), FURTHER, np.int32)
  owner = np.full(verdict.shape, -1, np.int32)
  start = 0
  for who, chosen in _blocks(pairs, values, pool, k, rules, labels, which):
    stop = start + len(who)
    verdict[start:stop] = chosen.verdict
    owner[start:stop] = pairs.number(chosen.asked, pool[pairs.query[who]])
    start = stop
  return verdict, owner


class _Chosen(NamedTuple):
  """What became of the nearest candidates of some pairs.

  Attributes:
    owner, candidate: of each pair's negatives, -1 where there are fewer.
    dropped: how many each rule left out that ranked before the last one taken.
    verdict, asked: of each place of the pool, see `judge`; `asked` are queries.
  """

  owner: Int[np.ndarray, 'n found']
  candidate: Int[np.ndarray, 'n found']
  dropped: Int[np.ndarray, 'n reasons']
  verdict: Int[np.ndarray, 'n depth']
  asked: Int[np.ndarray, 'n depth']


def _blocks(
  pairs: Pairs,
  values: Float[np.ndarray, 'q depth'],
  pool: Int[np.ndarray, 'q depth'],
  k: int,
  rules: Rules,
  labels: Int[np.ndarray, 'm'] | None,
  which: Int[np.ndarray, 'some'],
) -> Iterator[tuple[Int[np.ndarray, 'n'], _Chosen]]:
  """Yields pairs, a block at a time, and what was chosen for them."""
  require(
    not rules.different_labels or labels is not None,
    'config.different_labels',
    'the data have no labels',
  )
  ends, owners = pairs.owners
  fixed = tuple(jnp.asarray(x) for x in (pairs.queries.astype(np.float32), ends, owners))
  label = np.zeros(len(pairs.candidates), np.int32) if labels is None else labels.astype(np.int32)
  limit = _limits(pairs, rules)
  own = own_candidates(pairs)
  for start in range(0, len(which), _ROWS):
    who = which[start : start + _ROWS]
    part = np.concatenate([who, np.repeat(who[-1:], _ROWS - len(who))])
    query = pairs.query[part]
    found = _choose(
      *fixed,
      jnp.asarray(label),
      query,
      pool[query],
      values[query],
      own[query],
      label[pairs.candidate[part]],
      *(x[query] for x in limit),
      np.int32(rules.skip),
      np.bool_(rules.different_labels),
      k,
      k * pairs.most[0],
    )
    yield who, _Chosen(*(np.asarray(x)[: len(who)] for x in found))


def own_candidates(pairs: Pairs) -> Int[np.ndarray, 'q most']:
  """Returns the candidates that each query is in a pair with, -1 where it has fewer than others."""
  order = np.argsort(pairs.query, kind='stable')
  query = pairs.query[order]
  place = np.arange(len(query)) - np.searchsorted(query, query)
  out = np.full((len(pairs.queries), int(place.max(initial=0)) + 1), -1, np.int32)
  out[query, place] = pairs.candidate[order]
  return out


def _limits(pairs: Pairs, rules: Rules) -> tuple[Float[np.ndarray, 'q'], Float[np.ndarray, 'q']]:
  """The largest products of each query that the margin and the percentage let pass."""
  both = pairs.queries[pairs.query], pairs.candidates[pairs.candidate]
  weakest = np.full(len(pairs.queries), np.inf)
  np.minimum.at(weakest, pairs.query, np.einsum('nd,nd->n', *both, dtype=np.float64))
  none = np.full(len(pairs.queries), np.inf, np.float32)
  margin, percentage = none, none
  if rules.margin is not None:
    margin = (weakest - rules.margin).astype(np.float32)
  if rules.percentage is not None:
    percentage = (weakest - abs(weakest) * (1 - rules.percentage)).astype(np.float32)
  return margin, percentage


@functools.partial(jax.jit, static_argnums=(13, 14))
def _choose(
  queries: Float[Array, 'q dim'],
  ends: Int[Array, 'ends'],
  owners: Int[Array, 'owned'],
  label: Int[Array, 'm'],
  query: Int[Array, 'n'],
  pool: Int[Array, 'n depth'],
  values: Float[Array, 'n depth'],
  own: Int[Array, 'n most'],
  own_label: Int[Array, 'n'],
  margin: Float[Array, 'n'],
  percentage: Float[Array, 'n'],
  skip: Int[Array, ''],
  different_labels: Bool[Array, ''],
  k: int,
  wanted: int,
) -> tuple[Array, Array, Array, Array, Array]:
  """What `_Chosen` holds.

  `wanted` is how many candidates have k owners for certain.
  """
  depth = pool.shape[1]
  place = jnp.arange(depth)

  def one(
    query: Array,
    near: Array,
    value: Array,
    own: Array,
    own_label: Array,
    margin: Array,
    percentage: Array,
  ) -> tuple[Array, Array, Array, Array, Array]:
    left = near >= 0
    reasons = []

    def drop(rule: Bool[Array, 'depth']) -> None:
      nonlocal left
      reasons.append(left & rule)
      left &= ~rule

    drop((near[:, None] == own).any(axis=1))
    drop(value > margin)
    drop(value > percentage)
    drop((label[near] == own_label) & different_labels)
    drop(jnp.cumsum(left) <= skip)
    chosen = jnp.where(left & (jnp.cumsum(left) <= wanted), near, -1)
    nobody = jnp.zeros(len(queries), bool)
    owner, _ = best_owners(queries, queries[query], chosen, ends, owners, nobody, wanted)
    before = (owner[:, None] == owner) & (place < place[:, None]) & (owner >= 0)
    drop(before.any(axis=1))
    taken = left & (jnp.cumsum(left) <= k)
    order = jnp.argsort(~taken, stable=True)[:k]
    last = jnp.max(jnp.where(taken, place, -1))
    seen = (place <= last) | (taken.sum() < k)
    verdict = jnp.where(taken, KEPT, FURTHER)
    for number, reason in enumerate(reasons):
      verdict = jnp.where(reason & seen, number, verdict)
    return (
      jnp.where(taken[order], owner[order], -1),
      jnp.where(taken[order], near[order], -1),
      jnp.stack([(reason & seen).sum() for reason in reasons]),
      verdict,
      owner,
    )

  return jax.lax.map(
    lambda args: one(*args), (query, pool, values, own, own_label, margin, percentage)
  )
