"""What befalls a run, at which moment, and how it ends: the table of docs/launching.md, tested.

Beside it: kills at moments nobody chose (test_loop.py), signals and deaths among several processes
(test_processes.py), a disk that fills up by itself (test_full_disk.py), single records that are
skipped (test_loop.py), every kind of damage to every file of a checkpoint (test_checkpoints.py),
and what launchers make of exit codes (tests/launch/test_restarts.py).
"""

import contextlib
import dataclasses
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.errors import RESTART_EXIT_CODE, Preempted, UserError
from align_jax.objectives import make_objective
from align_jax.train import loop
from align_jax.train.checkpoints import Checkpoints, load_params
from align_jax.train.loop import train
from align_jax.train.metrics import read_metrics
from tests import tiny
from tests.train import disk

STEPS, STRIKES = 6, 4  # checkpoints and evaluations after steps 2, 4 and 6

SAVES = f'exit {RESTART_EXIT_CODE}; run again, it ends as if nothing had been'
KILLED = 'killed; run again, it ends as if nothing had been'
STANDS = 'one line, exit 2; mended and run again, it ends as if nothing had been'
BEFORE = 'named, set aside, the one before is used; it ends as if nothing had been'
REFUSED = 'one line, exit 2, nothing is touched; with a copy of one it ends as if nothing had been'

# What happens, when it does (step: while it is computed, after which a checkpoint and an evaluation
# are due; save: just before it; write: while it goes to disk), what becomes of it.
TABLE = [
  ('SIGTERM', 'data', SAVES),
  ('SIGTERM', 'step', SAVES),
  ('SIGTERM', 'eval', SAVES),
  ('SIGTERM', 'write', SAVES),
  ('SIGKILL', 'write', KILLED),
  ('the disk is full', 'eval', STANDS),
  ('the disk is full', 'save', STANDS),
  ('records are corrupt', 'data', STANDS),
  ('the loss is not finite', 'step', STANDS),
  ('the newest checkpoint is cut short', 'start', BEFORE),
  ('the newest checkpoint has a flipped byte', 'start', BEFORE),
  ('the newest data position has a flipped byte', 'start', BEFORE),
  ('all checkpoints have a flipped byte', 'start', REFUSED),
]


def run_config(photos):
  return tiny.config(
    f'folder:{photos}',
    steps=STEPS,
    log_every=1,
    model=tiny.SMALL_MODEL,
    eval={'every': 2, 'data': f'folder:{photos}'},
  )


@functools.cache
def shared_plan(real=loop.plan):
  """One for all runs here, so that the step is traced once; on one device, which saves faster."""
  config = run_config('nowhere')
  return real(config, make_objective(config.objective), jax.devices()[:1])


class FreshStates:
  """`create_state`, run once: the others get copies, since a step takes its state's memory."""

  def __init__(self):
    self._real, self._first = loop.create_state, None

  def __call__(self, *args, **options):
    self._first = self._first or self._real(*args, **options)
    return jax.tree.map(jnp.copy, self._first)


fresh_state = FreshStates()


