"""All forms give one loss; memory is measured, and its growth fitted."""

import numpy as np
import pytest

from benchmarks import common, contrastive_loss
from benchmarks.contrastive_loss import Options

TINY = Options(min_batch=64, max_batch=64, dim=16, rows=4, rounds=1)


@pytest.mark.parametrize('kind', contrastive_loss.OURS)
def test_ours(kind):
  got = contrastive_loss.ours(kind, TINY, execute=True)
  expected = contrastive_loss.ours('plain', TINY, execute=True)['loss']
  np.testing.assert_allclose(got['loss'], expected, rtol=1e-5)
  assert got['compiled_bytes'] > 0 and got['seconds'] > 0 and got['rss_bytes'] >= 0


@pytest.mark.parametrize('kind', contrastive_loss.PEERS)
def test_peers(kind):
  pytest.importorskip('torch')
  if common.version('open_clip_torch') is None:
    pytest.skip('open_clip_torch is not installed')
  got = contrastive_loss.peer(kind, TINY)
  expected = contrastive_loss.ours('plain', TINY, execute=True)['loss']
  np.testing.assert_allclose(got['loss'], expected, rtol=1e-5)


def test_nothing_runs_where_only_memory_is_asked_for():
  assert set(contrastive_loss.ours('rows', TINY, execute=False)) == {'compiled_bytes'}


def test_exponent_of_a_power():
  assert contrastive_loss.exponent({n: 3.0 * n**2 for n in (10, 20, 40)}) == 2.0
  assert contrastive_loss.exponent({10: 5.0}) is None
