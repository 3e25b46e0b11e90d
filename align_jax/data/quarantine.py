"""Records that could not be used: skipped, counted by reason, listed in a file."""

import collections
import dataclasses
import json
import logging
import os
import threading
import weakref
from pathlib import Path

from align_jax import storage
from align_jax.errors import UserError

_NAMES_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class Skipped:
  """A record that was left out: which, of which source, and why (one or two words)."""

  record_id: str
  source: str
  reason: str


class Quarantine:
  """Counts looked-at and skipped records, and stops the run when too many are skipped.

  Thread safe. The counts are of this process and start at zero when a run resumes; a record that
  comes round again in a later epoch counts again, in both numbers. In the file each record has one
  JSON line `{"id", "source", "reason"}`, across resumes too. Give every process a file of its own.
  One in a bucket is uploaded soon after a line was added, and by `close`.
  """

  def __init__(self, path: storage.AnyPath | None, max_share: float, min_seen: int):
    """Reads the names that an earlier run has listed.

    Args:
      path: the file (`quarantine.jsonl`), created with the first skipped record; None for no file.
      max_share: the run stops when more than this share of the records seen is skipped.
      min_seen: not before this many records were seen.

    Raises:
      UserError: `max_share` outside [0, 1], or the file is not one of ours.
    """
    if not 0 <= max_share <= 1:
      raise UserError(f'quarantine: max_share {max_share} is outside [0, 1]')
    self._shown = path
    self._staged: storage.Staged | None = None
    if path is not None and storage.is_remote(path):
      self._staged = storage.Staged(path.parent)
      weakref.finalize(self, _close, self._staged)
      self._staged.fetch(path.name)
      path = self._staged.local / path.name
    self._path = Path(path) if path is not None else None
    self._max_share = max_share
    self._min_seen = min_seen
    self._lock = threading.Lock()
    self._seen = 0
    self._counts: collections.Counter[str] = collections.Counter()
    self._first: list[str] = []
    self._listed = _read_listed(self._path) if self._path is not None else set()

  @property
  def counts(self) -> dict[str, int]:
    """Skipped records by reason, the commonest first."""
    with self._lock:
      return dict(self._counts.most_common())

  @property
  def total_seen(self) -> int:
    """Records looked at, skipped ones included."""
    return self._seen

  def seen(self) -> None:
    """Counts a record that is looked at; call it before a possible `add` of that record.

    Raises:
      UserError: more than the allowed share was skipped.
    """
    with self._lock:
      self._seen += 1
      if self._seen == self._min_seen:
        self._check()

  def add(self, record_id: str, source: str, reason: str) -> None:
    """Counts and lists a skipped record.

    Raises:
      UserError: more than the allowed share was skipped, or the file cannot be written.
    """
    with self._lock:
      self._counts[reason] += 1
      if len(self._first) < _NAMES_SHOWN:
        name = f'{record_id} ({reason})'
        if name not in self._first:
          self._first.append(name)
      if (source, record_id) not in self._listed:
        self._listed.add((source, record_id))
        if self._path is not None:
          _append(self._path, {'id': record_id, 'source': source, 'reason': reason})
        if self._staged is not None:
          self._staged.sync()
      self._check()

  def close(self) -> None:
    """Uploads what was not yet; what cannot be is said, and stays on this machine."""
    if self._staged is not None:
      _close(self._staged)

  def describe(self) -> str:
    """Returns one phrase for people, such as `2 of 10 records skipped: corrupt 1, no caption 1`."""
    with self._lock:
      return self._describe()

  def _describe(self) -> str:
    text = f'{sum(self._counts.values())} of {self._seen} records skipped'
    reasons = ', '.join(f'{reason} {count}' for reason, count in self._counts.most_common())
    return f'{text}: {reasons}; first: {", ".join(self._first)}' if reasons else text

  def _check(self) -> None:
    skipped = sum(self._counts.values())
    if self._seen >= max(self._min_seen, 1) and skipped > self._max_share * self._seen:
      where = f', all in {self._shown}' if self._shown is not None else ''
      if self._staged is not None:
        self._staged.sync(force=True)
      raise UserError(
        f'data: {self._describe()}{where}; more than the allowed {self._max_share:.2%}: '
        'mend or remove them, or allow a larger share'
      )


def _close(staged: storage.Staged) -> None:
  try:
    staged.close()
  except UserError as error:  # the run itself is whole without this list
    logging.getLogger('align_jax.data').warning('%s', error)


def _read_listed(path: Path) -> set[tuple[str, str]]:
  """Returns what the file lists; cuts off a last line that a killed run left half-written."""
  try:
    data = path.read_bytes()
  except FileNotFoundError:
    return set()
  except OSError as error:
    raise UserError(f'{path}: cannot be read ({error.strerror}); move it away') from error
  whole = data[: data.rfind(b'\n') + 1]
  if len(whole) < len(data):
    os.truncate(path, len(whole))
  listed = set()
  for number, line in enumerate(whole.splitlines(), 1):
    try:
      fields = json.loads(line)
      listed.add((str(fields['source']), str(fields['id'])))
    except (ValueError, KeyError, TypeError) as error:
      raise UserError(f'{path}: line {number} is no quarantine entry; move it away') from error
  return listed


def _append(path: Path, fields: dict[str, str]) -> None:
  line = json.dumps(fields).encode() + b'\n'
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('ab', buffering=0) as file:  # one write: the line is there or it is not
      file.write(line)
  except OSError as error:
    raise UserError(f'{path}: cannot be written ({error.strerror}); mend and resume') from error
