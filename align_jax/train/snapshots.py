"""What a run has seen of folders of shards that grow while it trains, and from which step on.

The first process looks; all go by what it found. Each snapshot is on the disk, in `snapshots.jsonl`
of the run folder, before the first batch that uses it is drawn: a run that goes on after step s
takes the snapshots up to s, and those noted for later steps at their steps, whatever the folders
hold by then. So it draws what the run that was cut off would have drawn.

A line is `{"step": S, "folders": {FOLDER: {"shards": …, "records": …, "complete": …, "checksum": …,
"added": …}}}`: of each folder the number of shards and records in use from step S on (0: from the
start), a checksum of the list of shards, and [file, sha256] of those that are not in lines before.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from align_jax import storage
from align_jax.data.finished import Finished, look
from align_jax.data.sources import is_following, parse_spec, wait_for_first
from align_jax.errors import UserError
from align_jax.files import sync, write_file
from align_jax.storage import AnyPath

SNAPSHOTS = 'snapshots.jsonl'
_PADDING = 4096  # bytes: messages of one size, so that sending them compiles once

Folders = Mapping[str, Finished]


@dataclasses.dataclass(frozen=True)
class Snapshot:
  """What a run uses of the folders that it follows, by path, from the batch of `step` on."""

  step: int
  folders: Folders


class Snapshots:
  """The snapshots of a run, noted ones and those to come. All processes make the same calls.

  Where no source is followed, nothing is looked at or written.
  """

  def __init__(self, workdir: AnyPath, specs: Iterable[str], every: int, under_way: bool):
    """Reads what the run has noted, or waits for a first shard of each folder and notes that.

    Args:
      workdir: the run folder.
      specs: of all sources of the run.
      every: steps between two looks; 0: none after the first.
      under_way: whether the run has a checkpoint.

    Raises:
      UserError: nothing is followed although `every` says so; no shard in time; the file is damaged
        or missing.
    """
    followed = {p.path: p for p in map(parse_spec, specs) if is_following(p)}
    self._paths = {path: str(storage.open_path(path)) for path in sorted(followed)}
    self._file, self._every = workdir / SNAPSHOTS, every
    self._lines: list[str] = []
    self._all: list[Snapshot] = []
    if not followed:
      if every:
        raise UserError(
          f'config.data.follow: {every}, but no source grows; write arrayrecord:DIR?follow=1, or '
          'set 0'
        )
      return
    self._take(from_first(lambda: self._read(under_way)))
    if not self._all:
      # each process waits by itself: no message between them may take so long
      for spec in followed.values():
        wait_for_first(spec)
      self._take(from_first(lambda: self._note(0)))

  def at(self, step: int) -> Folders:
    """Returns what the batch of a step (0: of the first) was drawn from, as far as is noted."""
    return next((s.folders for s in reversed(self._all) if s.step <= step), {})

  def is_look(self, step: int) -> bool:
    """Whether `before` looks at the folders ahead of a step."""
    if not self._every or not self._all or step <= self._all[-1].step:
      return False
    done = all(found.complete for found in self._all[-1].folders.values())
    return not done and step % self._every == 0

  def before(self, step: int) -> Folders | None:
    """Tells, before the batch of a step is drawn, what it is drawn from, if that changes here.

    Steps are asked for in order. If it looks, the processes talk over their devices: where there
    are several, these should have nothing else to do.

    Raises:
      UserError: a shard that is in use is gone, or another one now; the disk is full.
    """
    if not self.is_look(step):
      return next((s.folders for s in self._all if s.step == step), None)
    lines = from_first(lambda: self._note(step))
    self._take(lines)
    return self._all[-1].folders if lines else None

  def describe(self, step: int) -> str:
    """Returns one phrase on what is used from a step on, such as `DIR: 3 shards, 90 records`."""
    return '; '.join(
      f'{path}: {len(found.shards)} shards, {found.records} records'
      + (', complete' if found.complete else '')
      for path, found in self.at(step).items()
    )

  def _note(self, step: int) -> list[str]:
    """Looks at the folders; notes what they hold now, unless it is what is in use."""
    before = self._all[-1].folders if self._all else {}
    found = {n: look(p, before.get(n, Finished())) for n, p in self._paths.items()}
    if found == before:
      return []
    line = _to_line(Snapshot(step, found), before)
    write_file(self._file, ''.join(f'{text}\n' for text in [*self._lines, line]))
    if not storage.is_remote(self._file):
      sync(str(self._file.parent))
    return [line]

  def _take(self, lines: list[str]) -> None:
    for number, line in enumerate(lines, start=len(self._lines) + 1):
      before = self._all[-1] if self._all else Snapshot(-1, {})
      snapshot = _from_line(line, before, f'{self._file}: line {number}')
      self._lines.append(line)
      self._all.append(snapshot)

  def _read(self, under_way: bool) -> list[str]:
    """Returns the lines of the file; none if there is no run that they belong to."""
    try:
      lines = storage.read_bytes(self._file).decode().splitlines()
    except FileNotFoundError:
      lines = []
    except (OSError, UnicodeDecodeError) as error:
      raise UserError(f'{self._file}: cannot be read ({error}); put it back') from error
    if under_way and not lines:
      raise UserError(
        f'{self._file}: missing, it says what the run has seen of its growing sources; put it back '
        'or use another --workdir'
      )
    if lines and not under_way:
      # a run without a checkpoint may start anew with other sources
      first = _from_line(lines[0], Snapshot(-1, {}), f'{self._file}: line 1')
      if set(first.folders) != set(self._paths):
        return []
    return lines


def from_first(make: Callable[[], Any]) -> Any:
  """Returns the JSON value that the first process makes; all must call it.

  Raises:
    UserError: what the first process raised, in all of them: none is left waiting.
  """
  if jax.process_count() == 1:
    return make()
  first = jax.process_index() == 0
  message: dict[str, Any] = {}
  if first:
    try:
      message = {'value': make()}
    except UserError as error:
      message = {'error': str(error)}
  data = json.dumps(message).encode()
  blocks = -(-len(data) // _PADDING)
  blocks = int(multihost_utils.broadcast_one_to_all(np.asarray(blocks, np.int32)))
  buffer = np.full(blocks * _PADDING, ord(' '), np.uint8)
  if first:
    buffer[: len(data)] = np.frombuffer(data, np.uint8)
  message = json.loads(multihost_utils.broadcast_one_to_all(buffer).tobytes())
  if 'error' in message:
    raise UserError(message['error'])
  return message['value']


def _to_line(snapshot: Snapshot, before: Folders) -> str:
  folders = {}
  for path, found in snapshot.folders.items():
    known = len(before[path].shards) if path in before else 0
    folders[path] = {
      'shards': len(found.shards),
      'records': found.records,
      'complete': found.complete,
      'checksum': found.checksum,
      'added': [list(shard) for shard in found.shards[known:]],
    }
  return json.dumps({'step': snapshot.step, 'folders': folders}, ensure_ascii=False)


def _from_line(line: str, before: Snapshot, where: str) -> Snapshot:
  try:
    values = json.loads(line)
    folders = {}
    for path, entry in values['folders'].items():
      known = before.folders[path].shards if path in before.folders else ()
      shards = (*known, *((str(file), str(sha256)) for file, sha256 in entry['added']))
      found = Finished(shards, int(entry['records']), bool(entry['complete']))
      if (len(shards), found.checksum) != (entry['shards'], entry['checksum']):
        raise ValueError(f'not the shards that its checksum is of, in {path}')
      folders[path] = found
    if values['step'] <= before.step:
      raise ValueError(f'step {values["step"]} after step {before.step}')
    return Snapshot(int(values['step']), folders)
  except (ValueError, LookupError, TypeError, AttributeError) as error:
    raise UserError(
      f'{where}: damaged ({error}); put the file back, or use another --workdir'
    ) from error
