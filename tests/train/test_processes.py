"""Several real processes are one run: over loopback, through signals, with other numbers."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from align_jax.errors import RESTART_EXIT_CODE
from align_jax.train.checkpoints import load_params
from align_jax.train.metrics import read_metrics
from tests import tiny

STEPS = 24
# a process's share of the batch is a chunk of the stream, so that any number of processes draws
# the same batches (tests/data/test_position.py)
BATCH = 64

SCRIPT = """
import os, sys
from pathlib import Path
from align_jax.cache import keep_compiled_programs
from align_jax.parallel.distributed import DistributedConfig, initialize
initialize(DistributedConfig(heartbeat_seconds=10, start_seconds=120))
keep_compiled_programs()
import jax
from align_jax.errors import Preempted
from align_jax.objectives import make_objective
from align_jax.train.loop import train
from tests import tiny
from tests.train.test_processes import config
photos, folder, fsdp = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
folder.mkdir(parents=True, exist_ok=True)
(folder / f'pid-{jax.process_index()}').write_text(str(os.getpid()))
made = config(photos, fsdp)
try:
  train(made, make_objective(made.objective), folder)
except Preempted as notice:
  print(notice)
  sys.exit(42)
"""


def config(photos, fsdp):
  return tiny.config(
    photos,
    steps=STEPS,
    batch_size=BATCH,
    log_every=1,
    model=tiny.SMALL_MODEL,
    mesh={'data': -1, 'fsdp': fsdp},
    compute={'loss': 'ring', 'micro_batch': 8},
    checkpoint={'every': 8, 'keep': 5},
  )


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  return f'folder:{tiny.photo_folder(tmp_path_factory.mktemp("photos"), each=12)}'


def start(photos, folder, processes, devices, fsdp=2):
  command = [sys.executable, '-m', 'launch.local', f'--processes={processes}']
  command += [f'--devices={devices}', '--grace_seconds=20', '--']
  command += [sys.executable, '-c', SCRIPT, photos, str(folder), str(fsdp)]
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': os.getcwd()}
  return subprocess.Popen(
    command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
  )


def finish(process, seconds=240):
  out, _ = process.communicate(timeout=seconds)
  return process.returncode, out.decode()


def wait_for_step(folder, step, process, seconds=240):
  deadline = time.monotonic() + seconds
  while not any(m['step'] >= step for m in read_metrics(folder)):
    assert process.poll() is None, finish(process)
    assert time.monotonic() < deadline
    time.sleep(0.02)


def losses(folder):
  return {m['step']: m['loss'] for m in read_metrics(folder)}


@pytest.fixture(scope='module')
def whole(photos, tmp_path_factory):
  """Two processes of two devices each, never disturbed."""
  folder = tmp_path_factory.mktemp('whole')
  code, out = finish(start(photos, folder, 2, 2))
  assert code == 0, out
  return folder


def test_two_processes_train_what_one_does(photos, whole, tmp_path):
  code, out = finish(start(photos, tmp_path, 1, 4, fsdp=1))
  assert code == 0, out
  alone, together = losses(tmp_path), losses(whole)
  assert sorted(together) == list(range(1, STEPS + 1))
  np.testing.assert_allclose(
    [together[s] for s in sorted(together)], [alone[s] for s in sorted(alone)], rtol=1e-5
  )


@pytest.fixture(scope='module')
def stopped(photos, tmp_path_factory):
  """Two processes of two devices each, told to stop on the way."""
  folder = tmp_path_factory.mktemp('stopped')
  process = start(photos, folder, 2, 2)
  wait_for_step(folder, 3, process)
  process.send_signal(signal.SIGTERM)
  code, out = finish(process)
  assert code == RESTART_EXIT_CODE, out
  assert 'told to stop; saved after step' in out
  return folder


def test_told_to_stop_and_killed_it_ends_as_if_it_never_was(photos, whole, stopped, tmp_path):
  shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
  process = start(photos, tmp_path, 2, 2)
  wait_for_step(tmp_path, 14, process)
  os.kill(int((tmp_path / 'pid-1').read_text()), signal.SIGKILL)
  code, out = finish(process, 90)  # it does not hang
  assert code == 128 + signal.SIGKILL, out

  code, out = finish(start(photos, tmp_path, 2, 2))
  assert code == 0, out
  got, want = load_params(tmp_path), load_params(whole)
  assert all(np.array_equal(got[name], want[name]) for name in want)
  assert losses(tmp_path) == losses(whole)


@pytest.mark.parametrize(('processes', 'devices', 'fsdp'), [(1, 4, 4), (4, 1, 2)])
def test_goes_on_with_other_processes_and_another_mesh(
  photos, whole, stopped, tmp_path, processes, devices, fsdp
):
  shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
  code, out = finish(start(photos, tmp_path, processes, devices, fsdp))
  assert code == 0, out
  got, want = losses(tmp_path), losses(whole)
  np.testing.assert_allclose(
    [got[s] for s in sorted(got)], [want[s] for s in sorted(want)], rtol=1e-5
  )
