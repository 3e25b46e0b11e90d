"""The scripts that launchers send elsewhere, in a real bash: what runs again and what stops."""

import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from align_jax.errors import RESTART_EXIT_CODE
from launch import commands, gke, slurm, tpu_vm
from tests.launch.dry import AWKWARD, COMMAND, GKE, PLACE, SLURM, XPK, dry_run, remote_commands

# A run that takes a moment to save when it is told to stop.
WAITS = (
  f"trap 'sleep 0.5; echo saved; exit {RESTART_EXIT_CODE}' TERM; "
  'echo up; while :; do sleep 0.05; done'
)


@pytest.mark.parametrize(
  ('code', 'restarts', 'requeued'),
  [(RESTART_EXIT_CODE, 0, True), (134, 3, True), (RESTART_EXIT_CODE, 5, False), (2, 0, False)],
)
def test_slurm_requeues_what_a_restart_mends(tmp_path, capsys, code, restarts, requeued):
  ((_, text),) = dry_run(capsys, slurm, [*SLURM, '--restarts=5'], COMMAND)
  done = run_slurm_script(tmp_path, text, f'exit {code}', restarts)
  assert ('requeued 77' in done.stdout) == requeued
  assert done.returncode == (0 if requeued else code)


def test_slurm_does_not_requeue_what_was_cancelled(tmp_path, capsys):
  ((_, text),) = dry_run(capsys, slurm, SLURM, COMMAND)
  # scancel signals the script as well as the processes
  done = run_slurm_script(tmp_path, text, f'kill -TERM $PPID; exit {RESTART_EXIT_CODE}', 0)
  assert 'requeued' not in done.stdout
  assert done.returncode == RESTART_EXIT_CODE


def run_slurm_script(folder, text, srun, restarts):
  for name, body in (('srun', srun), ('scontrol', 'echo requeued $2')):
    (folder / name).write_text(f'#!/bin/bash\n{body}\n')
    (folder / name).chmod(0o755)
  return subprocess.run(
    ['bash', '-c', text],
    env={
      'PATH': f'{folder}:{os.environ["PATH"]}',
      'SLURM_JOB_ID': '77',
      'SLURM_RESTART_COUNT': str(restarts),
    },
    capture_output=True,
    text=True,
    timeout=60,
  )


def test_awkward_arguments_arrive_whole(capsys, tmp_path):
  show = [sys.executable, '-c', 'import json, sys; print(json.dumps(sys.argv[1:]))', *AWKWARD]
  expected = subprocess.run(show, capture_output=True, text=True, check=True).stdout
  # GKE: the list itself
  ((_, text),) = dry_run(capsys, gke, ['run', *GKE], AWKWARD)
  (job,) = yaml.safe_load(text)['spec']['replicatedJobs']
  assert job['template']['spec']['template']['spec']['containers'][0]['command'] == AWKWARD
  # XPK and SLURM: one shell between; TPU VM: a shell that writes a script
  (xpk,) = remote_commands(dry_run(capsys, gke, ['xpk', *XPK], show))
  assert bash(xpk, tmp_path) == expected
  ((_, text),) = dry_run(capsys, slurm, SLURM, show)
  (tmp_path / 'srun').write_text(
    '#!/bin/bash\nwhile [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"\n'
  )
  (tmp_path / 'srun').chmod(0o755)
  assert expected in bash(text, tmp_path)
  flags = ['run', *PLACE, '--skip_install']
  (start,) = remote_commands(dry_run(capsys, tpu_vm, flags, show))
  (tmp_path / 'align_jax').mkdir()
  bash(start, tmp_path)
  assert expected in wait_for(tmp_path / 'align_jax_run' / 'log.txt', 'exit code 0')


def bash(text, home):
  env = {'HOME': str(home), 'PATH': f'{home}:{os.environ["PATH"]}'}
  done = subprocess.run(
    ['bash', '-c', text], cwd=home, env=env, capture_output=True, text=True, timeout=60
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def wait_for(path, text, seconds=30):
  deadline = time.monotonic() + seconds
  while time.monotonic() < deadline:
    found = path.read_text() if path.exists() else ''
    if text in found:
      return found
    time.sleep(0.05)
  raise AssertionError(f'{text!r} is not in {path}: {found}')


def test_tpu_vm_runs_once_and_stops_when_told(tmp_path, capsys):
  work = [
    'bash',
    '-c',
    WAITS,
  ]
  (start,) = remote_commands(dry_run(capsys, tpu_vm, ['run', *PLACE, '--skip_install'], work))
  (stop,) = remote_commands(dry_run(capsys, tpu_vm, ['stop', *PLACE]))
  (tmp_path / 'align_jax').mkdir()
  log = tmp_path / 'align_jax_run' / 'log.txt'
  bash(start, tmp_path)
  wait_for(log, 'up')
  with pytest.raises(AssertionError, match='a run goes on here already'):
    bash(start, tmp_path)
  bash(stop, tmp_path)
  found = wait_for(log, f'exit code {RESTART_EXIT_CODE}')
  assert 'saved' in found
  assert 'runs it again' not in found


@pytest.mark.parametrize(
  ('ends', 'code', 'runs'),
  [
    (f'{RESTART_EXIT_CODE} 0', 0, 2),
    (f'134 137 {RESTART_EXIT_CODE} 2', 2, 4),
    ('1', 1, 1),
    ('2', 2, 1),
    (f'{RESTART_EXIT_CODE} ' * 9, RESTART_EXIT_CODE, 4),
  ],
)
def test_the_restart_loop_honours_exit_codes(tmp_path, ends, code, runs):
  codes = tmp_path / 'codes'
  codes.write_text('\n'.join(ends.split()) + '\n')
  work = f'c=$(head -n1 {codes}); sed -i 1d {codes}; echo ran; exit "$c"'
  script = commands.restart_script(['bash', '-c', work], restarts=3, pause=0)
  done = subprocess.run(['bash', '-c', script], capture_output=True, text=True, timeout=60)
  assert done.returncode == code
  assert done.stdout.count('ran\n') == runs


def test_the_restart_loop_passes_sigterm_on_and_waits():
  script = commands.restart_script(['bash', '-c', WAITS], restarts=3, pause=0)
  process = subprocess.Popen(
    ['bash', '-c', script], stdout=subprocess.PIPE, text=True, start_new_session=True
  )
  assert process.stdout is not None
  assert process.stdout.readline() == 'up\n'
  process.send_signal(signal.SIGTERM)
  assert process.wait(timeout=30) == RESTART_EXIT_CODE
  assert process.stdout.readline() == 'saved\n'
