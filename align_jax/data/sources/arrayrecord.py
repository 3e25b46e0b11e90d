"""`arrayrecord:GLOB` or `arrayrecord:DIR`: shards as `align_jax.data.shards` writes them.

`arrayrecord:DIR?follow=1` opens those that are finished of a folder that is still written.
"""

import bisect
import concurrent.futures
import dataclasses
import glob
import itertools
import math
import os
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from array_record.python.array_record_data_source import ArrayRecordDataSource

from align_jax import storage
from align_jax.data import shards
from align_jax.data.finished import Finished, entries, wait_for_records
from align_jax.data.record import Record, decode
from align_jax.data.sources.base import Source, check_index
from align_jax.data.sources.files import expand, expand_remote
from align_jax.data.sources.spec import ParsedSpec
from align_jax.data.sources.streaming import GIB, RemoteShard, ShardCache
from align_jax.errors import UserError

_CACHE_GIB = 50.0  # half of what the disk of a TPU VM holds by default
_WAIT_S = 600.0  # for the first shard: models are loaded and trained before there is one
_MEND = 'fetch the file again or convert its data again'


def open_arrayrecord(spec: ParsedSpec) -> Source:
  """Opens shards; a `manifest.json` beside them gives the licence and is held against them.

  In a bucket (`gs://…`) it must be there: records are counted by it, and a shard is fetched when a
  record of it is asked for. Option there: `cache_gib`, see `streaming.ShardCache`.

  Option `follow=1`: a folder that is still written opens with what is finished of it; where there
  is nothing yet, after a wait of at most `wait` seconds.

  Raises:
    UserError: no file, a truncated or corrupt one, or one that disagrees with its manifest.
  """
  if is_following(spec):
    return open_finished(spec, wait_for_first(spec))
  if storage.is_remote(spec.path):
    return _open_remote(spec)
  spec.check(['follow'])
  files = expand(spec, shards.SUFFIX)
  manifests = {
    folder: shards.load_manifest(folder) for folder in {os.path.dirname(f) for f in files}
  }
  readers = _open_files(files)
  for file, reader in zip(files, readers, strict=True):
    manifest = manifests[os.path.dirname(file)]
    if manifest is not None:
      _check(file, len(reader), _entry(file, manifest))
  known = [m for m in manifests.values() if m is not None]
  if os.path.isdir(os.path.expanduser(spec.path)) and known:
    _check_all_there(os.path.expanduser(spec.path), files, known[0])
  if not sum(map(len, readers)):
    raise UserError(f'{spec.text}: no records in {len(files)} files; convert the data again')
  licence = '; '.join(dict.fromkeys(m.licence for m in known if m.licence))
  return ArrayRecordSource(spec.text, licence, files, readers)


def is_following(spec: ParsedSpec) -> bool:
  """Whether a spec names a folder of shards that may still grow.

  Raises:
    UserError: another value than `follow=1`.
  """
  if spec.scheme != 'arrayrecord' or 'follow' not in spec.options:
    return False
  if spec.options['follow'] != '1':
    raise UserError(
      f'{spec.text}: follow={spec.options["follow"]}; write follow=1, or leave it out'
    )
  return True


def wait_for_first(spec: ParsedSpec) -> Finished:
  """Returns what is finished of the folder that is followed, once there is a record.

  Raises:
    UserError: nothing comes in the time that the spec allows.
  """
  seconds = _number(spec, 'wait', _WAIT_S, 'time; write a number of seconds from 0 on')
  return wait_for_records(_followed(spec), seconds, spec.text)


def open_finished(spec: ParsedSpec, seen: Finished) -> Source:
  """Opens those shards of the folder that is followed which were seen, whatever came since.

  Raises:
    UserError: one of them is gone, another one now, truncated or corrupt.
  """
  folder = _followed(spec)
  manifest = shards.load_manifest(folder)
  wanted = entries(folder, manifest, seen)
  files = [os.path.join(folder, entry.file) for entry in wanted]
  there: Mapping[str, storage.Info | None]
  if storage.is_remote(folder):
    there = storage.find(f'{glob.escape(folder)}/*{shards.SUFFIX}')
  else:
    there = {file: None for file in files if os.path.exists(file)}
  for file in files:
    if file not in there:
      raise UserError(f'{file}: gone, but the manifest names it; {_MEND}')
  readers: Sequence[Part]
  if storage.is_remote(folder):
    readers = _remote_parts(spec, {f: found for f in files if (found := there[f])}, wanted)
  else:
    readers = _open_files(files)
    for file, reader, entry in zip(files, readers, wanted, strict=True):
      _check(file, len(reader), entry)
  licence = manifest.licence if manifest is not None else ''
  return ArrayRecordSource(spec.text, licence, files, readers)


@runtime_checkable
class Part(Protocol):
  """The records of one file, as bytes. Thread safe and picklable."""

  def __len__(self) -> int: ...

  def __getitem__(self, position: int) -> bytes: ...


@dataclasses.dataclass(frozen=True)
class RemotePart:
  """Those of a shard in a bucket."""

  shard: RemoteShard
  cache: ShardCache

  def __len__(self) -> int:
    return self.shard.entry.count

  def __getitem__(self, position: int) -> bytes:
    return self.cache.open(self.shard)[position]


