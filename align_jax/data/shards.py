"""Shards of records and their manifest: written aside, checked, then renamed into place.

A folder of shards holds

  shard-00000-of-00004.arrayrecord   records
  shard-00000-of-00004.ids.jsonl     one line per record, `[id, pair_id]`: asks need no image
  manifest.json                      counts, checksums, licence, versions (`Manifest`)

The folder may be in a bucket: its shards are written on this machine and uploaded one by one.
"""

import contextlib
import dataclasses
import glob
import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Mapping
from typing import Any

from array_record.python.array_record_module import ArrayRecordWriter

from align_jax import storage
from align_jax.cache import cache_folder
from align_jax.data.record import SCHEMA, Record, encode
from align_jax.errors import UserError
from align_jax.files import TEMPORARY, aside, disk_errors, sync, write_file

SUFFIX = '.arrayrecord'
INDEX_SUFFIX = '.ids.jsonl'
MANIFEST = 'manifest.json'
_FORMAT = 'align_jax.shards'


@dataclasses.dataclass(frozen=True)
class Shard:
  """One finished shard.

  Attributes:
    file: name within the folder.
    count: records.
    bytes: size of the file.
    sha256: of the file.
    index_sha256: of its index of ids.
    skipped: records that could not be read, by reason.
  """

  file: str
  count: int
  bytes: int
  sha256: str
  index_sha256: str
  skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Manifest:
  """What a folder of shards holds.

  Attributes:
    spec: where the records came from.
    licence: of the data; '' if unknown.
    shard_count: shards that there will be.
    source_records: records of the source, those skipped included.
    complete: whether all shards are there.
    shards: the finished ones, by name.
    versions: of the writing programs.
  """

  spec: str
  licence: str
  shard_count: int
  source_records: int = 0
  complete: bool = False
  shards: tuple[Shard, ...] = ()
  versions: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @property
  def total(self) -> int:
    return sum(s.count for s in self.shards)

  @property
  def skipped(self) -> dict[str, int]:
    out: dict[str, int] = {}
    for shard in self.shards:
      for reason, count in shard.skipped.items():
        out[reason] = out.get(reason, 0) + count
    return out


def write_shards(
  records: Iterable[Record], directory: str, shards: int, licence: str, spec: str
) -> Manifest:
  """Writes records into `shards` files, record i into file `i % shards`; all of them or nothing.

  Args:
    records: read once, never held together.
    directory: made if missing; must hold no shards, but for those of an unfinished `write_shards`
      of the same spec, which are replaced.
    shards: number of files.
    licence: of the data; '' if unknown.
    spec: says where the records come from (a source spec, or the generator's id and settings).

  Raises:
    UserError: no records, a folder in use, or a full or read-only disk.
  """
  previous = load_manifest(directory)
  check_target(directory, previous, spec)
  if previous is not None:
    _remove_shards(directory, previous.shard_count)
  remove_temporaries(directory)
  manifest = Manifest(spec=spec, licence=licence, shard_count=shards, versions=versions())
  with contextlib.ExitStack() as stack:
    writers = [stack.enter_context(ShardWriter(directory, i, shards)) for i in range(shards)]
    count = 0
    for count, record in enumerate(records, start=1):
      writers[(count - 1) % shards].add(record)
    if not count:
      raise UserError(f'{directory}: no records to write; check what makes them')
    for writer in writers:
      writer.close()  # a full disk shows here at the latest, before the first rename
    # from here on a kill leaves an unfinished manifest, which the next run may replace
    save_manifest(directory, dataclasses.replace(manifest, source_records=count))
    done = tuple(writer.commit() for writer in writers)
  manifest = dataclasses.replace(manifest, source_records=count, complete=True, shards=done)
  save_manifest(directory, manifest)
  return manifest


class ShardWriter:
  """Writes one shard aside; `commit` puts it in place, leaving the context without it drops it."""

  def __init__(self, directory: str, index: int, count: int):
    self._directory = directory
    self._folder = _writing_folder(directory)
    self.file = shard_name(index, count)
    self._path = os.path.join(directory, self.file)
    self._data = aside(os.path.join(self._folder, self.file))
    self._ids = aside(os.path.join(self._folder, f'{self.file}{INDEX_SUFFIX}'))
    self._count = 0
    self._open = False

  def __enter__(self) -> 'ShardWriter':
    with contextlib.ExitStack() as undo, disk_errors(self._folder):
      undo.callback(self._remove)
      os.makedirs(self._folder, exist_ok=True)
      self._index = open(self._ids, 'w', encoding='utf-8')
      undo.callback(self._index.close)
      self._writer = ArrayRecordWriter(self._data, 'group_size:1')
      undo.pop_all()
    self._open = True
    return self

  def __exit__(self, *exception: object) -> None:
    with contextlib.suppress(UserError):
      self.close()
    self._remove()

  def add(self, record: Record) -> None:
    with disk_errors(self._folder):
      self._writer.write(encode(record))
      self._index.write(json.dumps([record.id, record.pair_id], ensure_ascii=False) + '\n')
    self._count += 1

  def close(self) -> None:
    if not self._open:
      return
    self._open = False
    with disk_errors(self._folder):
      try:
        self._writer.close()
      finally:
        self._index.close()
      for path in (self._data, self._ids):
        sync(path)

  def _remove(self) -> None:
    for path in (self._data, self._ids):
      with contextlib.suppress(OSError):
        os.remove(path)

  def commit(self, skipped: Mapping[str, int] | None = None) -> Shard:
    """Renames or uploads the shard into place. Returns its entry in the manifest."""
    self.close()
    shard = Shard(
      file=self.file,
      count=self._count,
      bytes=os.path.getsize(self._data),
      sha256=checksum(self._data),
      index_sha256=checksum(self._ids),
      skipped=dict(skipped or {}),
    )
    if storage.is_remote(self._directory):
      storage.upload(self._ids, index_path(self._path), shard.index_sha256)
      storage.upload(self._data, self._path, shard.sha256)
      self._remove()
      return shard
    with disk_errors(self._directory):
      os.replace(self._ids, index_path(self._path))
      os.replace(self._data, self._path)
      sync(self._directory)
    return shard


