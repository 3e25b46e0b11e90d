import dataclasses

import numpy as np
import pytest

from align_jax.mining.nearest import nearest
from align_jax.mining.pairs import Pairs
from align_jax.mining.saha import saha
from tests.mining import reference
from tests.mining.toy import some_pairs


@pytest.mark.parametrize('whole', [True, False])
@pytest.mark.parametrize('labelled', [False, True])
@pytest.mark.parametrize(
  ('queries', 'candidates', 'count', 'k', 'mult'),
  [
    (60, 60, 80, 3, 2),
    (60, 3, 90, 2, 2),  # many owners
    (400, 2, 500, 3, 1),  # more owners than are looked at together
    (12, 40, 48, 2, 3),  # queries of several positives
    (9, 6, 14, 7, 3),  # a pool larger than all candidates
    (1, 1, 1, 2, 2),
  ],
)
def test_clusters_are_those_of_the_published_algorithm(
  queries, candidates, count, k, mult, labelled, whole
):
  for seed in range(3):
    pairs = some_pairs(np.random.default_rng(seed), queries, candidates, count, whole=whole)
    pairs.check()
    _, pool = nearest(pairs.queries, pairs.candidates, 2 * k * mult)
    found, _ = saha(pairs, pool, k, mult, labelled=labelled)
    wanted = reference.saha(
      pairs.queries, pairs.candidates, pairs.query, pairs.candidate, pool, k, mult, labelled
    )
    assert [[i for i in row if i >= 0] for row in found.tolist()] == wanted


@pytest.mark.parametrize('seed', range(3))
def test_repeated_vectors_are_put_in_the_published_order(seed):
  # queries and candidates are each one of four vectors: nearly all products are equal to others
  pairs = some_pairs(np.random.default_rng(seed), 40, 30, 60, whole=True)
  some = [
    np.repeat(x[:4], -(-len(x) // 4), axis=0)[: len(x)] for x in (pairs.queries, pairs.candidates)
  ]
  pairs = dataclasses.replace(pairs, queries=some[0], candidates=some[1])
  _, pool = nearest(pairs.queries, pairs.candidates, 12)
  found, _ = saha(pairs, pool, 3, 2)
  wanted = reference.saha(
    pairs.queries, pairs.candidates, pairs.query, pairs.candidate, pool, 3, 2, False
  )
  assert [[i for i in row if i >= 0] for row in found.tolist()] == wanted


def test_it_counts_what_it_leaves_out():
  rng = np.random.default_rng(0)
  x, y = rng.standard_normal((2, 40, 8)).astype(np.float32)
  number = np.arange(40, dtype=np.int32)
  pairs = Pairs(x, y, number, number)
  _, pool = nearest(x, y, 12)
  found, counts = saha(pairs, pool, 2, 3)
  members = int((found >= 0).sum()) - len(found)
  assert counts['gathered'] - counts['similar_queries'] == members
  # without a second phase, whose clusters take from those before, every query is in one cluster
  assert counts['left_over'] == 40 - len(np.unique(found[found >= 0]))
