"""Ranks of pairs, edges both ways, METIS, and parts of equal size."""

import sys

import numpy as np
import pytest

from align_jax.errors import UserError
from align_jax.mining.graph import Edges, even_out, metis_parts, mutual, ranked_pairs
from align_jax.mining.nearest import nearest
from align_jax.mining.pairs import Pairs
from tests.mining.toy import some_pairs


def plain_ranks(pairs, values, pool, skip, keep):
  """Who ranks whom how high, one at a time."""
  known = set(zip(pairs.query.tolist(), pairs.candidate.tolist(), strict=True))
  out = []
  for i, (q, c) in enumerate(zip(pairs.query.tolist(), pairs.candidate.tolist(), strict=True)):
    others = []
    for value, near in zip(values[q].tolist(), pool[q].tolist(), strict=True):
      for j in np.flatnonzero(pairs.candidate == near).tolist() if near >= 0 else []:
        if (q, near) not in known and (int(pairs.query[j]), c) not in known:
          others.append((i, j, value))
    out += others[skip : skip + keep]
  return out


@pytest.mark.parametrize(
  ('queries', 'candidates', 'count', 'depth', 'skip', 'keep'),
  [
    (40, 40, 40, 12, 2, 5),
    (60, 4, 90, 4, 3, 20),  # many owners
    (8, 30, 50, 30, 1, 9),  # queries of several positives
    (9, 6, 14, 6, 0, 99),
  ],
)
def test_ranks_are_those_of_a_plain_loop(queries, candidates, count, depth, skip, keep):
  for seed in range(4):
    pairs = some_pairs(np.random.default_rng(seed), queries, candidates, count)
    values, pool = nearest(pairs.queries, pairs.candidates, depth)
    pool[: len(pool) // 4, depth // 2 :] = -1  # ragged: some have fewer
    values[: len(pool) // 4, depth // 2 :] = -np.inf
    found = ranked_pairs(pairs, values, pool, skip, keep)
    assert list(zip(*(x.tolist() for x in found), strict=True)) == plain_ranks(
      pairs, values, pool, skip, keep
    )


def test_edges_go_both_ways():
  left, right = np.array([0, 1, 1, 2, 3, 2], np.int32), np.array([1, 0, 2, 0, 2, 3], np.int32)
  weight = np.array([0.5, 0.7, 0.9, 0.9, 0.2, 0.4], np.float32)
  edges = mutual(4, left, right, weight)
  assert (edges.left.tolist(), edges.right.tolist()) == ([0, 2], [1, 3])
  np.testing.assert_allclose(edges.weight, [0.6, 0.3], atol=1e-6)
  none = mutual(4, left[:0], right[:0], weight[:0])
  assert len(none.left) == 0


def cliques(groups, size, rng):
  """A graph of whole groups, whose nodes are in random order, with some edges between them."""
  node = rng.permutation(groups * size).reshape(groups, size)
  inside = [(a, b) for group in node.tolist() for a in group for b in group if a < b]
  between = [tuple(sorted(x)) for x in rng.integers(0, groups * size, (groups, 2)).tolist()]
  both = np.array(sorted({*inside, *(x for x in between if x[0] != x[1])}), np.int32).T
  return node, Edges(both[0], both[1], np.ones(both.shape[1], np.float32))


def test_metis_finds_groups():
  pytest.importorskip('pymetis')
  node, edges = cliques(12, 8, np.random.default_rng(0))
  part = metis_parts(96, edges, 8)
  assert sorted(len(set(part[group])) for group in node) == [1] * 12
  np.testing.assert_array_equal(part, metis_parts(96, edges, 8))
  rows, moved = even_out(part, edges, 8)
  assert moved == 0
  assert {tuple(row) for row in rows.tolist()} == {tuple(sorted(group)) for group in node.tolist()}


def test_a_graph_of_one_part_needs_no_cut():
  part = metis_parts(5, Edges(*np.zeros((2, 0), np.int32), np.zeros(0, np.float32)), 8)
  assert part.tolist() == [0] * 5


def test_without_pymetis_it_says_how_to_get_it(monkeypatch):
  monkeypatch.setitem(sys.modules, 'pymetis', None)
  with pytest.raises(UserError, match=r'pip install "align_jax\[mining\]"'):
    metis_parts(5, Edges(*np.zeros((2, 0), np.int32), np.zeros(0, np.float32)), 2)


def test_parts_become_equal():
  rng = np.random.default_rng(1)
  for count in (64, 67, 5):
    part = rng.integers(0, max(1, count // 8), count).astype(np.int32)
    both = np.sort(rng.integers(0, count, (300, 2)), axis=1)
    both = np.unique(both[both[:, 0] != both[:, 1]], axis=0).astype(np.int32)
    edges = Edges(both[:, 0], both[:, 1], np.ones(len(both), np.float32))
    rows, moved = even_out(part, edges, 8)
    assert rows.shape == (-(-count // 8), 8)
    assert sorted(rows[rows >= 0].tolist()) == list(range(count))
    assert (rows[:-1] >= 0).all()
    stayed = 0
    for row in rows:
      row = row[row >= 0]
      stayed += np.bincount(part[row]).max()
    assert stayed >= count - moved


def test_nodes_that_hang_on_least_leave_first():
  # a part of five, of which 0 to 3 are all joined and 4 is joined to nobody; 5 to 7 are a part
  left = np.array([0, 0, 0, 1, 1, 2, 5, 5, 6], np.int32)
  right = np.array([1, 2, 3, 2, 3, 3, 6, 7, 7], np.int32)
  edges = Edges(left, right, np.ones(9, np.float32))
  rows, moved = even_out(np.array([0, 0, 0, 0, 0, 1, 1, 1], np.int32), edges, 4)
  assert rows.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]] and moved == 1


def test_pairs_name_their_numbers():
  pairs = some_pairs(np.random.default_rng(3), 12, 9, 40)
  np.testing.assert_array_equal(pairs.number(pairs.query, pairs.candidate), np.arange(40))
  known = set(zip(pairs.query.tolist(), pairs.candidate.tolist(), strict=True))
  every = np.stack(np.meshgrid(np.arange(-1, 12), np.arange(-1, 9)), axis=-1).reshape(-1, 2)
  found = pairs.number(every[:, 0], every[:, 1])
  assert [i >= 0 for i in found.tolist()] == [tuple(x) in known for x in every.tolist()]
  left, right = (x.reshape(-1) for x in np.meshgrid(np.arange(40), np.arange(40)))
  wanted = [
    (pairs.query[a], pairs.candidate[b]) in known or (pairs.query[b], pairs.candidate[a]) in known
    for a, b in zip(left, right, strict=True)
  ]
  assert pairs.clash(left, right).tolist() == wanted
  assert isinstance(pairs, Pairs) and pairs.most == (
    int(np.bincount(pairs.query).max()),
    int(np.bincount(pairs.candidate).max()),
  )
