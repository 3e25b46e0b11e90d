"""Files in a bucket (`gs://`) as well as on a disk: one kind of path, one client, one patience.

The client is `gcsfs`. It tries every request six times, within about half a minute, when the store
answers 408, 429 or 5xx or the connection breaks; nothing here repeats that. What is still wrong
then ends as one line, see `store_errors`. An object appears whole or not at all.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import logging
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from etils import epath

from align_jax.errors import UserError

AnyPath: TypeAlias = Path | epath.Path
SCHEME = 'gs://'
TEMPORARY = '.tmp-'  # in the name of a file that is not whole yet; its writer's name follows
SHA256 = 'sha256'  # of an object, in its metadata, where we wrote it

_CHUNK = 32 << 20  # bytes asked for at once, so that a cut connection costs no more than that
_WHOLE = 256 << 20  # bytes of a file that may grow while it goes up: up to here it is read first
_EVERY = 30.0  # seconds between two uploads of a file that grows
_LONGEST = 600.0  # seconds, when uploads go on failing

_log = logging.getLogger('align_jax.storage')


@dataclasses.dataclass(frozen=True)
class Info:
  """What is known of an object.

  Attributes:
    size: bytes.
    version: its generation (or etag): another one means other bytes.
    sha256: of its bytes, '' if its writer did not say.
  """

  size: int
  version: str
  sha256: str = ''


def open_path(text: str | os.PathLike[str]) -> epath.Path:
  """Returns the path that a flag or a field names; `~` is expanded.

  Raises:
    UserError: a scheme other than `gs://`, no bucket, or no client for it.
  """
  text = os.fspath(text)
  if not text:
    raise UserError('empty path; name a folder, or gs://BUCKET/FOLDER')
  found = re.match(r'([A-Za-z][A-Za-z0-9+.-]*):/', text)
  if found is None:
    return epath.Path(os.path.expanduser(text))
  if found[1] != 'gs':
    raise UserError(f'{text}: {found[1]}:// is not supported; use a local path or gs://BUCKET/…')
  if not re.match(r'gs://[a-z0-9][a-z0-9._-]*(/|$)', text):
    raise UserError(f'{text}: names no bucket; write gs://BUCKET/FOLDER')
  filesystem()
  return epath.Path(text)


def is_remote(path: str | os.PathLike[str]) -> bool:
  """Whether a path lies in a bucket."""
  return os.fspath(path).startswith(SCHEME)


def absolute(path: AnyPath) -> AnyPath:
  """The path from the root on; one in a bucket begins there already."""
  return path if is_remote(path) else Path(os.path.abspath(path))


@functools.cache
def filesystem() -> Any:
  """The client, shared by all threads and by `epath` (and so by Orbax).

  Raises:
    UserError: `gcsfs` is not installed.
  """
  if importlib.util.find_spec('gcsfs') is None:
    raise UserError("gs://: package gcsfs is missing; pip install 'align_jax[gcs]'")
  import fsspec

  # Listings are kept otherwise, and would not show what TensorStore and other processes write;
  # and an upload whose bytes changed on the way is refused.
  wanted = {'use_listings_cache': False, 'consistency': 'md5'}
  fsspec.config.conf.setdefault('gcs', {}).update(wanted)
  logging.getLogger('gcsfs').setLevel(logging.CRITICAL)  # its tracebacks; we say what failed
  return epath.backend.fsspec_backend.fs(SCHEME)


@contextlib.contextmanager
def store_errors(where: str | os.PathLike[str]) -> Iterator[None]:
  """Turns what clients raise into a UserError that names the object; lets FileNotFoundError by.

  For a local path it does nothing.

  Raises:
    UserError: no access, or no answer for longer than the client's patience.
  """
  if not is_remote(where):
    yield
    return
  import aiohttp
  import gcsfs.retry
  import google.api_core.exceptions
  import google.auth.exceptions

  try:
    yield
  except (FileNotFoundError, UserError):
    raise
  except (
    OSError,
    ValueError,  # from TensorStore too
    aiohttp.ClientError,
    gcsfs.retry.HttpError,
    gcsfs.retry.ChecksumError,
    google.api_core.exceptions.GoogleAPIError,  # Orbax asks for the kind of the bucket with it
    google.auth.exceptions.GoogleAuthError,
  ) as error:
    said = ' '.join(str(error).split())[:200] or type(error).__name__
    denied = isinstance(error, google.auth.exceptions.GoogleAuthError)
    if denied or getattr(error, 'code', 0) == 401 or said.startswith('Forbidden'):
      mend = 'check the permissions, and log in: gcloud auth application-default login'
    else:
      mend = 'run the same command again when the store answers'
    raise UserError(f'{os.fspath(where)}: {said}; {mend}') from error


def read_bytes(path: str | os.PathLike[str]) -> bytes:
  """Reads a whole file.

  Raises:
    FileNotFoundError: there is none.
    UserError: the store does not answer.
  """
  path = os.fspath(path)
  if not is_remote(path):
    with open(path, 'rb') as file:
      return file.read()
  with store_errors(path):
    return filesystem().cat_file(path)


def read_part(path: str, start: int, stop: int) -> bytes:
  """Reads bytes `start` to `stop` of an object; fewer where it ends before. Raises as above."""
  with store_errors(path):
    return filesystem().cat_file(path, start=start, end=stop) if stop > start else b''


def write_object(path: str | os.PathLike[str], data: bytes) -> None:
  """Writes an object, whole or not at all.

  Raises:
    UserError: no access, or no answer; what was there before is there still.
  """
  path = os.fspath(path)
  with store_errors(path), _no_such_bucket(path):
    filesystem().pipe_file(path, data)


def upload(local: str | os.PathLike[str], path: str, sha256: str = '') -> None:
  """Copies a finished file up, whole or not at all; `sha256` is kept with it. Raises as above."""
  with store_errors(path), _no_such_bucket(path):
    metadata = {SHA256: sha256} if sha256 else None
    filesystem().put_file(os.fspath(local), path, metadata=metadata)


def download(path: str, local: str | os.PathLike[str], size: int) -> str:
  """Copies an object of `size` bytes down, part by part; returns the sha256 of what came.

  The local file is the caller's to write aside: after an error it is cut short.

  Raises:
    FileNotFoundError: there is no such object.
    UserError: the store does not answer, or the object ends early.
  """
  digest = hashlib.sha256()
  with open(local, 'wb') as file:
    for start in range(0, size, _CHUNK):
      stop = min(start + _CHUNK, size)
      part = read_part(path, start, stop)
      if len(part) != stop - start:
        raise UserError(f'{path}: ends after {start + len(part)} of {size} bytes; upload it again')
      digest.update(part)
      file.write(part)
  return digest.hexdigest()


def info(path: str) -> Info | None:
  """What is known of an object; None if there is none. Raises a UserError as above."""
  with store_errors(path):
    try:
      found = filesystem().info(path)
    except FileNotFoundError:
      return None
  return None if found['type'] == 'directory' else _info(found)


def find(pattern: str) -> dict[str, Info]:
  """Returns the objects that a glob matches, by path. Raises a UserError as above."""
  with store_errors(pattern):
    try:
      found = filesystem().glob(pattern, detail=True)
    except FileNotFoundError:
      return {}
  return {SCHEME + n: _info(f) for n, f in sorted(found.items()) if f['type'] == 'file'}


def remove(path: str) -> None:
  """Removes a file or an object, if it is there."""
  with contextlib.suppress(FileNotFoundError):
    if is_remote(path):
      with store_errors(path):
        filesystem().rm_file(path)
    else:
      os.remove(path)


def is_folder(path: AnyPath) -> bool:
  """Whether a path is a folder with something in it, or an empty one on a disk.

  Raises:
    UserError: the store does not answer; `is_dir` would take that for a no.
  """
  if not is_remote(path):
    return path.is_dir()
  with store_errors(path):
    try:
      return filesystem().info(os.fspath(path))['type'] == 'directory'
    except FileNotFoundError:
      return False


class Staged:
  """A folder to append in: itself where it is local, else a local one that is copied up.

  Objects cannot be appended to. So metrics, event files and traces are written locally, and the
  files that changed are copied up in the background, whole, every half a minute. When that fails,
  training goes on: it is said, and tried again after a longer and longer pause.

    staged = Staged(workdir)
    staged.fetch('metrics.jsonl')
    ...  # write in staged.local
    staged.sync()
    staged.close()

  Attributes:
    local: where to write.
  """

  def __init__(self, folder: AnyPath, *, every: float = _EVERY):
    """`every`: seconds between two uploads that are not forced."""
    self.local = Path(folder)
    self._remote = ''
    if is_remote(folder):
      self._remote = os.fspath(folder).rstrip('/')
      self.local = Path(tempfile.mkdtemp(prefix='align_jax-'))
    self._every = self._pause = every
    self._sent: dict[str, tuple[int, int]] = {}
    self._passing = threading.Lock()  # one upload at a time
    self._asked, self._closing = threading.Event(), threading.Event()
    self._thread: threading.Thread | None = None

  def fetch(self, name: str) -> bool:
    """Brings a file in that an earlier run left; returns whether there is one.

    Raises:
      UserError: the store does not answer.
    """
    path = self.local / name
    if self._remote:
      try:
        data = read_bytes(f'{self._remote}/{name}')
      except FileNotFoundError:
        return False
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(data)
      self._sent[name] = _stamp(path)
    return path.exists()

  def sync(self, force: bool = False) -> None:
    """Has changed files copied up.

    Args:
      force: now, and returns when that is done or has failed (which is said, not raised); call it
        before a checkpoint, so that a killed run has its metrics. Else soon, in the background.
    """
    if not self._remote or self._closing.is_set():
      return
    if force:
      self._upload()
      return
    self._asked.set()
    if self._thread is None:
      self._thread = threading.Thread(target=self._run, name='upload', daemon=True)
      self._thread.start()

  def close(self) -> None:
    """Copies up what is left, and removes the local folder.

    Raises:
      UserError: that failed; the local folder stays, and is named.
    """
    if not self._remote or self._closing.is_set():
      return
    self._closing.set()
    self._asked.set()
    if self._thread is not None:
      self._thread.join()
    reason = self._upload()
    if reason:
      names = ', '.join(self._changed())
      raise UserError(
        f'{self._remote}: not uploaded: {names} ({reason}); they are in {self.local}, copy them up '
        'by hand'
      )
    shutil.rmtree(self.local, ignore_errors=True)

  def _run(self) -> None:
    while True:
      self._asked.wait()
      if self._closing.is_set():
        return
      self._asked.clear()
      if self._upload():
        self._asked.set()
      if self._closing.wait(self._pause):
        return

  def _upload(self) -> str:
    """Copies up what changed; returns why that failed, '' if it did not."""
    with self._passing:
      try:
        for name, stamp in self._changed().items():
          path, remote = self.local / name, f'{self._remote}/{name}'
          if stamp[0] <= _WHOLE:
            write_object(remote, path.read_bytes())
          else:
            upload(path, remote)
          self._sent[name] = stamp
      except (UserError, FileNotFoundError) as error:  # the others would only wait as long
        self._pause = min(2 * self._pause, _LONGEST)
        if not self._closing.is_set():
          _log.warning('not uploaded, tried again in %.0f s: %s', self._pause, error)
        return str(error)
      self._pause = self._every
      return ''

  def _changed(self) -> Mapping[str, tuple[int, int]]:
    """Files that differ from what was copied up, by name below the folder: size and time."""
    out = {}
    for path in sorted(self.local.rglob('*')):
      name = path.relative_to(self.local).as_posix()
      if path.is_file() and TEMPORARY not in name and self._sent.get(name) != _stamp(path):
        out[name] = _stamp(path)
    return out


def _stamp(path: Path) -> tuple[int, int]:
  found = path.stat()
  return found.st_size, found.st_mtime_ns


def _info(found: Mapping[str, Any]) -> Info:
  version = found.get('generation') or found.get('etag') or found.get('updated') or ''
  return Info(int(found['size']), str(version), (found.get('metadata') or {}).get(SHA256, ''))


@contextlib.contextmanager
def _no_such_bucket(path: str) -> Iterator[None]:
  """A write that finds nothing has found no bucket."""
  try:
    yield
  except FileNotFoundError as error:
    raise UserError(f'{path}: no such bucket; create it, or correct its name') from error
