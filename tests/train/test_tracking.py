"""Weights & Biases without a network: the real package, its files read back."""

import importlib.util
import struct

import pytest

from align_jax.errors import Preempted, UserError
from align_jax.objectives import make_objective
from align_jax.train import loop
from align_jax.train.journal import Observe
from align_jax.train.metrics import read_metrics
from align_jax.train.tracking import ID_FILE, Tracker, TrackingConfig
from tests import tiny

BLOCK, HEAD = 1 << 15, 7  # of LevelDB's log format, which their files are in
WHOLE, LAST = 1, 4  # kinds of fragments that end a record


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
  monkeypatch.setenv('WANDB_MODE', 'offline')
  monkeypatch.setenv('WANDB_ERROR_REPORTING', 'false')


def records(path):
  """What an offline run has put down for the upload."""
  from wandb.proto import wandb_internal_pb2

  data = path.read_bytes()
  assert data[:4] == b':W&B'
  at, record = HEAD, b''
  while at + HEAD <= len(data):
    room = BLOCK - at % BLOCK
    if room < HEAD:
      at += room
      continue
    _, size, kind = struct.unpack('<IHB', data[at : at + HEAD])
    record += data[at + HEAD : at + HEAD + size]
    at += HEAD + size
    if kind in (WHOLE, LAST):
      yield wandb_internal_pb2.Record.FromString(record)
      record = b''


def offline_runs(folder):
  """Of each start: the run's record, and its history as (step, names of the numbers)."""
  out = []
  for path in sorted(folder.glob('wandb/offline-run-*/*.wandb')):
    found = list(records(path))
    (run,) = [r.run for r in found if r.WhichOneof('record_type') == 'run']
    rows = [r.history.item for r in found if r.WhichOneof('record_type') == 'history']
    history = [{i.key or '/'.join(i.nested_key): i.value_json for i in row} for row in rows]
    out.append((run, [(int(row.pop('_step')), set(row)) for row in history]))
  return out


def test_a_run_that_goes_on_is_the_same_one_there(tmp_path, monkeypatch):
  photos = f'folder:{tiny.photo_folder(tmp_path / "photos")}'
  folder = tmp_path / 'my-run'
  config = tiny.config(photos, eval={'every': 2, 'data': photos})
  observe = Observe(tracking=TrackingConfig('a-team/a-project', 'offline'))

  def go():
    loop.train(
      config,
      make_objective(config.objective),
      folder,
      evaluate=lambda params: {'retrieval.t2i.r1': 0.5},
      observe=observe,
    )

  put, sent = loop.put_batch, []

  def stop(batch, mesh):
    sent.append(len(sent))
    if len(sent) == 4:
      raise Preempted('told to stop')
    return put(batch, mesh)

  monkeypatch.setattr(loop, 'put_batch', stop)
  with pytest.raises(Preempted):
    go()
  go()
  (first, before), (second, after) = offline_runs(folder)
  assert first.run_id == second.run_id == (folder / ID_FILE).read_text()
  assert (first.entity, first.project, first.display_name) == ('a-team', 'a-project', 'my-run')
  assert {'seed', 'steps', 'model'} <= {u.key for u in first.config.update}
  assert [step for step, _ in before] == [2]
  assert [step for step, _ in after] == [4, 6]
  written = {key for line in read_metrics(folder) for key in line} - {'step'}
  assert written <= set().union(*(keys for _, keys in [*before, *after]))


def test_steps_never_go_back_and_what_is_no_number_is_left_out(tmp_path):
  tracker = Tracker(TrackingConfig('a-project', 'offline'), tmp_path, {'steps': 3})
  tracker.write(2, {'loss': float('nan'), 'grad_norm': 1.0})
  tracker.write(1, {'loss': 5.0})
  tracker.write(2, {'score': 0.5})
  tracker.close()
  ((_, history),) = offline_runs(tmp_path)
  ((step, keys),) = history
  assert step == 2 and {'grad_norm', 'score'} <= keys and 'loss' not in keys


def test_a_missing_package_is_said_at_once(monkeypatch):
  real = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util, 'find_spec', lambda name: None if name == 'wandb' else real(name)
  )
  with pytest.raises(UserError, match=r"pip install 'align_jax\[wandb\]'"):
    TrackingConfig('a-project', 'offline')
