import numpy as np
import pytest

from align_jax.mining.nearest import nearest
from align_jax.mining.pairs import Pairs
from align_jax.mining.saha import saha
from tests.mining import reference


def some_pairs(rng, queries, candidates, pairs, dim=5, whole=True):
  """Random pairs; of whole numbers, whose products are exact and often equal."""

  def vectors(count):
    if whole:
      return rng.integers(-2, 3, (count, dim)).astype(np.float32)
    return rng.standard_normal((count, dim)).astype(np.float32)

  both = np.stack([rng.integers(0, queries, pairs), rng.integers(0, candidates, pairs)])
  both = both[:, np.sort(np.unique(both, axis=1, return_index=True)[1])]
  (q, query), (c, candidate) = (np.unique(side, return_inverse=True) for side in both)
  return Pairs(
    vectors(len(q)), vectors(len(c)), query.astype(np.int32), candidate.astype(np.int32)
  )


@pytest.mark.parametrize('whole', [True, False])
@pytest.mark.parametrize('labelled', [False, True])
@pytest.mark.parametrize(
  ('queries', 'candidates', 'count', 'k', 'mult'),
  [
    (60, 60, 50, 3, 2),
    (60, 3, 90, 2, 2),  # many owners
    (400, 2, 500, 3, 1),  # more owners than are looked at together
    (12, 40, 40, 2, 3),  # queries of several positives
    (9, 6, 8, 7, 3),  # a pool larger than all candidates
    (1, 1, 1, 2, 2),
  ],
)
def test_clusters_are_those_of_the_published_algorithm(
  queries, candidates, count, k, mult, labelled, whole
):
  for seed in range(6):
    pairs = some_pairs(np.random.default_rng(seed), queries, candidates, count, whole=whole)
    pairs.check()
    _, pool = nearest(pairs.queries, pairs.candidates, 2 * k * mult)
    found = saha(pairs, pool, k, mult, labelled=labelled)
    wanted = reference.saha(
      pairs.queries, pairs.candidates, pairs.query, pairs.candidate, pool, k, mult, labelled
    )
    assert [[i for i in row if i >= 0] for row in found.tolist()] == wanted