@dataclasses.dataclass
class Run:
  """A run whose moments a test can strike.

  Attributes:
    photos: the folder its data are in.
    folder: its run folder.
    strike: called at every moment of every step.
  """

  photos: Path
  folder: Path
  strike: Callable[[str, int], None] = lambda moment, step: None
  poison: bool = False  # makes the loss of the struck step NaN

  def train(self):
    """Trains to the end with `strike` in place. Returns the parameters."""
    config = run_config(self.photos)
    done = 0

    def evaluate(params):
      self.strike('eval', done)
      return {'score': float(np.sum([np.asarray(p, np.float64).sum() for p in params.values()]))}

    real_iterator, real_save = loop.make_iterator, Checkpoints.save

    def plan(*args):
      planned = shared_plan()

      def step(state, batch):
        nonlocal done
        state, metrics = planned.step(state, batch)
        done += 1
        self.strike('step', done)
        if self.poison and done == STRIKES:
          with jax.transfer_guard('allow'):
            metrics = {**metrics, 'loss': metrics['loss'] * np.nan}
        return state, metrics

      return dataclasses.replace(planned, step=step)

    def make_iterator(*args):
      batches = real_iterator(*args)
      real_next = batches.__next__
      run = self

      class Struck:
        get_state, set_state = batches.get_state, batches.set_state

        def __next__(self):
          nonlocal done
          run.strike('data', done + 1)
          return real_next()

      return Struck()

    def save(checkpoints, state, data):
      self.strike('save', done)
      real_save(checkpoints, state, data)
      self.strike('write', done)

    def restore(checkpoints, state):
      nonlocal done
      found = real_restore(checkpoints, state)
      done = int(found[0].step) if found else 0
      return found

    real_restore = Checkpoints.restore
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(loop, 'plan', plan)
      patch.setattr(loop, 'create_state', fresh_state)
      patch.setattr(loop, 'make_iterator', make_iterator)
      patch.setattr(Checkpoints, 'save', save)
      patch.setattr(Checkpoints, 'restore', restore)
      return train(config, make_objective(config.objective), self.folder, evaluate=evaluate)

  def end(self):
    """Trains, and returns exit code and message as `cli.run` makes them of what is raised."""
    try:
      self.train()
    except Preempted as notice:
      return RESTART_EXIT_CODE, str(notice)
    except (UserError, OSError) as error:
      return 2, str(error)
    return 0, ''

  def result(self):
    """Every number that the run left behind: parameters, losses, evaluations."""
    lines = read_metrics(self.folder)
    losses = [(m['step'], m['loss'], m['grad_norm']) for m in lines if 'loss' in m]
    return (
      load_params(self.folder),
      losses,
      [(m['step'], m['score']) for m in lines if 'score' in m],
    )


def at(moment, folder, action):
  """A strike: does something at one moment of one step, once, when the save before is on disk."""
  struck = []

  def strike(now, step):
    if (now, step) == (moment, STRIKES) and not struck:
      struck.append(step)
      deadline = time.monotonic() + 60
      while Checkpoints(folder).latest() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
      action()

  return strike


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  return tiny.photo_folder(tmp_path_factory.mktemp('photos'))


@pytest.fixture(scope='module')
def undisturbed(photos, tmp_path_factory):
  run = Run(photos, tmp_path_factory.mktemp('undisturbed'))
  assert run.end() == (0, '')
  return run.result()


@pytest.fixture(scope='module')
def halfway(photos, tmp_path_factory):
  """A run folder with the checkpoints of steps 2 and 4, and a while of training after them."""
  folder = tmp_path_factory.mktemp('halfway')

  class Stop(Exception):
    pass

  def strike(moment, step):
    if (moment, step) == ('data', 6):
      raise Stop

  with contextlib.suppress(Stop):
    Run(photos, folder, strike).train()
  return folder


@pytest.fixture
def run(photos, tmp_path):
  return Run(photos, tmp_path / 'run')


@pytest.mark.parametrize(
  ('fault', 'moment', 'outcome'), TABLE, ids=[f'{fault}-{moment}' for fault, moment, _ in TABLE]
)
def test_what_happens_when(fault, moment, outcome, run, undisturbed, request):
  test = {SAVES: told, KILLED: killed, STANDS: mended, BEFORE: damaged, REFUSED: all_damaged}
  test[outcome](fault, moment, run, request.getfixturevalue)
  run.strike, run.poison = (lambda moment, step: None), False
  assert run.end() == (0, '')
  params, losses, scores = run.result()
  expected = undisturbed
  assert params.keys() == expected[0].keys()
  assert all(np.array_equal(params[n], p) for n, p in expected[0].items())
  assert losses == expected[1]
  assert scores == expected[2]


def told(fault, moment, run, fixture):
  """A notice to stop: what is under way is finished and saved."""
  run.strike = at(moment, run.folder, lambda: os.kill(os.getpid(), signal.SIGTERM))
  code, message = run.end()
  assert code == RESTART_EXIT_CODE
  assert message.startswith('train: told to stop; saved after step ')
  assert Checkpoints(run.folder).latest() == int(message.split('step ')[1].split(',')[0])


