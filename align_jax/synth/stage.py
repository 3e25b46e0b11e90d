"""A stage of the engine on disk: parts of rows, each written whole or not at all.

A stage is a folder of the work folder:

  stage.json                 what the stage was made with, and a key that tells it from any other
  part-00003.jsonl           rows, one line of JSON each
  part-00003.arrayrecord     records with images, where the stage makes images
  part-00003.safetensors     arrays, where it makes those
  part-00003.json            written last: counts and checksums; without it the part is not there

Parts do not know of each other: any process may write any of them, and a kill loses those in work.
"""

import contextlib
import dataclasses
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from safetensors.numpy import load_file, save_file

from align_jax.data.record import Record, decode, encode
from align_jax.data.shards import checksum, versions
from align_jax.errors import UserError
from align_jax.files import TEMPORARY, aside, disk_errors, sync, write_file
from align_jax.synth.rows import from_json, to_json

T = TypeVar('T')
STAGE = 'stage.json'
_FORMAT, _SCHEMA = 'align_jax.stage', 1
_ROWS, _RECORDS, _ARRAYS, _ENTRY = '.jsonl', '.arrayrecord', '.safetensors', '.json'


@dataclasses.dataclass(frozen=True)
class Stage:
  """An open stage.

  Attributes:
    folder: where its parts are.
    key: equal for equal settings of this stage and of all before it.
    parts: how many there will be.
  """

  folder: Path
  key: str
  parts: int

  @property
  def name(self) -> str:
    return self.folder.name

  def path(self, part: int, suffix: str) -> Path:
    return self.folder / f'part-{part:05d}{suffix}'

  def is_done(self, part: int) -> bool:
    """Whether a part is there, with the checksums it was written with.

    Raises:
      UserError: its entry is damaged.
    """
    entry = self._entry(part)
    if entry is None:
      return False
    try:
      return all(
        checksum(str(self.path(part, suffix))) == sha256
        for suffix, sha256 in entry['files'].items()
      )
    except FileNotFoundError:
      return False

  def count_done(self) -> int:
    return sum(self.path(part, _ENTRY).exists() for part in range(self.parts))

  def is_complete(self) -> bool:
    return self.count_done() == self.parts

  def write(
    self,
    part: int,
    rows: Iterable[Any],
    records: Iterable[Record] | None = None,
    arrays: Mapping[str, np.ndarray] | None = None,
  ) -> None:
    """Writes a part; a reader sees it when all of it is on the disk.

    Raises:
      UserError: a full or read-only disk; what the part was before stays.
    """
    lines = [json.dumps(to_json(row), ensure_ascii=False) + '\n' for row in rows]
    hidden = aside(str(self.folder / f'part-{part:05d}'))
    wanted = [_ROWS]
    try:
      with disk_errors(str(self.folder)):
        self.folder.mkdir(parents=True, exist_ok=True)
        _write_text(f'{hidden}{_ROWS}', ''.join(lines))
        if records is not None:
          wanted.append(_RECORDS)
          writer = ArrayRecordWriter(f'{hidden}{_RECORDS}', 'group_size:1')
          try:
            for record in records:
              writer.write(encode(record))
          finally:
            writer.close()
        if arrays is not None:
          wanted.append(_ARRAYS)
          save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, f'{hidden}{_ARRAYS}')
        files = {}
        for suffix in wanted:
          sync(f'{hidden}{suffix}')
          files[suffix] = checksum(f'{hidden}{suffix}')
        # without its entry a part is not there: first it goes, last the new one comes
        self.path(part, _ENTRY).unlink(missing_ok=True)
        for suffix in wanted:
          os.replace(f'{hidden}{suffix}', self.path(part, suffix))
      entry = {'key': self.key, 'rows': len(lines), 'files': files}
      write_file(str(self.path(part, _ENTRY)), json.dumps(entry) + '\n')
    finally:
      for suffix in (_ROWS, _RECORDS, _ARRAYS):
        with contextlib.suppress(OSError):
          os.remove(f'{hidden}{suffix}')

  def rows(self, part: int, cls: type[T]) -> list[T]:
    """Reads the rows of a part.

    Raises:
      UserError: the part is not there or damaged.
    """
    path = self.path(part, _ROWS)
    try:
      # not splitlines: texts may hold other ends of lines, U+2028 for one
      lines = path.read_text(encoding='utf-8').removesuffix('\n').split('\n')
      return [
        from_json(cls, json.loads(line), f'{path}:{i}') for i, line in enumerate(lines, 1) if line
      ]
    except (OSError, ValueError) as error:
      raise UserError(f'{path}: {error}; delete {self.folder} and run it again') from error

  def all_rows(self, cls: type[T]) -> Iterator[T]:
    """Reads the rows of all parts, in order."""
    for part in range(self.parts):
      yield from self.rows(part, cls)

  def records(self, part: int) -> Sequence[Record]:
    """Opens the records of a part; each is read when it is asked for."""
    return _Records(self.path(part, _RECORDS))

  def arrays(self, part: int) -> dict[str, np.ndarray]:
    """Reads the arrays of a part."""
    path = self.path(part, _ARRAYS)
    try:
      return load_file(path)
    except Exception as error:  # safetensors raises its own kinds
      raise UserError(f'{path}: {error}; delete {self.folder} and run it again') from error

  def _entry(self, part: int) -> dict[str, Any] | None:
    path = self.path(part, _ENTRY)
    try:
      entry = json.loads(path.read_text())
      return entry if entry['key'] == self.key else None
    except FileNotFoundError:
      return None
    except (OSError, ValueError, LookupError, TypeError) as error:
      raise UserError(f'{path}: damaged ({error!r}); delete it and run again') from error


