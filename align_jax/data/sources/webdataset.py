"""`webdataset:GLOB.tar`: `key.jpg` beside `key.txt`, `key.json` or `key.cls` in plain tar files."""

import dataclasses
import os
import tarfile
from collections.abc import Sequence
from typing import Any

from align_jax.data.record import Record
from align_jax.data.sources import fields as fields_lib
from align_jax.data.sources.base import Source, check_index
from align_jax.data.sources.files import (
  IMAGE_SUFFIXES,
  MAX_IMAGE_BYTES,
  MAX_TEXT_BYTES,
  check_size,
  expand,
  open_binary,
  read_range,
)
from align_jax.data.sources.spec import ParsedSpec
from align_jax.errors import UserError

_IMAGES = tuple(s.removeprefix('.') for s in IMAGE_SUFFIXES)
_TEXTS = ('txt', 'json', 'cls')
_BLOCK = 512


@dataclasses.dataclass(frozen=True)
class _Sample:
  """Where the members of one key lie: suffix -> (offset, size) within a tar."""

  tar: str
  key: str
  members: dict[str, tuple[int, int]]

  @property
  def id(self) -> str:
    return f'{os.path.basename(self.tar).removesuffix(".tar")}/{self.key}'

  def read(self, suffix: str) -> bytes:
    offset, size = self.members[suffix]
    return read_range(self.tar, offset, size, f'{self.tar}: {self.key}.{suffix}')


def open_webdataset(spec: ParsedSpec) -> Source:
  """Opens tar files, after one scan of all their headers. Option: `template` for class names.

  In a bucket the scan reads ahead from header to header, which for small images is the whole file.

  Raises:
    UserError: a truncated tar, or a member that is unsafe (an absolute path, `..`, a link, a
      device), given twice or too large.
  """
  spec.check(['template'])
  samples = [s for tar in expand(spec, '.tar') for s in _scan(tar)]
  if not samples:
    raise UserError(f'{spec.text}: no images; a sample is KEY.jpg with KEY.txt, .json or .cls')
  seen: dict[str, str] = {}
  for sample in samples:
    if sample.id in seen:
      raise UserError(
        f'{spec.text}: {seen[sample.id]} and {sample.tar} both hold {sample.id}; '
        'rename one of the tar files'
      )
    seen[sample.id] = sample.tar
  return WebDatasetSource(spec.text, samples, fields_lib.template_option(spec))


class WebDatasetSource:
  """Samples of several tar files, in the files' sorted order. A record's id is `TAR/KEY`."""

  licence = ''

  def __init__(self, spec: str, samples: Sequence[_Sample], template: str | None):
    self.spec = spec
    self._samples = samples
    self._template = template

  def __len__(self) -> int:
    return len(self._samples)

  def __getitem__(self, index: int) -> Record:
    check_index(index, len(self))
    sample = self._samples[index]
    where = f'{sample.tar}: {sample.key}'
    fields = self._json(sample)
    if 'txt' in sample.members:  # the main caption; the metadata often repeats it
      text = fields_lib.texts(sample.read('txt'), f'{where}.txt')
      fields['caption'] = [*text, fields.get('caption') or []]
    if 'cls' in sample.members:
      fields['label'] = fields_lib.texts(sample.read('cls').strip(), f'{where}.cls')
    image = next(s for s in _IMAGES if s in sample.members)
    return Record(
      id=sample.id,
      image=sample.read(image),
      **fields_lib.metadata(fields, where, self._template),
    )

  def ids(self) -> Sequence[str]:
    return [s.id for s in self._samples]

  def pair_ids(self) -> Sequence[str]:
    return [str(self._json(s).get('pair_id') or '') for s in self._samples]

  def _json(self, sample: _Sample) -> dict[str, Any]:
    if 'json' not in sample.members:
      return {}
    return fields_lib.parse_object(sample.read('json'), f'{sample.tar}: {sample.key}.json')


def _scan(path: str) -> list[_Sample]:
  """Lists the samples of a tar from its headers; only headers are read."""
  samples: dict[str, dict[str, tuple[int, int]]] = {}
  try:
    with open_binary(path) as file, tarfile.open(fileobj=file, mode='r:') as tar:
      while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
        _check_member(path, member)
        found = _split_name(member.name) if member.isreg() else None
        if found is None:
          continue
        key, suffix = found
        fields_lib.check_text(key, path)
        check_size(
          member.size,
          f'{path}: {member.name}',
          MAX_TEXT_BYTES if suffix in _TEXTS else MAX_IMAGE_BYTES,
        )
        if suffix in samples.setdefault(key, {}):
          raise UserError(f'{path}: member {member.name!r} is there twice; drop one')
        samples[key][suffix] = (member.offset_data, member.size)
      end = tar.offset
  except UserError:
    raise
  except (tarfile.TarError, EOFError, OSError) as error:
    raise UserError(
      f'{path}: truncated or no plain tar ({error}); fetch it again, unpack .tar.gz to .tar'
    ) from error
  _check_end(path, end)
  return [_Sample(path, k, m) for k, m in samples.items() if not m.keys().isdisjoint(_IMAGES)]


def _check_member(path: str, member: tarfile.TarInfo) -> None:
  """Raises a UserError for a member that no honest data set holds."""
  mend = 'take it out, or do not trust this tar'
  parts = member.name.replace('\\', '/').split('/')
  if member.name.startswith(('/', '\\')) or '..' in parts:
    raise UserError(f'{path}: member {member.name!r} has an unsafe path; {mend}')
  if member.issym() or member.islnk():
    raise UserError(f'{path}: member {member.name!r} is a link; {mend}')
  if not (member.isdir() or (member.isreg() and not member.issparse())):
    raise UserError(f'{path}: member {member.name!r} is no plain file; {mend}')


def _check_end(path: str, end: int) -> None:
  """Raises a UserError unless zeros follow the last member.

  `tarfile` takes a damaged or missing header for the end; a whole tar ends with blocks of zeros.
  """
  try:
    with open_binary(path) as file:
      file.seek(end)
      block = file.read(_BLOCK)
  except OSError as error:
    raise UserError(f'{path}: cannot read ({error.strerror}); put the file back') from error
  if len(block) < _BLOCK or block.strip(b'\0'):
    raise UserError(f'{path}: truncated or damaged after {end} bytes; fetch it again')


def _split_name(name: str) -> tuple[str, str] | None:
  """Returns (key, suffix) of a member that we read, by the format's rule: up to the first dot."""
  folder, _, base = name.removeprefix('./').rpartition('/')
  key, dot, suffix = base.partition('.')
  suffix = suffix.lower()
  if not key or not dot or suffix not in _IMAGES + _TEXTS:
    return None  # hidden files have an empty key
  return (f'{folder}/{key}' if folder else key), suffix
