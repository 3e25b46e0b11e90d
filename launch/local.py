"""Runs several processes of one run on this machine.

  python -m launch.local --processes=4 [--devices=2] [--restarts=3] -- \\
    python -m align_jax.main --config=configs/clip.py --workdir=runs/clip

Each line of output begins with the number of its process. When one process dies, the others are
ended; the exit code is that of the first that failed. SIGINT and SIGTERM go to all processes, a
second one kills them.
"""

import dataclasses
import math
import os
import queue
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import IO

from align_jax.errors import RESTART_EXIT_CODE, UserError, require
from align_jax.parallel.distributed import COORDINATOR, PROCESS_ID, PROCESSES
from launch.commands import Parser, add_dry_run, entry, need_command, split_command


@dataclasses.dataclass(frozen=True)
class Settings:
  """What runs: the command, how often, with how many simulated CPU devices (0: the real ones)."""

  command: tuple[str, ...]
  processes: int
  devices: int
  grace_seconds: float


@dataclasses.dataclass(frozen=True)
class Ended:
  """A process ended; `code` as a shell counts: 128 + signal for a death by signal."""

  process: int
  code: int


@dataclasses.dataclass(frozen=True)
class Asked:
  """This launcher got a signal."""

  signum: int


Events = queue.SimpleQueue[Ended | Asked]


def main(argv: Sequence[str]) -> int:
  """Runs the command in all processes, again while it asks for that; returns the exit code."""
  ours, command = split_command(argv)
  args = _parser().parse(ours)
  command = need_command(command, 'launch.local')
  require(args.processes >= 1, '--processes', 'must be 1 or more')
  require(args.devices >= 0, '--devices', 'must be 0 or more')
  require(args.restarts >= 0, '--restarts', 'must be 0 or more')
  require(args.grace_seconds > 0, '--grace_seconds', 'must be more than 0')
  if command[0] in ('python', 'python3'):
    command[0] = sys.executable  # the one that has this package
  settings = Settings(tuple(command), args.processes, args.devices, args.grace_seconds)
  if args.dry_run:
    port = _free_port()
    for i in range(settings.processes):
      print(shlex.join(['env', *(f'{k}={v}' for k, v in _variables(settings, i, port)), *command]))
    return 0
  if shutil.which(command[0]) is None:
    raise UserError(f'--: {command[0]!r} is no program that can be run')
  left = args.restarts
  while True:
    code, asked = _run(settings)
    # told to stop ourselves: whoever did so decides whether this runs again
    if code != RESTART_EXIT_CODE or asked or not left:
      return code
    left -= 1
    _say(f'runs it again, {left} restarts left')


def _parser() -> Parser:
  parser = Parser(prog='launch.local', description=__doc__)
  parser.add_argument('--processes', type=int, required=True, help='how many')
  parser.add_argument(
    '--devices', type=int, default=0, help='simulated CPU devices per process; 0: the real devices'
  )
  parser.add_argument(
    '--restarts',
    type=int,
    default=0,
    help=f'so often all run again after exit code {RESTART_EXIT_CODE} (preempted, saved)',
  )
  parser.add_argument(
    '--grace_seconds',
    type=float,
    default=30,
    help='processes that were told to end are killed after so long',
  )
  add_dry_run(parser)
  return parser


def _run(settings: Settings) -> tuple[int, bool]:
  """Runs all processes once; returns the exit code and whether this launcher was told to stop."""
  events: Events = queue.SimpleQueue()
  started: list[subprocess.Popen[bytes]] = []
  threads: list[threading.Thread] = []
  with _signals_to(events):
    try:
      port = _free_port()
      for i in range(settings.processes):
        started.append(_start(settings, i, port))
        threads += _watch(i, started[i], events)
      return _supervise(settings, started, events)
    finally:
      for process in started:
        _kill(process)  # with whatever it started itself
      for thread in threads:
        thread.join(timeout=5)  # the last lines of output


