"""`parquet:GLOB`: an image column and text columns, as Hugging Face data sets are stored."""

import bisect
import collections
import itertools
import json
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from align_jax import storage
from align_jax.data.record import Record
from align_jax.data.sources import fields as fields_lib
from align_jax.data.sources.base import Source, check_index
from align_jax.data.sources.files import check_size, expand, open_binary
from align_jax.data.sources.spec import ParsedSpec
from align_jax.errors import UserError, did_you_mean

_CAPTIONS = ('caption', 'captions', 'text')
_CACHED_GROUPS = 2  # per thread: neighbours in one group, and its partner's group
_MEND = 'fetch the file again'


def open_parquet(spec: ParsedSpec) -> Source:
  """Opens Parquet files.

  Options `image`, `caption`, `label`: column names, for data that calls them otherwise;
  `template`: the caption of a class name.

  Raises:
    UserError: a damaged file, no image column, or files whose columns differ.
  """
  spec.check(['image', 'caption', 'label', 'template'])
  files = expand(spec, '.parquet')
  opened = [_open(f) for f in files]
  schema = opened[0].schema_arrow
  for file, parquet in zip(files, opened, strict=True):
    if not parquet.schema_arrow.equals(schema):
      raise UserError(f'{file}: its columns differ from those of {files[0]}; open them apart')
  groups = [
    (file, group, parquet.metadata.row_group(group).num_rows)
    for file, parquet in zip(files, opened, strict=True)
    for group in range(parquet.metadata.num_row_groups)
  ]
  for parquet in opened:
    parquet.close()
  columns = _columns(spec, files[0], schema)
  if not sum(rows for _, _, rows in groups):
    raise UserError(f'{spec.text}: no rows in {len(files)} files; check the glob')
  return ParquetSource(
    spec.text, groups, columns, _class_names(schema), fields_lib.template_option(spec)
  )


class ParquetSource:
  """Rows of several files, read by row group.

  A random row costs the reading of its whole row group: shuffle-heavy training wants the data
  converted to `arrayrecord:` first.
  """

  licence = ''

  def __init__(
    self,
    spec: str,
    groups: Sequence[tuple[str, int, int]],
    columns: Mapping[str, str],
    names: Mapping[str, Sequence[str]],
    template: str | None,
  ):
    """`groups`: (file, row group, rows); `columns`: column -> field; `names`: of class columns."""
    self.spec = spec
    self._groups = groups
    self._columns = columns
    self._names = names
    self._template = template
    self._ends = list(itertools.accumulate(rows for _, _, rows in groups))
    self._local = threading.local()
    self._ids: Sequence[str] | None = None

  def __getstate__(self) -> dict[str, Any]:
    return {k: v for k, v in self.__dict__.items() if k != '_local'}

  def __setstate__(self, state: Mapping[str, Any]) -> None:
    self.__dict__.update(state)
    self._local = threading.local()

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, index: int) -> Record:
    check_index(index, len(self))
    part = bisect.bisect_right(self._ends, index)
    row = index - (self._ends[part - 1] if part else 0)
    values = {c: column[row].as_py() for c, column in self._group(part).items()}
    where = f'{self._groups[part][0]}: row {self._file_row(part) + row}'
    fields: dict[str, Any] = {'captions': [], 'labels': []}
    for column, field in self._columns.items():
      value = values[column]
      if field in ('captions', 'labels'):
        value = _named(value, self._names.get(column), f'{where}: {column}')
        fields[field] += fields_lib.texts(value, f'{where}: {column}')
      else:
        fields[field] = value
    return Record(
      id=self._id(part, row, fields.get('id')),
      image=_image_bytes(fields['image'], where),
      **fields_lib.metadata(fields, where, self._template),
    )

  def ids(self) -> Sequence[str]:
    if self._ids is None:  # two threads at once would only do the same work twice
      column = self._column('id')
      values = column if column is not None else [None] * len(self)
      rows = ((part, row) for part, g in enumerate(self._groups) for row in range(g[2]))
      self._ids = [self._id(p, r, v) for (p, r), v in zip(rows, values, strict=True)]
    return self._ids

  def pair_ids(self) -> Sequence[str]:
    column = self._column('pair_id')
    return [''] * len(self) if column is None else ['' if v is None else str(v) for v in column]

  def _id(self, part: int, row: int, value: Any) -> str:
    if value is not None:
      return str(value)
    stem = os.path.basename(self._groups[part][0]).removesuffix('.parquet')
    return f'{stem}-{self._file_row(part) + row}'

  def _file_row(self, part: int) -> int:
    """Returns the first row of a group, counted within its file."""
    group = self._groups[part][1]
    return sum(rows for _, _, rows in self._groups[part - group : part])

  def _column(self, field: str) -> list[Any] | None:
    """Returns a whole column without touching the images, None if there is none."""
    name = next((c for c, f in self._columns.items() if f == field), None)
    if name is None:
      return None
    return [
      v for part in range(len(self._groups)) for v in self._read(part, [name])[name].to_pylist()
    ]

  def _group(self, part: int) -> dict[str, pa.ChunkedArray]:
    cache: collections.OrderedDict[int, dict[str, pa.ChunkedArray]]
    cache = self._local.__dict__.setdefault('groups', collections.OrderedDict())
    if part in cache:
      cache.move_to_end(part)
      return cache[part]
    if len(cache) >= _CACHED_GROUPS:
      cache.popitem(last=False)
    cache[part] = self._read(part, list(self._columns))
    return cache[part]

  def _read(self, part: int, columns: list[str]) -> dict[str, pa.ChunkedArray]:
    file, group, _ = self._groups[part]
    try:
      with _reader(file) as parquet:
        # no threads of its own: the caller has as many as it wants
        table = parquet.read_row_group(group, columns=columns, use_threads=False)
    except (pa.ArrowException, OSError) as error:
      raise UserError(f'{file}: row group {group} is damaged ({error}); {_MEND}') from error
    return {name: table.column(name) for name in columns}


