"""Several processes judge a checkpoint together: none waits for one that could not read it."""

import os
import subprocess
import sys

import jax
import numpy as np

from align_jax.parallel.mesh import MeshConfig, make_mesh
from align_jax.train.checkpoints import Checkpoints, load_params
from tests.train.test_state import _setup

SCRIPT = """
import dataclasses, sys
from pathlib import Path
from align_jax.parallel.distributed import DistributedConfig, initialize
initialize(DistributedConfig(heartbeat_seconds=10, start_seconds=120))
import jax
import orbax.checkpoint as ocp
from align_jax.parallel.mesh import MeshConfig, make_mesh
from align_jax.train.checkpoints import Checkpoints
from tests.train.test_state import _setup

folder = Path(sys.argv[1])
state, _ = _setup(make_mesh(MeshConfig(1, 2, 2)), ema=0.9)
onwards = jax.jit(lambda s: dataclasses.replace(
  s, step=s.step + 1, learn={n: 2 * p for n, p in s.learn.items()}))
saved = Checkpoints(folder)
for _ in range(2):
  state = onwards(state)
  saved.save(state, {'at': int(state.step)})
saved.close()

real = ocp.StandardCheckpointHandler.restore
def fails(self, directory, *args, **kwargs):
  if jax.process_index() == 1 and directory.parent.name == '2':
    raise OSError(5, 'Input/output error')
  return real(self, directory, *args, **kwargs)
ocp.StandardCheckpointHandler.restore = fails
run = Checkpoints(folder)
state, position = run.restore(state)
print('goes on after', int(state.step), position)
run.save(onwards(state), {'at': 2})
run.close()
"""


def test_what_one_process_cannot_read_all_pass_over(tmp_path):
  command = [sys.executable, '-m', 'launch.local', '--processes=2', '--devices=2', '--']
  done = subprocess.run(
    [*command, sys.executable, '-c', SCRIPT, str(tmp_path)],
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': os.getcwd()},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    timeout=240,
  )
  assert done.returncode == 0, done.stdout
  assert done.stdout.count("goes on after 1 {'at': 1}") == 2
  newest = tmp_path / 'checkpoints/2'
  assert f'process 1: {newest}: it cannot be read: [Errno 5] Input/output error' in done.stdout
  said = f'{newest}: damaged, process 1 could not read it; now damaged-2, step 1 is used'
  assert done.stdout.count(said) == 1
  # one process with one device verifies what two with two each have saved
  fresh, _ = _setup(make_mesh(MeshConfig(), jax.devices()[:1]), ema=0.9)
  restored, position = Checkpoints(tmp_path).restore(fresh)
  assert position == {'at': 2}
  params = load_params(tmp_path)
  assert all(np.array_equal(params[n], 4 * p) for n, p in fresh.learn.items())
  assert all(np.array_equal(params[n], p) for n, p in restored.params.items())
