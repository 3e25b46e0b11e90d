"""Both sides agree, and the line says which was quicker and what memory it took."""

import pytest

from benchmarks import common
from benchmarks.similarity import Options, run


def test_sides_agree():
  if common.version('faiss-cpu') is None:
    pytest.skip('faiss-cpu is not installed')
  got = run(Options(generated=600, real=200, dim=16, nearest=3, categories='1,20', rounds=1))
  for case in got['by_categories'].values():
    for figure in ('nearest', 'mean'):
      assert case[figure]['largest_difference'] < 1e-5
      assert case[figure]['ratio']['rounds'] == 1
  assert set(got['rss_bytes']) == {'ours', 'peer'}
