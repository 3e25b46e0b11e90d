"""Shards of a bucket, fetched whole on first need and kept on a local disk up to a limit.

The reader of ArrayRecord files is C++ and reads local files only. So a shard is copied into
`shards/` of the user's cache folder, under a name made of its address and version: an object that
changed is another entry. Threads and processes share the folder. Each writes aside and renames, so
that a name stands for a whole, checked shard; two processes may fetch the same one, and one wins.
"""

import collections
import contextlib
import dataclasses
import hashlib
import logging
import os
import threading
import time
from collections.abc import Iterator

from array_record.python.array_record_data_source import ArrayRecordDataSource

from align_jax import storage
from align_jax.cache import cache_folder
from align_jax.data import shards
from align_jax.errors import UserError
from align_jax.files import TEMPORARY, aside, disk_errors

GIB = 1 << 30
_STALE = 3600.0  # seconds since the last byte of a fetch whose process must have been killed
_OPEN = 512  # shards held open at a time; a process may open so many files
_TOUCH = 60.0  # seconds between two notes on the disk that a shard is in use

_log = logging.getLogger('align_jax.data')


@dataclasses.dataclass(frozen=True)
class RemoteShard:
  """A shard in a bucket.

  Attributes:
    path: its address.
    version: of the object, as listed.
    entry: what the manifest says of it.
  """

  path: str
  version: str
  entry: shards.Shard

  @property
  def key(self) -> str:
    """Its name in the cache."""
    digest = hashlib.sha256(f'{self.path}\0{self.version}\0{self.entry.sha256}'.encode())
    return f'{digest.hexdigest()[:32]}{shards.SUFFIX}'


class ShardCache:
  """Opens shards of one data set. Thread safe, and picklable: another process opens its own."""

  def __init__(self, spec: str, limit: int, total: int):
    """Makes no folder yet.

    Args:
      spec: of the data set, for messages.
      limit: bytes that `shards/` may hold, the shards of all data sets together. The shard that is
        asked for is fetched even if it alone is larger.
      total: bytes of the data set.
    """
    self._spec, self._limit, self._total = spec, limit, total
    self._start()

  def __getstate__(self) -> tuple[str, int, int]:
    return self._spec, self._limit, self._total

  def __setstate__(self, state: tuple[str, int, int]) -> None:
    self._spec, self._limit, self._total = state
    self._start()

  def _start(self) -> None:
    self._folder = str(cache_folder() / 'shards')
    self._lock = threading.Lock()
    self._fetching: dict[str, threading.Lock] = collections.defaultdict(threading.Lock)
    self._readers: dict[str, ArrayRecordDataSource] = {}
    self._used: dict[str, float] = {}  # when, by this process
    self._noted: dict[str, float] = {}  # when that was last noted on the disk
    self._coming: dict[str, int] = {}  # bytes on their way
    self._fetched: set[str] = set()
    self._said = False

  def open(self, shard: RemoteShard) -> ArrayRecordDataSource:
    """Returns a reader of a shard, after fetching it if need be.

    A reader holds its file open: it goes on reading when the file's name is removed.

    Raises:
      UserError: the object is gone, is not what the manifest says, or cannot be had; a full disk.
    """
    key = shard.key
    reader = self._readers.get(key)
    if reader is None:
      with self._lock:
        lock = self._fetching[key]
      with lock:
        reader = self._readers.get(key)
        if reader is None:
          reader = self._open(shard)
    self._touch(key)
    return reader

  def _open(self, shard: RemoteShard) -> ArrayRecordDataSource:
    path = os.path.join(self._folder, shard.key)
    while True:
      if not _has_size(path, shard.entry.bytes):
        self._fetch(shard, path)
      try:
        reader = ArrayRecordDataSource(path)
        if len(reader):
          reader[0]  # opens the file
      except (RuntimeError, ValueError, OSError) as error:
        if not os.path.exists(path):
          continue  # another process made room in between
        with contextlib.suppress(FileNotFoundError):
          os.remove(path)
        raise UserError(
          f'{shard.path}: no ArrayRecord file ({error}); convert the data again'
        ) from error
      if len(reader) != shard.entry.count:
        raise UserError(
          f'{shard.path}: {len(reader)} records, the manifest says {shard.entry.count}; '
          'convert the data again'
        )
      with self._lock:
        self._readers[shard.key] = reader
        if len(self._readers) > _OPEN:
          self._readers.pop(next(iter(self._readers)))
      return reader

  def _fetch(self, shard: RemoteShard, path: str) -> None:
    """Copies a shard down, aside first; the checksum is checked before it gets its name."""
    entry = shard.entry
    with disk_errors(self._folder):
      os.makedirs(self._folder, exist_ok=True)
    with self._lock:
      if shard.key in self._fetched and not self._said:
        self._said = True
        _log.warning(
          '%s: shards are fetched again and again: the data set has %.2f GiB, the cache may hold '
          '%.2f; raise ?cache_gib=, or mount the bucket (docs/storage.md)',
          self._spec,
          self._total / GIB,
          self._limit / GIB,
        )
      self._fetched.add(shard.key)
      self._coming[shard.key] = entry.bytes
      self._make_room(shard.key)
    temporary = aside(path)
    try:
      with disk_errors(self._folder):
        try:
          got = storage.download(shard.path, temporary, entry.bytes)
        except FileNotFoundError as error:
          raise UserError(f'{shard.path}: missing; convert the data again') from error
        if got != entry.sha256:
          raise UserError(
            f'{shard.path}: its bytes are not those of the manifest (sha256 {got[:12]}…, not '
            f'{entry.sha256[:12]}…); upload the shard or convert the data again'
          )
        os.replace(temporary, path)
    finally:
      self._coming.pop(shard.key)
      with contextlib.suppress(FileNotFoundError):
        os.remove(temporary)

  def _make_room(self, key: str) -> None:
    """Removes the shards that were not used for longest, until what is on its way fits."""
    found = sorted(self._entries(), key=lambda e: e[1])
    held = sum(size for _, _, size in found) + sum(self._coming.values())
    for name, _, size in found:
      if held <= self._limit:
        return
      if name != key:
        held -= size
        # the space is free once nobody reads the file any more
        self._readers.pop(name, None)
        with contextlib.suppress(FileNotFoundError):
          os.remove(os.path.join(self._folder, name))

  def _entries(self) -> Iterator[tuple[str, float, int]]:
    """Yields (name, last use, bytes) of what is there; removes what killed processes left."""
    for file in os.scandir(self._folder):
      with contextlib.suppress(FileNotFoundError):
        found = file.stat()
        if TEMPORARY not in file.name:
          yield file.name, max(found.st_mtime, self._used.get(file.name, 0.0)), found.st_size
        elif time.time() - found.st_mtime > _STALE:
          os.remove(file.path)

  def _touch(self, key: str) -> None:
    """Notes that a shard is in use; on the disk, for other processes, not at every record."""
    now = self._used[key] = time.time()
    if now - self._noted.get(key, 0.0) > _TOUCH:
      self._noted[key] = now
      with contextlib.suppress(OSError):
        os.utime(os.path.join(self._folder, key), (now, now))


def _has_size(path: str, size: int) -> bool:
  """Whether a whole shard is there: a machine that lost power may keep a name without bytes."""
  try:
    return os.path.getsize(path) == size
  except FileNotFoundError:
    return False
