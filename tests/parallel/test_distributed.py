"""How a process learns what run it belongs to, and how soon it misses a dead one."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from align_jax.errors import RESTART_EXIT_CODE, UserError
from align_jax.parallel import distributed
from align_jax.parallel.distributed import (
  COORDINATOR,
  PROCESS_ID,
  PROCESSES,
  Cluster,
  DistributedConfig,
  find_cluster,
)

ROOT = Path(__file__).parent.parent.parent
FLAGS = {'coordinator': 'host:1234', 'processes': 4, 'process_id': 2}
OWN = {COORDINATOR: '127.0.0.1:99', PROCESSES: '2', PROCESS_ID: '1'}
STEP = {'SLURM_JOB_ID': '7', 'SLURM_STEP_NODELIST': 'n[1-2]', 'SLURM_NTASKS': '16'}
STEP |= {'SLURM_STEP_NUM_TASKS': '16', 'SLURM_PROCID': '3', 'SLURM_LOCALID': '3'}
GKE = {'TPU_WORKER_HOSTNAMES': 'a-0,a-1', 'TPU_WORKER_ID': '0'}
EXPLICIT = Cluster('host:1234', 4, 2, method='deactivate')
LOCAL = Cluster('127.0.0.1:99', 2, 1, method='deactivate')


@pytest.mark.parametrize(
  ('flags', 'environ', 'expected'),
  [
    ({}, {}, None),
    (FLAGS, {}, EXPLICIT),
    (FLAGS, {**OWN, **STEP, **GKE}, EXPLICIT),
    ({**FLAGS, 'processes': 1, 'process_id': 0}, {**OWN, **STEP}, None),
    ({}, OWN, LOCAL),
    ({}, {**OWN, **STEP, **GKE}, LOCAL),
    ({}, {**OWN, PROCESSES: '1', PROCESS_ID: '0'}, None),
    ({}, STEP, Cluster(method='slurm')),
    ({}, {**STEP, 'SLURM_NTASKS': '1', 'SLURM_STEP_NUM_TASKS': '1'}, None),
    # srun -n1 inside a larger job
    ({}, {**STEP, 'SLURM_STEP_NUM_TASKS': '1'}, None),
    # a batch script or salloc shell: no step
    ({}, {'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '16', 'SLURM_PROCID': '0'}, None),
    ({}, GKE, Cluster()),
    ({}, {**GKE, 'JAX_PLATFORMS': 'tpu,cpu'}, Cluster()),
    ({}, {**GKE, 'JAX_PLATFORMS': 'cpu'}, None),
    ({}, {'TPU_WORKER_HOSTNAMES': 'a-0'}, None),
    ({}, {'TPU_WORKER_HOSTNAMES': 'localhost', 'MEGASCALE_NUM_SLICES': '1'}, None),
    # several slices of one host each
    ({}, {'TPU_WORKER_HOSTNAMES': 'a-0', 'MEGASCALE_NUM_SLICES': '2'}, Cluster()),
    ({}, {'TPU_PROCESS_ADDRESSES': 'a-0:8471,a-1:8471'}, Cluster()),
  ],
)
def test_finds_the_run(flags, environ, expected):
  assert find_cluster(DistributedConfig(**flags), environ) == expected


@pytest.mark.parametrize(
  ('chips', 'hosts', 'expected'),
  [
    (True, 'w-0,w-1', Cluster()),
    # the older form of the attribute
    (True, 'unknown:unknown:10.0.0.1,unknown:unknown:10.0.0.2', Cluster()),
    (True, '10.0.0.1', None),
    (True, '', None),
    (False, 'w-0,w-1', None),
  ],
)
def test_a_tpu_vm_asks_its_metadata(chips, hosts, expected, monkeypatch):
  monkeypatch.setattr(distributed, '_has_tpu', lambda: chips)
  monkeypatch.setattr(distributed, '_tpu_vm_hosts', lambda environ: hosts)
  assert find_cluster(DistributedConfig(), {}) == expected


def test_metadata_that_nobody_serves_means_alone():
  with socket.socket() as taken:  # bound, not listening
    taken.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{taken.getsockname()[1]}'
    assert distributed._tpu_vm_hosts({'GCE_METADATA_IP': address}) == ''


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    ({'coordinator': 'host:1'}, '--processes, --process_id: missing; set --coordinator'),
    ({'processes': 2}, '--coordinator, --process_id: missing'),
    ({**FLAGS, 'coordinator': 'host'}, "--coordinator: 'host' is no HOST:PORT"),
    ({**FLAGS, 'coordinator': 'host:99999'}, "--coordinator: 'host:99999' is no HOST:PORT"),
    ({**FLAGS, 'processes': 0}, '--processes: must be 1 or more'),
    ({**FLAGS, 'process_id': 4}, '--process_id: 4 is not one of 0 to 3'),
    ({'heartbeat_seconds': 1}, '--heartbeat_seconds: must be 5 or more'),
    ({'start_seconds': 0}, '--start_seconds: must be 1 or more'),
  ],
)
def test_wrong_flags_are_named(flags, message):
  with pytest.raises(UserError, match=f'^{message}'):
    DistributedConfig(**flags)


@pytest.mark.parametrize(
  ('environ', 'message'),
  [
    ({PROCESSES: '2'}, f'{COORDINATOR}, {PROCESS_ID}: missing'),
    ({**OWN, PROCESSES: 'two'}, f"{PROCESSES}: 'two' is no number"),
    ({**OWN, PROCESS_ID: '2'}, f'{PROCESS_ID}: 2 is not one of 0 to 1'),
    ({**STEP, 'SLURM_STEP_NUM_TASKS': 'x'}, "SLURM_NTASKS: 'x' is no number"),
  ],
)
def test_a_wrong_environment_is_named(environ, message):
  with pytest.raises(UserError, match=f'^{message}'):
    find_cluster(DistributedConfig(), environ)


def test_the_restart_code_means_nothing_else():
  # traceback, bad input, sysexits.h, interrupted, deaths by signal
  assert RESTART_EXIT_CODE not in {0, 1, 2, *range(64, 79), 130, *range(126, 256)}


def test_names_can_be_had_without_jax():
  code = 'import sys, align_jax.parallel.distributed; sys.exit("jax" in sys.modules)'
  subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True, timeout=60)


HEARTBEAT = 10
PROGRAM = f"""
import os, sys, time
from align_jax.parallel.distributed import DistributedConfig, initialize
config = DistributedConfig('127.0.0.1:' + sys.argv[1], 2, int(sys.argv[2]),
                           heartbeat_seconds={HEARTBEAT}, start_seconds=60)
