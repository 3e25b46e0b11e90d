"""Both sides find the same, and the line says which was quicker and what memory it took."""

import numpy as np
import pytest

from align_jax.errors import UserError
from benchmarks import common
from benchmarks.mining import Options, clusters, exponent, make_pairs, published_loop, run
from tests.mining import reference


def test_sides_agree():
  for package in ('faiss-cpu', 'pymetis', 'torch'):
    if common.version(package) is None:
      pytest.skip(f'{package} is not installed')
  got = run(
    Options(
      queries=200,
      candidates=600,
      dim=16,
      k=9,
      rounds=1,
      pairs='300,600,900',
      loop_pairs=600,
      negatives=3,
      mult=2,
    )
  )
  search = got['search']
  assert search['same_sets'] > 0.999 and search['largest_difference'] < 1e-5
  assert search['ratio']['rounds'] == 1
  for count in ('300', '600'):
    case = got['clusters'][count]
    assert case['same'] > 0.98
    for kind in ('seconds', 'cpu_seconds'):
      assert set(case[kind]) == {'ours', 'peer', 'numpy', 'b3', 'saha_mutual'}
  assert set(got['clusters']['900']['seconds']) == {'ours', 'b3', 'saha_mutual'}
  for kind in ('growth', 'cpu_growth'):
    assert set(got['clusters'][kind]) == {'ours', 'peer', 'numpy', 'b3', 'saha_mutual'}


def test_the_exponent_is_fitted():
  counts = np.array([50e3, 100e3, 400e3])
  assert exponent(counts, 3 * counts**1.5) == pytest.approx(1.5)
  assert 1 < exponent([1, 2, 4], [1, 2, 5]) < 1.3


def test_parts_can_be_left_out():
  got = run(Options(queries=0, pairs=''))
  assert 'search' not in got and 'clusters' not in got
  with pytest.raises(UserError, match='--strategies'):
    clusters(Options(strategies='b4'))


def test_the_peer_is_the_published_algorithm():
  pairs, _, pool = make_pairs(200, Options(dim=8, negatives=3, mult=2))
  assert np.bincount(pairs.query).max() == 1
  wanted = reference.saha(pairs.queries, pairs.candidates, pairs.query, pairs.candidate, pool, 3, 2)
  for kind in ('torch', 'numpy'):
    if kind == 'numpy' or common.version('torch'):
      found = published_loop(pairs, pool, 3, 2, kind)
      assert sum(a == b for a, b in zip(found, wanted, strict=True)) >= len(wanted) - 1