def _open(file: str) -> pq.ParquetFile:
  try:
    return _reader(file)
  except (pa.ArrowException, OSError) as error:
    raise UserError(f'{file}: truncated or no Parquet file ({error}); {_MEND}') from error


def _reader(file: str) -> pq.ParquetFile:
  """Opens a file; one in a bucket is read by ranges."""
  if not storage.is_remote(file):
    return pq.ParquetFile(file)
  return pq.ParquetFile(pa.PythonFile(open_binary(file), mode='r'))


def _columns(spec: ParsedSpec, file: str, schema: pa.Schema) -> dict[str, str]:
  """Returns which column gives which field of a record."""
  options = spec.options
  for option in ('image', 'caption', 'label'):
    name = options.get(option)
    if name is not None and name not in schema.names:
      raise UserError(
        f"{spec.text}: no column '{name}' in {file}{did_you_mean(name, schema.names)}"
      )
  image = options.get('image', 'image')
  if image not in schema.names or not _holds_bytes(schema.field(image).type):
    raise UserError(
      f"{file}: no column 'image' of bytes; say which with ?image=COLUMN, "
      f'columns: {", ".join(schema.names)}'
    )
  captions = [options['caption']] if 'caption' in options else list(_CAPTIONS)
  labels = [options['label']] if 'label' in options else ['label', 'labels']
  columns = {image: 'image'}
  columns |= {c: 'captions' for c in captions if c in schema.names}
  columns |= {c: 'labels' for c in labels if c in schema.names}
  for name in ('id', 'modality', 'pair_id', 'generator_id', 'prompt', 'source_id'):
    if name in schema.names and name not in columns:
      columns[name] = name
  return columns


def _holds_bytes(kind: pa.DataType) -> bool:
  if pa.types.is_struct(kind):
    return kind.get_field_index('bytes') >= 0 and _holds_bytes(kind.field('bytes').type)
  return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
  """Returns the class names that Hugging Face keeps in the schema: column -> names."""
  try:
    features = json.loads((schema.metadata or {})[b'huggingface'])['info']['features']
    found = {c: f.get('names') or f.get('feature', {}).get('names') for c, f in features.items()}
  except (KeyError, ValueError, TypeError, AttributeError):
    return {}  # not written by that library
  return {c: [str(n) for n in names] for c, names in found.items() if isinstance(names, list)}


def _named(value: Any, names: Sequence[str] | None, where: str) -> Any:
  """Replaces class numbers by their names, and what is absent by nothing."""
  if value is None:
    return []
  if isinstance(value, list):
    return [_named(v, names, where) for v in value]
  if names is None or not isinstance(value, int):
    return value
  if value == -1:  # how that library marks an unlabelled row
    return []
  if not 0 <= value < len(names):
    raise UserError(f'{where}: class {value} of {len(names)}; mend the row')
  return names[value]


def _image_bytes(value: Any, where: str) -> bytes:
  data = value.get('bytes') if isinstance(value, dict) else value
  if data is None:
    raise UserError(
      f'{where}: no image bytes, a path at most; write the data set with them embedded'
    )
  check_size(len(data), where)
  return data