def mended(fault, moment, run, fixture):
  """What a person has to mend: the checkpoint before it stands."""
  if fault == 'the disk is full':
    run.folder = fixture('small_disk') / 'run'
    mend = fill_up(run, moment)
  elif fault == 'records are corrupt':
    mend = corrupt_all(run, moment)
  else:
    run.poison, mend = True, lambda: None
  code, message = run.end()
  assert code == 2
  assert '\n' not in message
  wanted = {
    'the disk is full': r'disk is full|No space left',
    'records are corrupt': r'records skipped: corrupt',
    'the loss is not finite': rf'loss is nan, .* at step {STRIKES}, records',
  }
  assert re.search(wanted[fault], message)
  # batches are made ahead: those of before the records went bad are still trained on
  assert Checkpoints(run.folder).latest() in ((2, 4) if moment == 'data' else (2,))
  mend()


def fill_up(run, moment):
  filler = run.folder.parent / 'filler'

  def fill():
    with contextlib.suppress(OSError), filler.open('wb', buffering=0) as file:
      while True:
        file.write(bytes(4096))

  run.strike = at(moment, run.folder, fill)
  return filler.unlink


@pytest.fixture
def small_disk(tmp_path):
  with disk.small_disk(tmp_path / 'disk', mebibytes=16) as folder:
    yield folder


def corrupt_all(run, moment):
  whole = run.photos
  run.photos = run.folder.parent / 'photos'
  shutil.copytree(whole, run.photos)

  def cut():
    for path in run.photos.rglob('*.jpg'):
      path.write_bytes(path.read_bytes()[:100])

  run.strike = at(moment, run.folder, cut)
  return lambda: shutil.copytree(whole, run.photos, dirs_exist_ok=True)


def damaged(fault, moment, run, fixture):
  """A damaged newest checkpoint; the run that follows says so and goes on from the one before."""
  shutil.copytree(fixture('halfway'), run.folder)
  newest = run.folder / 'checkpoints/4'
  path = newest / 'data/metadata' if 'position' in fault else arrays_of(newest)
  if 'cut short' in fault:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  else:
    flip(path)
  capture = fixture('capsys')
  capture.readouterr()
  assert run.end() == (0, '')
  said = capture.readouterr()
  assert 'train: goes on after step 2' in said.out
  (line,) = [x for x in said.err.splitlines() if 'damaged' in x]
  assert line.startswith(f'{newest}: damaged, ')
  assert line.endswith('now damaged-4, step 2 is used')
  names = {p.name for p in (run.folder / 'checkpoints').iterdir()}
  assert names == {'2', '4', '6', 'damaged-4'}


def all_damaged(fault, moment, run, fixture):
  """Nothing is whole: training never begins anew by itself."""
  shutil.copytree(fixture('halfway'), run.folder)
  for step in (2, 4):
    flip(arrays_of(run.folder / f'checkpoints/{step}'))
  before = sorted(run.folder.rglob('*'))
  code, message = run.end()
  assert code == 2
  assert 'no checkpoint is whole: 4 (' in message and '\n' not in message
  assert [p for p in sorted(run.folder.rglob('*')) if 'checkpoints' in str(p)] == [
    p for p in before if 'checkpoints' in str(p)
  ]
  shutil.rmtree(run.folder / 'checkpoints/2')
  shutil.copytree(fixture('halfway') / 'checkpoints/2', run.folder / 'checkpoints/2')


def arrays_of(checkpoint):
  """A file that is needed to read the parameters."""
  (path,) = (checkpoint / 'model/d').iterdir()
  return path


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 0x10
  path.write_bytes(data)


KILL = """
import tests.conftest
import os, signal, sys
from pathlib import Path
from tests.train.test_faults import Run, at
photos, folder, moment = sys.argv[1:]
kill = at(moment, Path(folder), lambda: os.kill(os.getpid(), signal.SIGKILL))
Run(Path(photos), Path(folder), kill).train()
"""


def killed(fault, moment, run, fixture):
  """A kill -9 of the process itself."""
  done = subprocess.run(
    [sys.executable, '-W', 'ignore', '-c', KILL, str(run.photos), str(run.folder), moment],
    cwd=Path(__file__).parents[2],
    timeout=240,
  )
  assert done.returncode == -signal.SIGKILL
  assert Checkpoints(run.folder).latest() in (2, 4)