def _supervise(
  settings: Settings, started: Sequence[subprocess.Popen[bytes]], events: Events
) -> tuple[int, bool]:
  """Waits for all processes; ends the others when one fails, all when asked to."""
  running = set(range(len(started)))
  code, asked, deadline = 0, False, math.inf
  while running:
    left = deadline - time.monotonic()
    try:
      event = events.get(timeout=None if left == math.inf else max(0.0, left))
    except queue.Empty:
      _say(f'{_names(running)} did not end within {settings.grace_seconds:g} s: killed')
      for i in running:
        _kill(started[i])
      deadline = math.inf
      continue
    if isinstance(event, Asked):
      name = signal.Signals(event.signum).name
      for i in running:
        started[i].send_signal(signal.SIGKILL if asked else event.signum)
      _say(f'{name} again: kills all' if asked else f'{name}: passed on to {_names(running)}')
      asked, deadline = True, time.monotonic() + settings.grace_seconds
      continue
    running.discard(event.process)
    if not event.code or code:
      continue
    code = event.code
    _say(f'process {event.process} {_how(code)}' + (f'; ends {_names(running)}' * bool(running)))
    # with the code for a restart they are on their way already, and must not be disturbed
    if code != RESTART_EXIT_CODE and not asked:
      for i in running:
        started[i].terminate()
    deadline = min(deadline, time.monotonic() + settings.grace_seconds)
  return code, asked


def _start(settings: Settings, process: int, port: int) -> subprocess.Popen[bytes]:
  try:
    return subprocess.Popen(
      settings.command,
      env={**os.environ, **dict(_variables(settings, process, port))},
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      # a group of its own: Ctrl-C reaches this launcher alone, which passes it on once
      start_new_session=True,
    )
  except OSError as error:
    raise UserError(f'--: cannot run {settings.command[0]}: {error.strerror}') from error


def _variables(settings: Settings, process: int, port: int) -> Iterator[tuple[str, str]]:
  yield COORDINATOR, f'127.0.0.1:{port}'
  yield PROCESSES, str(settings.processes)
  yield PROCESS_ID, str(process)
  yield 'PYTHONUNBUFFERED', '1'  # lines appear when they are printed
  if settings.devices:
    yield 'JAX_PLATFORMS', 'cpu'
    yield 'JAX_NUM_CPU_DEVICES', str(settings.devices)


def _watch(i: int, process: subprocess.Popen[bytes], events: Events) -> list[threading.Thread]:
  """Starts the threads that pass on the output of a process and tell of its end."""

  def wait() -> None:
    code = process.wait()
    events.put(Ended(i, 128 - code if code < 0 else code))

  def copy(source: IO[bytes], target: IO[bytes]) -> None:
    for line in source:
      # one write a line, so that lines of several processes do not mix
      target.write(b'[%d] %s\n' % (i, line.rstrip(b'\n')))
      target.flush()

  assert process.stdout is not None and process.stderr is not None
  copies = [
    threading.Thread(target=copy, args=(process.stdout, sys.stdout.buffer), daemon=True),
    threading.Thread(target=copy, args=(process.stderr, sys.stderr.buffer), daemon=True),
  ]
  for thread in (*copies, threading.Thread(target=wait, daemon=True)):
    thread.start()
  return copies


@contextmanager
def _signals_to(events: Events) -> Iterator[None]:
  """Puts SIGINT and SIGTERM among the events, in place of ending this process."""
  before: Mapping[int, object] = {
    s: signal.signal(s, lambda signum, _: events.put(Asked(signum)))
    for s in (signal.SIGINT, signal.SIGTERM)
  }
  try:
    yield
  finally:
    for signum, handler in before.items():
      signal.signal(signum, handler)  # type: ignore[arg-type]


def _kill(process: subprocess.Popen[bytes]) -> None:
  with suppress(ProcessLookupError):
    os.killpg(process.pid, signal.SIGKILL)


def _how(code: int) -> str:
  if code == RESTART_EXIT_CODE:
    return f'ended with exit code {code} (preempted, saved)'
  if code <= 128:
    return f'ended with exit code {code}'
  try:
    return f'was killed by {signal.Signals(code - 128).name}'
  except ValueError:
    return f'ended with exit code {code}'


def _names(processes: set[int]) -> str:
  return f'process{"es" * (len(processes) > 1)} {", ".join(map(str, sorted(processes)))}'


def _free_port() -> int:
  """A port nobody listens on now; process 0 takes it a moment later."""
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return int(probe.getsockname()[1])


def _say(text: str) -> None:
  print(f'launch.local: {text}', file=sys.stderr, flush=True)


if __name__ == '__main__':
  entry(main)
