"""Work that only needs processors, cut into tasks: local processes, or an Apache Beam pipeline.

  for message in run_tasks(function, tasks, workers=4):                              # this machine
  for message in run_tasks(function, tasks, runner='DataflowRunner', options=[...], scratch=DIR)

A task is done by the generator `function(task)`, which may run in another process or on another
machine. It yields how many more units (records, images) it has seen, and returns JSON values.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing import connection
from typing import Any, TypeAlias, cast

from align_jax import storage
from align_jax.errors import UserError
from align_jax.files import write_file

LOCAL = 'local'
_DIED = 'a worker process died (out of memory?); run the same command again with fewer --workers'
_FAILED = 'align_jax task failed: '  # by which a UserError is known in what Beam raises

Function: TypeAlias = Callable[[Any], Generator[int, None, Any]]


@dataclasses.dataclass(frozen=True)
class Progress:
  """So many more units (records, images) were seen."""

  count: int


@dataclasses.dataclass(frozen=True)
class Done:
  """Task `index` is done; `result` is what its function returned, as JSON values."""

  index: int
  result: Any


@dataclasses.dataclass(frozen=True)
class WorkConfig:
  """Where the work is done.

  Attributes:
    workers: processes of this machine; with 1 the work is done in this one.
    runner: `local`, or the name of a Beam runner: DirectRunner, DataflowRunner, FlinkRunner, …
    options: of the Beam pipeline, as on its command line: `--project=NAME`.
  """

  workers: int = 2
  runner: str = LOCAL
  options: tuple[str, ...] = ()

  def __post_init__(self) -> None:
    if self.workers < 1:
      raise UserError(f'--workers={self.workers}: at least 1')
    if self.runner == LOCAL and self.options:
      raise UserError(
        f'--beam_option={self.options[0]}: needs --runner=DirectRunner or another of Beam'
      )
    for option in self.options:
      if not option.startswith('--'):
        raise UserError(
          f'--beam_option={option}: write it as Beam does, --beam_option=--name=value'
        )


def run_tasks(
  function: Function, tasks: Sequence[Any], config: WorkConfig, *, scratch: str
) -> Generator[Progress | Done, None, None]:
  """Does all tasks; yields progress and results in the order in which they come.

  Args:
    function: a generator function, see above. For other processes it must be picklable: one of a
      module, or a `functools.partial` of one. What it leaves on a disk it must write aside and
      rename: a task may be done twice.
    tasks: picklable, with a `repr` that tells one from another.
    config: local or Beam.
    scratch: a folder that all machines see, where Beam's workers leave their results; of tasks that
      are there from a run that was stopped, the result is taken from there.

  Raises:
    UserError: what a task raised, a worker that died, a missing package.
  """
  if config.runner != LOCAL:
    yield from _run_beam(function, tasks, config, scratch)
  elif min(config.workers, len(tasks)) <= 1:
    for index, task in enumerate(tasks):
      yield from _do(function, index, task)
  else:
    yield from _run_local(function, tasks, min(config.workers, len(tasks)))


def _do(function: Function, index: int, task: Any) -> Iterator[Progress | Done]:
  steps = function(task)
  while True:
    try:
      yield Progress(next(steps))
    except StopIteration as stop:
      yield Done(index, stop.value)
      return


def _run_local(
  function: Function, tasks: Sequence[Any], workers: int
) -> Generator[Progress | Done, None, None]:
  context = multiprocessing.get_context('spawn')  # fork and threads (JAX, pyarrow) do not mix
  processes, receivers = [], []
  numbered = list(enumerate(tasks))
  try:
    for worker in range(workers):
      receiver, sender = context.Pipe(duplex=False)
      process = context.Process(
        target=_work, args=(function, numbered[worker::workers], sender), daemon=True
      )
      process.start()
      sender.close()  # the worker holds the other end: its death then reads as end of file
      processes.append(process)
      receivers.append(receiver)
    while receivers:
      for ready in connection.wait(receivers):
        receiver = cast(connection.Connection, ready)
        try:
          message = receiver.recv()
        except EOFError:
          raise UserError(_DIED) from None
        if isinstance(message, UserError):
          raise message
        if message is None:
          receivers.remove(receiver)
        else:
          yield message
  finally:
    for process in processes:
      process.terminate()
    for process in processes:
      process.join()


def _work(
  function: Function, tasks: Sequence[tuple[int, Any]], sender: connection.Connection
) -> None:
  """What a worker process does. When the parent dies, the next `send` raises and ends it."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it on an interrupt
  try:
    for index, task in tasks:
      for message in _do(function, index, task):
        sender.send(message)
    sender.send(None)
  except UserError as error:
    sender.send(error)
  except BrokenPipeError:
    sys.exit(1)


