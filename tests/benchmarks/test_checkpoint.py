"""All kinds write the whole state, and what they restore equals it bit for bit."""

import pytest

from benchmarks import checkpoint
from benchmarks.checkpoint import Options

pytest.importorskip('torch')


def test_every_kind_saves_and_restores(tmp_path):
  got = checkpoint.run(Options(gib=0.003, arrays=3, rounds=1, folder=str(tmp_path), step_ms=1.0))
  assert got['restored_equal'] == {'ours': True, 'torch.save': True, 'safetensors': True}
  assert 0.002 < got['gib'] < 0.004
  for kind in ('blocking', 'torch.save', 'safetensors'):
    for what in ('save', 'stall', 'restore'):
      assert got[kind][f'{what}_seconds_per_gib']['median'] > 0
  asynchronous = got['asynchronous']
  returns = asynchronous['save_returns_seconds_per_gib']['median']
  assert 0 < returns <= asynchronous['save_seconds_per_gib']['median']
  assert returns <= asynchronous['stall_seconds_per_gib']['median']
  assert not list(tmp_path.iterdir()), 'the files are removed'
