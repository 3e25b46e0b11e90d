"""Clusters that grow: two merge when they are each other's hardest."""

import numpy as np
from jaxtyping import Int
from scipy import sparse

from align_jax.mining.apart import VETO, Apart, shared


def grow(graph: sparse.csr_array, apart: Apart, size: int) -> Int[np.ndarray, 'count']:
  """Merges clusters that are each other's hardest, up to `size` pairs.

  Two clusters are as hard for each other as all edges between them together, missing ones counting
  0, divided by the number of their pairs of members. Of equally hard ones the earlier are first, so
  that nothing is left to chance.

  Args:
    graph: symmetric positive weights of pairs.
    apart: who may not share a cluster.
    size: the most pairs of a cluster.

  Returns: the cluster of each pair, named by its first pair.
  """
  count = graph.shape[0]
  label, sizes = np.arange(count), np.ones(count, np.int64)
  edges = sparse.triu(graph + apart.edges, 1).tocoo()
  low, high, weight = edges.row.astype(np.int64), edges.col.astype(np.int64), edges.data
  while len(low):
    fits = sizes[low] + sizes[high] <= size
    low, high, weight = low[fits], high[fits], weight[fits]
    hard = np.flatnonzero(weight > 0)
    one, two = low[hard], high[hard]
    gain = weight[hard] / (sizes[one] * sizes[two])
    most = np.full(count, -np.inf)
    np.maximum.at(most, one, gain)
    np.maximum.at(most, two, gain)
    name = one * count + two
    first = np.full(count, count * count)
    for ends in (one, two):
      hardest = gain == most[ends]
      np.minimum.at(first, ends[hardest], name[hardest])
    merged = np.flatnonzero((first[one] == name) & (first[two] == name))
    if not len(merged):
      break
    refused = shared(apart, label, one[merged], two[merged])
    weight[hard[merged[refused]]] = VETO
    merged = merged[~refused]
    into = np.arange(count)
    into[two[merged]] = one[merged]
    sizes[one[merged]] += sizes[two[merged]]
    label = into[label]
    low, high = np.minimum(into[low], into[high]), np.maximum(into[low], into[high])
    between = low != high
    ends = low[between], high[between]
    edges = sparse.coo_array((weight[between], ends), shape=(count, count)).tocsr().tocoo()
    low, high, weight = edges.row.astype(np.int64), edges.col.astype(np.int64), edges.data
  return label