def shard_name(index: int, count: int) -> str:
  return f'shard-{index:05d}-of-{count:05d}{SUFFIX}'


def index_path(file: str) -> str:
  return file.removesuffix(SUFFIX) + INDEX_SUFFIX


def load_index(file: str) -> list[tuple[str, str]] | None:
  """Returns (id, pair id) of every record of a shard, None if the shard has no index.

  Raises:
    UserError: the index is damaged.
  """
  path = index_path(file)
  try:
    rows = [json.loads(line) for line in storage.read_bytes(path).splitlines()]
    return [(str(name), str(pair)) for name, pair in rows]
  except FileNotFoundError:
    return None
  except UserError:  # the store does not answer
    raise
  except (OSError, ValueError, TypeError) as error:
    raise UserError(f'{path}: damaged ({error}); delete it, it is only a short cut') from error


def is_intact(directory: str, shard: Shard) -> bool:
  """Whether the files of a finished shard are there with the checksums of the manifest."""
  path = os.path.join(directory, shard.file)
  if storage.is_remote(path):
    return _is_intact_remote(path, shard)
  try:
    return (
      os.path.getsize(path) == shard.bytes
      and checksum(index_path(path)) == shard.index_sha256
      and checksum(path) == shard.sha256
    )
  except FileNotFoundError:
    return False


def _is_intact_remote(path: str, shard: Shard) -> bool:
  """The same in a bucket; a shard is read again only if no checksum was kept with it."""
  found = storage.info(path)
  try:
    if found is None or found.size != shard.bytes:
      return False
    if hashlib.sha256(storage.read_bytes(index_path(path))).hexdigest() != shard.index_sha256:
      return False
    return (found.sha256 or storage.download(path, os.devnull, found.size)) == shard.sha256
  except FileNotFoundError:
    return False


def load_manifest(directory: str) -> Manifest | None:
  """Returns the manifest of a folder, None if it has none.

  Raises:
    UserError: the manifest is damaged or of another schema.
  """
  path = os.path.join(directory, MANIFEST)
  try:
    values: Any = json.loads(storage.read_bytes(path))
    if values['format'] != _FORMAT or values['schema'] != SCHEMA:
      raise UserError(
        f'{path}: {values["format"]} {values["schema"]}, this version reads '
        f'{_FORMAT} {SCHEMA}; convert the data again'
      )
    names = [f.name for f in dataclasses.fields(Manifest)]
    entries = tuple(Shard(**shard) for shard in values['shards'])
    return Manifest(**{**{n: values[n] for n in names}, 'shards': entries})
  except FileNotFoundError:
    return None
  except (OSError, LookupError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
    raise UserError(f'{path}: damaged ({error!r}); delete the folder and convert again') from error


def save_manifest(directory: str, manifest: Manifest) -> None:
  """Writes `manifest.json`: the old one or the new one is there at any moment."""
  values = {
    'format': _FORMAT,
    'schema': SCHEMA,
    'total': manifest.total,
    'skipped': manifest.skipped,
    **dataclasses.asdict(manifest),
  }
  write_file(os.path.join(directory, MANIFEST), json.dumps(values, indent=2, ensure_ascii=False))


def check_target(directory: str, manifest: Manifest | None, spec: str) -> None:
  """Raises a UserError if the folder holds shards that writing there would mix with or lose."""
  if manifest is not None and (manifest.complete or manifest.spec != spec):
    raise UserError(f'{directory}: holds the shards of {manifest.spec}; choose an empty folder')
  pattern = os.path.join(glob.escape(directory), f'*{SUFFIX}')
  remote = storage.is_remote(directory)
  found = list(storage.find(pattern)) if remote else glob.glob(pattern)
  if manifest is None and found:
    raise UserError(f'{directory}: holds {found[0]} without a manifest; choose an empty folder')


def _writing_folder(directory: str) -> str:
  """Where shards are written aside: in the folder, or for a bucket in one of this machine."""
  if not storage.is_remote(directory):
    return directory
  name = hashlib.sha256(directory.rstrip('/').encode()).hexdigest()[:16]
  return os.path.join(cache_folder(), 'writing', name)


def _remove_shards(directory: str, count: int) -> None:
  for index in range(count):
    path = os.path.join(directory, shard_name(index, count))
    for file in (path, index_path(path)):
      storage.remove(file)


def remove_temporaries(directory: str) -> None:
  """Removes what killed writers left behind."""
  folder = glob.escape(_writing_folder(directory))
  for path in glob.glob(os.path.join(folder, f'.*{TEMPORARY}*')):
    storage.remove(path)


def checksum(path: str) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def versions() -> dict[str, str]:
  """Returns the versions that the manifest records."""
  out = {'python': platform.python_version()}
  for package in ('align_jax', 'array_record', 'msgpack'):
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      out[package] = importlib.metadata.version(package)
  return out