def _run_beam(
  function: Function, tasks: Sequence[Any], config: WorkConfig, scratch: str
) -> Iterator[Progress | Done]:
  try:
    import apache_beam as beam  # an extra, and slow to import
    from apache_beam.options.pipeline_options import PipelineOptions
  except ModuleNotFoundError as error:
    raise UserError(
      f'--runner={config.runner}: package {error.name} is missing; pip install align_jax[beam]'
    ) from error
  missing = []
  for index, task in enumerate(tasks):
    found = _read_result(scratch, task)
    if found is None:
      missing.append(task)
    else:
      yield Done(index, found['result'])
  numbers = {repr(task): index for index, task in enumerate(tasks)}
  if missing:
    try:
      options = PipelineOptions([f'--runner={config.runner}', *config.options])
      pipeline_of = beam.Pipeline(options=options)
    except SystemExit as error:  # argparse has said on standard error which option it was
      raise UserError(f'--beam_option: Beam refuses {" ".join(config.options)}') from error
    except (ImportError, ValueError) as error:  # no such runner, or its packages are missing
      raise UserError(f'--runner={config.runner}: {error}') from error
    try:
      with pipeline_of as pipeline:
        created = pipeline | 'tasks' >> beam.Create(missing)
        # else a runner may keep all tasks in one process, fused to what made them
        spread = created | 'spread' >> beam.Reshuffle()
        _ = spread | 'work' >> beam.Map(functools.partial(_beam_task, function, scratch))
    except UserError:
      raise
    except Exception as error:  # a runner wraps what its workers raise
      _, known, text = str(error).partition(_FAILED)
      if known:
        raise UserError(text.split('\n')[0].split(' [while running')[0]) from error
      raise
  for task in missing:
    found = _read_result(scratch, task)
    if found is None:
      raise UserError(
        f'{scratch}: the result of {task!r} is not there; name a folder that every worker can write'
      )
    yield Done(numbers[repr(task)], found['result'])
  for task in tasks:
    storage.remove(_result_path(scratch, task))
  with contextlib.suppress(OSError):
    if not storage.is_remote(scratch):
      os.rmdir(scratch)


def _beam_task(function: Function, scratch: str, task: Any) -> None:
  """What a Beam worker does."""
  try:
    *_, done = _do(function, 0, task)
  except UserError as error:
    raise RuntimeError(f'{_FAILED}{error}') from error
  assert isinstance(done, Done)
  path = _result_path(scratch, task)
  write_file(path, json.dumps({'task': repr(task), 'result': done.result}, ensure_ascii=False))


def _result_path(scratch: str, task: Any) -> str:
  name = hashlib.blake2b(repr(task).encode(), digest_size=8).hexdigest()
  return os.path.join(scratch, f'task-{name}.json')


def _read_result(scratch: str, task: Any) -> dict[str, Any] | None:
  try:
    found = json.loads(storage.read_bytes(_result_path(scratch, task)))
  except FileNotFoundError:
    return None
  return found if found['task'] == repr(task) else None
