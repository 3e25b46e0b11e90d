"""Both sides read the folder that was written, and the figures are of that model."""

import pytest

from benchmarks import import_weights
from benchmarks.import_weights import Options

pytest.importorskip('torch')


def test_both_sides_read_the_same_model(tmp_path):
  got = import_weights.run(Options(model='Ti/32', devices=2, rounds=1, folder=str(tmp_path)))
  ours, peer = got['ours'], got['peer']
  assert ours['parameters_gib'] == peer['parameters_gib']
  # parameters and both of Adam's moments
  assert ours['state_gib']['median'] == pytest.approx(3 * ours['parameters_gib']['median'], 1e-3)
  assert ours['read_seconds']['median'] > 0 < peer['read_seconds']['median']
  assert got['met'] is (got['beyond_gib'] <= got['target_gib'])
  assert not list(tmp_path.iterdir()), 'the files are removed'
