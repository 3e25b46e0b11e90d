"""Damaged checkpoints: told from other failures, named, and passed over for the one before.

All processes of a run judge together: a part of reading that fails in one has failed in all, so
that none waits for another and all use the same checkpoint.
"""

import contextlib
import dataclasses
import gc
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from align_jax.errors import UserError

T = TypeVar('T')

_ASIDE = 'damaged-'  # the step follows; Orbax takes for checkpoints what is named by a number alone
# A device, a disk or a store that could not serve us now: nothing is known of the files.
_NOT_NOW = (MemoryError, PermissionError, TimeoutError, ConnectionError)
_NOT_NOW_MARKS = (
  'RESOURCE_EXHAUSTED',
  'UNAVAILABLE',
  'DEADLINE_EXCEEDED',
  'PERMISSION_DENIED',
  'UNAUTHENTICATED',
)
_NOT_NOW_CLIENTS = ('aiohttp', 'gcsfs', 'google')
_LONGEST = 160  # characters
_FINE, _STOPS, _DAMAGED = range(3)  # what became of an attempt, the worst last


class Damaged(Exception):
  """A checkpoint that cannot be read, or does not hold what was saved: says what is wrong."""


@dataclasses.dataclass(frozen=True)
class Found(Generic[T]):
  """The newest checkpoint that is whole.

  Attributes:
    step: which.
    value: what was read from it.
    damaged: what is wrong with others, by step.
  """

  step: int
  value: T
  damaged: Mapping[int, str]


def saved_steps(folder: epath.Path) -> list[int]:
  """The steps of the complete checkpoints in a folder, ascending."""
  return sorted(found.step for found in ocp.path.step.standard_name_format().find_all(folder))


def undated(folder: epath.Path) -> dict[int, str]:
  """Checkpoints whose date cannot be read: for one of them Orbax would refuse the whole folder.

  Raises:
    UserError: a store that does not answer, which says nothing of the files.
  """
  out = {}
  for found in ocp.path.step.standard_name_format().find_all(folder):
    try:
      with _quiet_orbax():
        _ = found.commit_timestamp
    except Exception as error:
      wrong = _judge(folder / str(found.step), error)
      if isinstance(wrong, UserError):
        raise wrong from error
      out[found.step] = f'its date cannot be read: {first_line(error)}'
  return out


def newest_whole(
  folder: epath.Path, read: Callable[[int], T], damaged: Mapping[int, str]
) -> Found[T] | None:
  """Reads checkpoints, the newest first, until one is whole; None if there never was one.

  Args:
    folder: the checkpoints of a run.
    read: reads that of a step; what can fail in it are `attempt`s.
    damaged: those that are known to be.

  Raises:
    UserError: all are damaged.
  """
  damaged, steps = dict(damaged), set(saved_steps(folder))
  while (step := _of_first(max(steps - damaged.keys(), default=-1))) >= 0:
    try:
      return Found(step, read(step), damaged)
    except Damaged as error:
      damaged[step] = str(error)
  named = [f'{step} ({damaged[step]})' for step in sorted(damaged, reverse=True)]
  if folder.exists():
    named += sorted(path.name for path in folder.iterdir() if path.name.startswith(_ASIDE))
  if _of_first(len(named)):
    raise UserError(
      f'{folder}: no checkpoint is whole: {"; ".join(named)}; put a copy of one there, or start '
      'anew in another --workdir'
    )
  return None


def set_aside(folder: epath.Path, found: Found) -> None:
  """Renames the damaged checkpoints to `damaged-<step>`, and says which is used instead.

  Nothing is lost, and Orbax, which counts and deletes checkpoints, does not see them any more.
  """
  if jax.process_index() == 0:
    for step, reason in sorted(found.damaged.items()):
      aside, number = folder / f'{_ASIDE}{step}', 1
      while aside.exists():
        number += 1
        aside = folder / f'{_ASIDE}{step}-{number}'
      (folder / str(step)).rename(aside)
      _say(f'{folder / str(step)}: damaged, {reason}; now {aside.name}, step {found.step} is used')
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices('damaged checkpoints are set aside')


def say_passed_over(folder: epath.Path, found: Found) -> None:
  """Says which checkpoints are damaged and which is read instead; changes nothing."""
  if jax.process_index() == 0:
    for step, reason in sorted(found.damaged.items()):
      _say(f'{folder / str(step)}: damaged, {reason}; step {found.step} is read instead')


def attempt(where: epath.Path, part: Callable[[], T]) -> T:
  """Runs a part of reading the checkpoint `where`; all processes call it with the same part.

  Raises:
    Damaged: it failed, here or in another process.
    UserError: it failed, but the files are not to blame.
  """
  error: Damaged | UserError | None = None
  with _quiet_orbax():
    try:
      value = part()
    except (Damaged, UserError) as raised:
      error = raised
    except Exception as raised:
      error = _judge(where, raised)
    if error is not None:
      gc.collect()
  if error is not None:
    _ignore_late_answers()
  if jax.process_count() > 1:
    own = _FINE if error is None else _DAMAGED if isinstance(error, Damaged) else _STOPS
    codes = multihost_utils.process_allgather(np.int32(own))
    worst = int(codes.max())
    if own and not codes[0]:
      _say(f'process {jax.process_index()}: {where}: {error}')  # the first knows nothing of it
    if worst and worst != own:
      said = f'process {int(codes.argmax())} could not read it'
      error = Damaged(said) if worst == _DAMAGED else UserError(f'{where}: {said}, see its message')
  if error is not None:
    raise error
  return value


def first_line(error: BaseException) -> str:
  """An error's message in one line; of a long one, which tells from outside in, the end."""
  text = str(error).strip().partition(' [tensorstore_spec')[0].partition(' [source')[0]
  line = ' '.join(text.splitlines()[0].split()) if text else type(error).__name__
  return line if len(line) <= _LONGEST else f'… {line[-_LONGEST:].partition(" ")[2]}'


def _judge(where: epath.Path, error: Exception) -> Damaged | UserError:
  """Whether the files are to blame. The traceback is not kept: it holds what Orbax abandoned."""
  of_client = type(error).__module__.partition('.')[0] in _NOT_NOW_CLIENTS
  marked = any(mark in str(error) for mark in _NOT_NOW_MARKS)
  said = first_line(error)
  if of_client or marked or isinstance(error, _NOT_NOW):
    return UserError(f'{where}: cannot be read now ({said}); mend that and run it again')
  return Damaged(f'it cannot be read: {said}')


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[None]:
  """Where a read fails, Orbax abandons those beside it, and each prints a traceback when freed."""
  logs, hook = [logging.getLogger(name) for name in ('asyncio', 'absl')], sys.unraisablehook
  levels = [log.level for log in logs]
  for log in logs:
    log.setLevel(logging.CRITICAL)
  sys.unraisablehook = lambda _: None
  try:
    yield
  finally:
    for log, level in zip(logs, levels, strict=True):
      log.setLevel(level)
    sys.unraisablehook = hook


def _ignore_late_answers() -> None:
  """Keeps quiet about abandoned reads that end only now, when nobody listens any more."""
  hook = sys.unraisablehook
  if getattr(hook, '__name__', '') == 'unless_late':
    return

  def unless_late(found: Any) -> None:
    if 'Event loop is closed' not in str(found.exc_value):
      hook(found)

  sys.unraisablehook = unless_late


def _of_first(number: int) -> int:
  """The first process's number, which every process goes by."""
  if jax.process_count() == 1:
    return number
  return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def _say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)
