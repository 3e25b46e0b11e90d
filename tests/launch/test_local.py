"""`python -m launch.local` with real processes: JAX ones over loopback, and small shell scripts."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from align_jax.errors import RESTART_EXIT_CODE
from align_jax.parallel.distributed import COORDINATOR

ROOT = Path(__file__).parent.parent.parent
BOUND = 60  # seconds, for all that should take a few on a machine that has other work

# What a run does, without a model: joins, sums over all devices; then what the test wants.
JOIN = """
import os, signal, sys, time
from align_jax.errors import RESTART_EXIT_CODE
from align_jax.parallel.distributed import DistributedConfig, initialize
several = initialize(DistributedConfig(heartbeat_seconds=10, start_seconds=60))
import jax, jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

devices = NamedSharding(Mesh(np.array(jax.devices()), ('d',)), PartitionSpec('d'))
mine = np.full(jax.local_device_count(), 1.0 + jax.process_index(), np.float32)
sum_all = jax.jit(jnp.sum)

def total():
  return float(sum_all(jax.make_array_from_process_local_data(devices, mine)))

print(f'several={several} processes={jax.process_count()} devices={jax.device_count()} '
      f'sum={total():g}', flush=True)
"""
# A training loop: at SIGTERM to any process, all leave at the same step.
LOOP = """
for step in range(10_000):
  total()
  if multihost_utils.reached_preemption_sync_point(step):
    print(f'saved at step {step}', flush=True)
    sys.exit(RESTART_EXIT_CODE)
  time.sleep(0.05)
