"""Which pairs may not share a cluster: hidden matches, and pairs of one query or candidate.

Hidden matches are edges of a graph. Pairs of a candidate with thousands of owners are too many for
that: of them it is counted how many each cluster holds.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse

from align_jax.mining.pairs import Pairs

VETO = -1e6  # what it costs two pairs to share a cluster: more than all products of one


@dataclasses.dataclass(frozen=True)
class Apart:
  """Who may not share a cluster.

  Attributes:
    edges: of hidden matches, symmetric, with the weight `VETO`.
    groups: of each pair its query and its candidate; none where all are different.
  """

  edges: sparse.csr_array
  groups: tuple[Int[np.ndarray, 'n'], ...]

  @classmethod
  def of(cls, pairs: Pairs, edges: sparse.csr_array) -> 'Apart':
    sides = zip((pairs.query, pairs.candidate), pairs.most, strict=True)
    return cls(edges, tuple(np.asarray(side, np.int64) for side, most in sides if most > 1))

  def with_blanks(self, count: int) -> 'Apart':
    """Adds pairs that mind nobody."""
    edges = self.edges.copy()
    edges.resize((edges.shape[0] + count, edges.shape[0] + count))
    blank = np.arange(count)
    groups = tuple(np.concatenate([g, g.max(initial=0) + 1 + blank]) for g in self.groups)
    return Apart(edges, groups)

  def cost(self, one: Int[np.ndarray, 'e'], other: Int[np.ndarray, 'e']) -> Float[np.ndarray, 'e']:
    """What it costs two pairs to share a cluster: `VETO` or 0."""
    alike = [group[one] == group[other] for group in self.groups]
    out = _at(self.edges, one, other)
    return np.where(np.any(alike, axis=0), VETO, out) if alike else out

  def clusters(self, cluster: Int[np.ndarray, 'n'], many: int) -> 'Against':
    """The same of pairs with clusters; the cluster is -1 where a pair is in none."""
    inside = np.flatnonzero(cluster >= 0)
    ones = np.ones(len(inside))
    shape = len(cluster), many
    members = sparse.csr_array((ones, (inside, cluster[inside])), shape=shape)
    held = tuple(
      sparse.coo_array(
        (ones, (group[inside], cluster[inside])), shape=(int(group.max(initial=0)) + 1, many)
      ).tocsr()
      for group in self.groups
    )
    return Against(self.groups, self.edges @ members, held, cluster)

  def close(self, cluster: Int[np.ndarray, 'n']) -> int:
    """Returns how many pairs share their cluster with a hidden match."""
    edges = self.edges.tocoo()
    return len(np.unique(edges.row[cluster[edges.row] == cluster[edges.col]]))


@dataclasses.dataclass(frozen=True)
class Against:
  """What it costs pairs to be in clusters.

  Attributes:
    groups: see `Apart`.
    edges: the sum of vetoes of each pair with each cluster.
    held: how many of each group each cluster holds.
    cluster: where each pair is.
  """

  groups: tuple[Int[np.ndarray, 'n'], ...]
  edges: sparse.csr_array
  held: tuple[sparse.csr_array, ...]
  cluster: Int[np.ndarray, 'n']

  def cost(self, who: Int[np.ndarray, 'e'], where: Int[np.ndarray, 'e']) -> Float[np.ndarray, 'e']:
    """The sum of what its members cost a pair, itself not counted."""
    out = _at(self.edges, who, where)
    itself = self.cluster[who] == where
    for group, held in zip(self.groups, self.held, strict=True):
      out = out + VETO * (_at(held, group[who], where) - itself)
    return out


def shared(
  apart: Apart,
  label: Int[np.ndarray, 'n'],
  one: Int[np.ndarray, 'e'],
  two: Int[np.ndarray, 'e'],
) -> Bool[np.ndarray, 'e']:
  """Says whether two clusters have pairs of one group.

  Args:
    label: the cluster of each pair.
    one, two: clusters.
  """
  out = np.zeros(len(one), bool)
  for group in apart.groups:
    ones, shape = np.ones(len(label)), (len(label), int(group.max(initial=0)) + 1)
    held = sparse.coo_array((ones, (label, group)), shape=shape).tocsr()
    out |= np.asarray(held[one].multiply(held[two]).sum(axis=1)).reshape(-1) > 0
  return out


def _at(
  matrix: sparse.csr_array, row: Int[np.ndarray, 'e'], column: Int[np.ndarray, 'e']
) -> Float[np.ndarray, 'e']:
  return np.asarray(matrix[row, column]).reshape(-1) if len(row) else np.zeros(0)
