"""The hardest candidates of each query, after the rules that people use against hidden matches.

Every rule is a filter on the ranked candidates of a query; what passes, hardest first, are its
negatives. Clusters of different queries overlap.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from align_jax.errors import require
from align_jax.mining.pairs import Pairs
from align_jax.mining.saha import best_owners

REASONS = ('own', 'skipped', 'margin', 'percentage', 'label')
_ROWS = 1024  # pairs of a block


@dataclasses.dataclass(frozen=True)
class RankedConfig:
  """Which candidates are no negatives.

  Attributes:
    skip: so many of the nearest, the pair's own not counted (B3 and others: near the top are hidden
      matches).
    margin: those whose cosine exceeds the positive's less this; None: no such rule.
    percentage: those whose cosine exceeds this share of the positive's (NV-Retriever,
      arXiv 2407.15831: 0.95; `relative_margin` of sentence-transformers is 1 less this).
    labels: `different` leaves out those of the pair's own label.
  """

  skip: int = 0
  margin: float | None = None
  percentage: float | None = None
  labels: Literal['any', 'different'] = 'any'

  def __post_init__(self) -> None:
    require(self.skip >= 0, 'config.skip', f'{self.skip} is below 0')
    if self.percentage is not None:
      require(0 < self.percentage <= 2, 'config.percentage', f'{self.percentage}: above 0, to 2')


def ranked(
  pairs: Pairs,
  values: Float[np.ndarray, 'q depth'],
  pool: Int[np.ndarray, 'q depth'],
  k: int,
  config: RankedConfig = RankedConfig(),
  labels: Int[np.ndarray, 'm'] | None = None,
) -> tuple[Int[np.ndarray, 'n size'], dict[str, int]]:
  """Takes the k hardest candidates of each pair that the rules let pass.

  Args:
    pairs: what is mined.
    values, pool: the nearest candidates of each query and their products, see `nearest`.
    k: hard negatives of a pair.
    config: the rules.
    labels: of the candidates, where the rules ask for them.

  Returns: numbers of pairs, each pair's own first, then the owner most similar to the query of each
    negative, hardest first, -1 where there are fewer; and how many candidates each rule left out
    that were no weaker than the last one taken.
  """
  require(
    config.labels == 'any' or labels is not None, 'config.labels', 'the data have no labels'
  )
  ends, owners = pairs.owners
  fixed = tuple(jnp.asarray(x) for x in (pairs.queries.astype(np.float32), ends, owners))
  label = np.zeros(len(pairs.candidates), np.int32) if labels is None else labels.astype(np.int32)
  positive = np.einsum(
    'nd,nd->n', pairs.queries[pairs.query], pairs.candidates[pairs.candidate], dtype=np.float64
  ).astype(np.float32)
  out = np.full((len(pairs), k + 1), -1, np.int32)
  out[:, 0] = np.arange(len(pairs))
  counts = np.zeros(len(REASONS), np.int64)
  own = own_candidates(pairs)
  for start in range(0, len(pairs), _ROWS):
    part = np.minimum(np.arange(start, start + _ROWS), len(pairs) - 1)
    real = start + np.arange(_ROWS) < len(pairs)
    query = pairs.query[part]
    found, dropped = _choose(
      *fixed,
      jnp.asarray(label),
      query,
      pool[query],
      values[query],
      own[query],
      label[pairs.candidate[part]],
      positive[part],
      k,
      config,
    )
    number = np.asarray(found)[real]
    out[start : start + len(number), 1:] = np.where(number >= 0, pairs.last[number], -1)
    counts += np.asarray(dropped)[real].sum(axis=0)
  return out, dict(zip(REASONS, counts.tolist(), strict=True))


def own_candidates(pairs: Pairs) -> Int[np.ndarray, 'q most']:
  """Returns the candidates that each query is in a pair with, -1 where it has fewer than others."""
  order = np.argsort(pairs.query, kind='stable')
  query = pairs.query[order]
  place = np.arange(len(query)) - np.searchsorted(query, query)
  out = np.full((len(pairs.queries), int(place.max(initial=0)) + 1), -1, np.int32)
  out[query, place] = pairs.candidate[order]
  return out


@functools.partial(jax.jit, static_argnums=(10, 11))
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
  positive: Float[Array, 'n'],
  k: int,
  config: RankedConfig,
) -> tuple[Int[Array, 'n k'], Int[Array, 'n reasons']]:
  def one(
    query: Array, near: Array, value: Array, own: Array, own_label: Array, positive: Array
  ) -> tuple[Array, Array]:
    left = near >= 0
    reasons = []

    def drop(rule: Bool[Array, 'depth']) -> None:
      nonlocal left
      reasons.append(left & rule)
      left &= ~rule

    drop((near[:, None] == own).any(axis=1))
    drop(jnp.cumsum(left) <= config.skip)
    drop(value > (jnp.inf if config.margin is None else positive - config.margin))
    drop(value > (jnp.inf if config.percentage is None else config.percentage * positive))
    drop((label[near] == own_label) & (config.labels == 'different'))
    taken = left & (jnp.cumsum(left) <= k)
    order = jnp.argsort(~taken, stable=True)[:k]
    chosen = jnp.where(taken[order], near[order], -1)
    nobody = jnp.zeros(len(queries), bool)
    owner, _ = best_owners(queries, queries[query], chosen, ends, owners, nobody, k)
    owner = jnp.pad(owner, (0, k - len(owner)), constant_values=-1)
    last = jnp.max(jnp.where(taken, jnp.arange(len(near)), -1))
    seen = (jnp.arange(len(near)) <= last) | (taken.sum() < k)
    return owner, jnp.stack([(reason & seen).sum() for reason in reasons])

  return jax.lax.map(lambda args: one(*args), (query, pool, values, own, own_label, positive))