"""


def start(flags, *command):
  environment = {
    k: v for k, v in os.environ.items() if not k.startswith(('JAX_', 'XLA_', 'ALIGN_'))
  }
  return subprocess.Popen(
    [sys.executable, '-m', 'launch.local', *flags, '--', *command],
    cwd=ROOT,
    env={**environment, 'JAX_PLATFORMS': 'cpu'},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(process):
  """(exit code, standard output, what the launcher itself said)."""
  out, err = process.communicate(timeout=BOUND)
  said = [line for line in err.splitlines() if line.startswith('launch.local: ')]
  return process.returncode, out, '\n'.join(said), err


def bash(flags, script):
  return start(flags, 'bash', '-c', f'i=$ALIGN_JAX_PROCESS_ID; {script}')


@pytest.mark.parametrize(
  ('processes', 'devices', 'total'), [(1, 2, 2), (2, 2, 6), (4, 1, 10)], ids=str
)
def test_processes_sum_over_all_devices_and_agree(processes, devices, total):
  flags = [f'--processes={processes}', f'--devices={devices}']
  code, out, said, err = finish(start(flags, 'python', '-c', JOIN))
  assert code == 0, err
  assert not said
  line = f'several={processes > 1} processes={processes} devices={processes * devices} sum={total}'
  ours = [x for x in out.splitlines() if 'several' in x]
  assert sorted(ours) == [f'[{i}] {line}' for i in range(processes)]


def test_a_killed_process_ends_the_others_and_is_named():
  kill = '\nif jax.process_index() == 1: os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(999)'
  began = time.monotonic()
  code, _, said, _ = finish(
    start(['--processes=2', '--grace_seconds=3'], 'python', '-c', JOIN + kill)
  )
  assert code == 128 + signal.SIGKILL
  assert 'process 1 was killed by SIGKILL; ends process 0' in said
  assert time.monotonic() - began < 40


def test_sigterm_reaches_all_and_they_save_at_the_same_step():
  process = start(['--processes=2', '--restarts=5'], 'python', '-c', JOIN + LOOP)
  assert process.stdout is not None
  while 'several' not in process.stdout.readline():
    pass
  time.sleep(0.5)
  process.send_signal(signal.SIGTERM)
  code, out, said, err = finish(process)
  assert code == RESTART_EXIT_CODE, err
  assert 'SIGTERM: passed on to processes 0, 1' in said
  assert 'runs it again' not in said  # who sent the signal restarts, or does not
  steps = re.findall(r'saved at step (\d+)', out)
  assert len(steps) == 2
  assert len(set(steps)) == 1


def test_restarts_when_asked(tmp_path):
  # the second of two runs ends well
  script = f'if [ -e {tmp_path}/$i ]; then exit 0; fi; touch {tmp_path}/$i; exit 42'
  assert RESTART_EXIT_CODE == 42
  code, _, said, _ = finish(bash(['--processes=2', '--restarts=3'], script))
  assert code == 0
  assert said.count('(preempted, saved)') == 1
  assert said.count('runs it again, 2 restarts left') == 1


@pytest.mark.parametrize(('flags', 'runs'), [([], 1), (['--restarts=1'], 2)], ids=str)
def test_passes_the_restart_code_on(flags, runs):
  code, out, _, _ = finish(bash(['--processes=2', *flags], 'echo ran; exit 42'))
  assert code == RESTART_EXIT_CODE
  assert out.count('ran') == 2 * runs


def test_a_process_that_saves_is_not_disturbed_by_one_that_has():
  script = (
    'trap "echo disturbed" TERM; if [ $i = 0 ]; then exit 42; fi; sleep 1; echo saved; exit 42'
  )
  code, out, _, _ = finish(bash(['--processes=2'], script))
  assert code == RESTART_EXIT_CODE
  assert out == '[1] saved\n'


def test_the_first_failure_decides():
  script = 'if [ $i = 2 ]; then exit 3; fi; trap "exit 5" TERM; sleep 60 & wait'
  code, _, said, _ = finish(bash(['--processes=3', '--restarts=3'], script))
  assert code == 3
  assert said == 'launch.local: process 2 ended with exit code 3; ends processes 0, 1'


def test_a_process_that_does_not_listen_is_killed():
  script = 'trap "" TERM; if [ $i = 1 ]; then exit 1; fi; sleep 60; sleep 60'
  began = time.monotonic()
  code, _, said, _ = finish(bash(['--processes=2', '--grace_seconds=1'], script))
  assert code == 1
  assert 'process 0 did not end within 1 s: killed' in said
  assert time.monotonic() - began < 30


def test_lines_carry_the_process_and_keep_their_stream():
  script = 'echo a line; printf "\\n"; echo err >&2; printf "no end"'
  code, out, _, err = finish(bash(['--processes=2'], script))
  assert code == 0
  for i in range(2):
    assert [x for x in out.splitlines() if x.startswith(f'[{i}]')] == [
      f'[{i}] a line',
      f'[{i}] ',
      f'[{i}] no end',
    ]
  assert sorted(err.splitlines()) == ['[0] err', '[1] err']


@pytest.mark.parametrize('signum', [signal.SIGINT, signal.SIGTERM])
def test_forwards_signals_once(signum):
  name = signum.name.removeprefix('SIG')
  script = f'trap "echo got {name}; exit 0" {name}; echo up; while :; do sleep 0.05; done'
  process = bash(['--processes=2'], script)
  assert process.stdout is not None
  assert {process.stdout.readline() for _ in range(2)} == {'[0] up\n', '[1] up\n'}
  process.send_signal(signum)
  code, out, _, _ = finish(process)
  assert code == 0
  assert sorted(out.splitlines()) == [f'[0] got {name}', f'[1] got {name}']


def test_a_second_signal_kills():
  process = bash(['--processes=2'], 'trap "echo waits" TERM; echo up; while :; do sleep 0.05; done')
  assert process.stdout is not None
  for _ in range(2):
    process.stdout.readline()
  process.send_signal(signal.SIGTERM)
  assert 'waits' in process.stdout.readline()
  process.send_signal(signal.SIGTERM)
  code, _, said, _ = finish(process)
  assert code == 128 + signal.SIGKILL
  assert 'SIGTERM again: kills all' in said


def test_leaves_no_grandchild_behind(tmp_path):
  script = f'sleep 300 & echo $! > {tmp_path}/$i; exit 1'
  finish(bash(['--processes=1', '--grace_seconds=1'], script))
  pid = int((tmp_path / '0').read_text())
  deadline = time.monotonic() + 10
  while time.monotonic() < deadline:
    stat = Path(f'/proc/{pid}/stat')
    if not stat.exists() or stat.read_text().split()[2] == 'Z':
      return
    time.sleep(0.05)
  raise AssertionError('the sleep goes on')


def test_dry_run_prints_what_would_run():
  flags = ['--processes=2', '--devices=3', '--dry_run']
  code, out, _, err = finish(start(flags, 'python', '-m', 'x', "--a=it's"))
  assert code == 0, err
  first, second = out.splitlines()
  assert 'ALIGN_JAX_PROCESSES=2 ALIGN_JAX_PROCESS_ID=0' in first
  assert 'ALIGN_JAX_PROCESS_ID=1' in second
  assert 'JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=3' in first
  # it can be pasted into a shell
  shown = f'{first.partition(" -m ")[0]} -c "import os; print(os.environ[\'{COORDINATOR}\'])"'
  done = subprocess.run(['bash', '-c', shown], capture_output=True, text=True, check=True)
  assert re.fullmatch(r'127\.0\.0\.1:\d+\n', done.stdout)
