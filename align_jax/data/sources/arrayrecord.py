"""`arrayrecord:GLOB` or `arrayrecord:DIR`: shards as `align_jax.data.shards` writes them."""

import bisect
import concurrent.futures
import itertools
import os
from collections.abc import Sequence

from array_record.python.array_record_data_source import ArrayRecordDataSource

from align_jax.data import shards
from align_jax.data.record import Record, decode
from align_jax.data.sources.base import Source, check_index
from align_jax.data.sources.files import expand
from align_jax.data.sources.spec import ParsedSpec
from align_jax.errors import UserError

_MEND = 'fetch the file again or convert its data again'


def open_arrayrecord(spec: ParsedSpec) -> Source:
  """Opens shards; a `manifest.json` beside them gives the licence and is held against them.

  Raises:
    UserError: no file, a truncated or corrupt one, or one that disagrees with its manifest.
  """
  spec.check()
  files = expand(spec, shards.SUFFIX)
  manifests = {
    folder: shards.load_manifest(folder) for folder in {os.path.dirname(f) for f in files}
  }
  with concurrent.futures.ThreadPoolExecutor(16) as pool:  # over a network, opening takes its time
    readers = list(pool.map(_open_file, files))
  for file, reader in zip(files, readers, strict=True):
    manifest = manifests[os.path.dirname(file)]
    if manifest is not None:
      _check(file, len(reader), manifest)
  known = [m for m in manifests.values() if m is not None]
  if os.path.isdir(os.path.expanduser(spec.path)) and known:
    _check_all_there(os.path.expanduser(spec.path), files, known[0])
  if not sum(map(len, readers)):
    raise UserError(f'{spec.text}: no records in {len(files)} files; convert the data again')
  licence = '; '.join(dict.fromkeys(m.licence for m in known if m.licence))
  return ArrayRecordSource(spec.text, licence, files, readers)


class ArrayRecordSource:
  """Records of several files, in the files' sorted order."""

  def __init__(
    self, spec: str, licence: str, files: list[str], readers: list[ArrayRecordDataSource]
  ):
    self.spec = spec
    self.licence = licence
    self._files = files
    self._readers = readers  # thread safe, and picklable: they reopen their file
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
      for part, (file, reader) in enumerate(zip(self._files, self._readers, strict=True)):
        found = shards.load_index(file)
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
    except (RuntimeError, ValueError, OSError) as error:  # what the reader raises on bad bytes
      raise UserError(f'{where} is corrupt ({error}); {_MEND}') from error
    return decode(data, where)


def _open_file(file: str) -> ArrayRecordDataSource:
  try:
    return ArrayRecordDataSource(file)
  except (RuntimeError, ValueError, OSError) as error:
    raise UserError(f'{file}: truncated or no ArrayRecord file ({error}); {_MEND}') from error


def _check(file: str, count: int, manifest: shards.Manifest) -> None:
  name = os.path.basename(file)
  entry = next((s for s in manifest.shards if s.file == name), None)
  if not manifest.complete:
    raise UserError(f'{file}: its conversion was not finished; run the same command again')
  if entry is None:
    raise UserError(f'{file}: not in the manifest beside it; take the file out or convert again')
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