class ArrayRecordSource:
  """Records of several files, in the files' sorted order."""

  def __init__(self, spec: str, licence: str, files: Sequence[str], readers: Sequence[Part]):
    self.spec = spec
    self.licence = licence
    self._files = files
    self._readers = readers
    self._ends = list(itertools.accumulate(map(len, readers)))
    self._index: list[tuple[str, str]] | None = None

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, index: int) -> Record:
    check_index(index, len(self))
    part = bisect.bisect_right(self._ends, index)
    return self._read(part, index - (self._ends[part - 1] if part else 0))

  def ids(self) -> Sequence[str]:
    return [name for name, _ in self._load_index()]

  def pair_ids(self) -> Sequence[str]:
    return [pair for _, pair in self._load_index()]

  def _load_index(self) -> list[tuple[str, str]]:
    """Returns (id, pair id) of every record: from the index files, or else from the records."""
    if self._index is None:  # two threads at once would only do the same work twice
      rows: list[tuple[str, str]] = []
      with concurrent.futures.ThreadPoolExecutor(16) as pool:  # over a network they take their time
        indexes = list(pool.map(shards.load_index, self._files))
      for part, (found, reader) in enumerate(zip(indexes, self._readers, strict=True)):
        if found is None or len(found) != len(reader):
          records = (self._read(part, i) for i in range(len(reader)))
          found = [(r.id, r.pair_id) for r in records]
        rows += found
      self._index = rows
    return self._index

  def _read(self, part: int, position: int) -> Record:
    where = f'{self._files[part]}: record {position}'
    try:
      data = self._readers[part][position]
    except UserError:  # a shard that cannot be fetched
      raise
    except (RuntimeError, ValueError, OSError) as error:  # what the reader raises on bad bytes
      raise UserError(f'{where} is corrupt ({error}); {_MEND}') from error
    return decode(data, where)


def _open_remote(spec: ParsedSpec) -> Source:
  spec.check(['cache_gib', 'follow'])
  found = expand_remote(spec, shards.SUFFIX)
  files = list(found)
  folders = sorted({os.path.dirname(f) for f in files})
  manifests = {folder: shards.load_manifest(folder) for folder in folders}
  wanted = []
  for file in files:
    manifest = manifests[os.path.dirname(file)]
    if manifest is None:
      raise UserError(
        f'{file}: no {shards.MANIFEST} beside it, by which its records are counted; convert the '
        'data again, or mount the bucket (docs/storage.md)'
      )
    wanted.append(_entry(file, manifest))
  known = [m for m in manifests.values() if m is not None]
  parts = _remote_parts(spec, found, wanted)
  if folders == [str(storage.open_path(spec.path))]:
    _check_all_there(folders[0], files, known[0])
  if not sum(entry.count for entry in wanted):
    raise UserError(f'{spec.text}: no records in {len(files)} files; convert the data again')
  licence = '; '.join(dict.fromkeys(m.licence for m in known if m.licence))
  return ArrayRecordSource(spec.text, licence, files, parts)


def _remote_parts(
  spec: ParsedSpec, found: Mapping[str, storage.Info], wanted: Sequence[shards.Shard]
) -> list[RemotePart]:
  """Shards of a bucket, as listed and with their entries in the manifest; nothing is fetched."""
  for (file, info), entry in zip(found.items(), wanted, strict=True):
    if info.size != entry.bytes:
      raise UserError(f'{file}: {info.size} bytes, the manifest says {entry.bytes}; {_MEND}')
  limit = _number(spec, 'cache_gib', _CACHE_GIB, 'size; write a number of GiB above 0')
  if not limit:
    raise UserError(f'{spec.text}: cache_gib=0 is no size; write a number of GiB above 0')
  cache = ShardCache(spec.text, int(limit * GIB), sum(entry.bytes for entry in wanted))
  return [
    RemotePart(RemoteShard(file, info.version, entry), cache)
    for (file, info), entry in zip(found.items(), wanted, strict=True)
  ]


def _followed(spec: ParsedSpec) -> str:
  """The folder that a spec follows."""
  remote = storage.is_remote(spec.path)
  spec.check(['follow', 'wait', *(['cache_gib'] if remote else [])])
  if not spec.path or glob.has_magic(spec.path) or spec.path.endswith(shards.SUFFIX):
    raise UserError(f'{spec.text}: follow=1 follows a whole folder; write arrayrecord:DIR?follow=1')
  return str(storage.open_path(spec.path))


def _number(spec: ParsedSpec, option: str, default: float, mend: str) -> float:
  text = spec.options.get(option, str(default))
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  if not 0 <= value < math.inf:
    raise UserError(f'{spec.text}: {option}={text} is no {mend}')
  return value


def _open_files(files: Sequence[str]) -> list[ArrayRecordDataSource]:
  with concurrent.futures.ThreadPoolExecutor(16) as pool:  # over a network, opening takes its time
    return list(pool.map(_open_file, files))


def _open_file(file: str) -> ArrayRecordDataSource:
  try:
    return ArrayRecordDataSource(file)
  except (RuntimeError, ValueError, OSError) as error:
    raise UserError(f'{file}: truncated or no ArrayRecord file ({error}); {_MEND}') from error


def _entry(file: str, manifest: shards.Manifest) -> shards.Shard:
  name = os.path.basename(file)
  entry = next((s for s in manifest.shards if s.file == name), None)
  if not manifest.complete:
    raise UserError(
      f'{file}: its conversion was not finished; run the same command again, or open what there is '
      'with arrayrecord:DIR?follow=1'
    )
  if entry is None:
    raise UserError(f'{file}: not in the manifest beside it; take the file out or convert again')
  return entry


def _check(file: str, count: int, entry: shards.Shard) -> None:
  size = os.path.getsize(file)
  if (size, count) != (entry.bytes, entry.count):
    raise UserError(
      f'{file}: {count} records in {size} bytes, the manifest says {entry.count} in '
      f'{entry.bytes}; {_MEND}'
    )


def _check_all_there(folder: str, files: list[str], manifest: shards.Manifest) -> None:
  there = {os.path.basename(f) for f in files}
  for shard in manifest.shards:
    if shard.file not in there:
      raise UserError(f'{os.path.join(folder, shard.file)}: missing; {_MEND}')