assert initialize(config) and initialize(config), 'a second call changes nothing'
import jax
assert jax.process_count() == 2
print('joined', flush=True)
if sys.argv[3] == 'raises' and sys.argv[2] == '1':
  raise ValueError('boom')
time.sleep(999)
"""


def pair(how):
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    port = probe.getsockname()[1]
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', PROGRAM, str(port), str(i), how],
      cwd=ROOT,
      env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  for process in processes:
    assert process.stdout is not None
    assert process.stdout.readline() == 'joined\n'
  return processes


@pytest.mark.parametrize('dead', [0, 1])
def test_a_killed_process_ends_the_other_with_a_message(dead):
  processes = pair('sleeps')
  processes[dead].kill()
  began = time.monotonic()
  _, err = processes[1 - dead].communicate(timeout=4 * HEARTBEAT)
  assert time.monotonic() - began < 2 * HEARTBEAT
  assert processes[1 - dead].returncode == -signal.SIGABRT
  assert 'another task died' in err
  processes[dead].wait()


def test_a_process_that_raises_ends_the_other():
  processes = pair('raises')
  began = time.monotonic()
  _, err = processes[0].communicate(timeout=4 * HEARTBEAT)
  assert time.monotonic() - began < 2 * HEARTBEAT
  assert processes[0].returncode == -signal.SIGABRT
  assert 'another task died' in err
  _, err = processes[1].communicate(timeout=HEARTBEAT)
  assert 'ValueError: boom' in err


def test_alone_nothing_is_started():
  code = (
    'from align_jax.parallel.distributed import initialize; import jax; '
    'assert not initialize(environ={}) and not jax.distributed.is_initialized()'
  )
  subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True, timeout=60)