class _Records(Sequence[Record]):
  """Records of one file."""

  def __init__(self, path: Path):
    self._path = path
    try:
      self._reader = ArrayRecordDataSource(str(path))
    except (OSError, RuntimeError, ValueError) as error:
      raise UserError(f'{path}: {error}; delete {path.parent} and run it again') from error

  def __len__(self) -> int:
    return len(self._reader)

  def __getitem__(self, index: Any) -> Any:
    if isinstance(index, slice):
      return [self[i] for i in range(*index.indices(len(self)))]
    if not 0 <= index < len(self):
      raise IndexError(index)
    return decode(self._reader[index], f'{self._path}: record {index}')


def stage_key(name: str, settings: Mapping[str, Any], before: str) -> str:
  """Returns what tells a stage made with these settings, after such stages, from any other."""
  text = json.dumps([name, settings, before], sort_keys=True, default=dict, ensure_ascii=False)
  return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def open_stage(
  workdir: Path, name: str, settings: Mapping[str, Any], before: str, parts: int
) -> Stage:
  """Opens a stage, or makes it.

  Args:
    workdir: of the run.
    name: of the stage.
    settings: everything of the config that decides its rows, as JSON values.
    before: key of the stage before it; '' for the first.
    parts: how many there are.

  Raises:
    UserError: the folder holds parts made with other settings; it names them and the mend.
  """
  stage = Stage(workdir / name, stage_key(name, {**settings, 'parts': parts}, before), parts)
  path = stage.folder / STAGE
  found = _read_stage(path)
  plain = json.loads(json.dumps(settings, default=dict))
  if found is None or (found['key'] != stage.key and not _has_parts(stage.folder)):
    values = {
      'format': _FORMAT,
      'schema': _SCHEMA,
      'name': name,
      'key': stage.key,
      'before': before,
      'parts': parts,
      'settings': plain,
      'versions': versions(),
    }
    write_file(str(path), json.dumps(values, indent=1, ensure_ascii=False) + '\n')
    return stage
  if found['key'] != stage.key:
    what = _difference(found['settings'], plain) or (
      f'{found["parts"]} parts, now {parts}'
      if found['parts'] != parts
      else 'an earlier stage was made anew'
    )
    raise UserError(
      f'{stage.folder}: made with other settings ({what}); --redo={name} removes this stage and '
      'all that follow, or choose another --workdir'
    )
  return stage


def _has_parts(folder: Path) -> bool:
  """Whether anything was made there: parts, or shards."""
  return any(folder.glob('part-*.json')) or any(folder.glob('shard-*.arrayrecord'))


def remove_stage(workdir: Path, name: str) -> None:
  """Removes what a stage has made."""
  folder = workdir / name
  with contextlib.suppress(FileNotFoundError):
    (folder / STAGE).unlink()  # first: half a stage is then none
  shutil.rmtree(folder, ignore_errors=True)


def remove_temporaries(stage: Stage) -> None:
  """Removes what killed writers left behind."""
  for path in glob.glob(os.path.join(glob.escape(str(stage.folder)), f'.*{TEMPORARY}*')):
    with contextlib.suppress(OSError):
      os.remove(path)


def _read_stage(path: Path) -> dict[str, Any] | None:
  try:
    values = json.loads(path.read_text(encoding='utf-8'))
    if (values['format'], values['schema']) != (_FORMAT, _SCHEMA):
      raise UserError(
        f'{path}: {values["format"]} {values["schema"]}, this version reads {_SCHEMA}'
      )
    return values
  except FileNotFoundError:
    return None
  except (OSError, ValueError, LookupError, TypeError) as error:
    raise UserError(f'{path}: damaged ({error}); delete {path.parent} and run again') from error


def _difference(old: Any, new: Any, where: str = '') -> str:
  """Says the first difference between two settings; '' if there is none."""
  if isinstance(old, dict) and isinstance(new, dict):
    for key in sorted({*old, *new}):
      found = _difference(old.get(key), new.get(key), f'{where}.{key}' if where else key)
      if found:
        return found
    return ''
  return '' if old == new else f'{where}: {_short(old)}, now {_short(new)}'


def _short(value: Any) -> str:
  text = json.dumps(value, ensure_ascii=False)
  return text if len(text) <= 60 else f'{text[:57]}...'


def _write_text(path: str, text: str) -> None:
  with open(path, 'w', encoding='utf-8') as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
