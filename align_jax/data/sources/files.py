"""Finding and reading the files behind a spec."""

import glob
import io
import os
from typing import Any

from align_jax import storage
from align_jax.data.sources.spec import ParsedSpec
from align_jax.errors import UserError

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp')
MAX_IMAGE_BYTES = 1 << 27  # encoded; 128 MiB is beyond any image under the pixel limit
MAX_TEXT_BYTES = 1 << 20  # captions and metadata of one record
_AHEAD = 1 << 20  # bytes read ahead where an object is read piece by piece


def expand(spec: ParsedSpec, suffix: str) -> list[str]:
  """Returns the sorted files of a glob, of one file, or of a folder's `*suffix`.

  Raises:
    UserError: nothing matches.
  """
  if not spec.path:
    raise UserError(f'{spec.text}: no path; write {spec.scheme}:DIR/*{suffix}')
  pattern = str(storage.open_path(spec.path))
  if storage.is_remote(pattern):
    return list(expand_remote(spec, suffix))
  if os.path.isdir(pattern):
    files = glob.glob(os.path.join(glob.escape(pattern), f'*{suffix}'))
  elif os.path.isfile(pattern):
    files = [pattern]
  else:
    files = [f for f in glob.glob(pattern, recursive=True) if os.path.isfile(f)]
  if not files:
    raise UserError(f'{spec.text}: no file matches {spec.path}; check the path and the suffix')
  return sorted(files)


def expand_remote(spec: ParsedSpec, suffix: str) -> dict[str, storage.Info]:
  """The same in a bucket; says of every object what the listing says. Raises as `expand` does."""
  pattern = str(storage.open_path(spec.path))
  found = {}
  if not glob.has_magic(pattern):
    found = storage.find(f'{glob.escape(pattern)}/*{suffix}')
  found = found or storage.find(pattern)
  if not found:
    raise UserError(f'{spec.text}: no object matches {spec.path}; check the path and the suffix')
  return found


def read_range(path: str, offset: int, size: int, where: str) -> bytes:
  """Reads `size` bytes at `offset`; opens the file anew, so any thread and process may call it.

  Raises:
    UserError: the file cannot be read or is shorter; `where` names the place.
  """
  try:
    if storage.is_remote(path):
      data = storage.read_part(path, offset, offset + size)
    else:
      with open(path, 'rb') as file:
        file.seek(offset)
        data = file.read(size)
  except OSError as error:
    raise UserError(
      f'{where}: cannot read ({error.strerror or error}); put the file back'
    ) from error
  if len(data) != size:
    raise UserError(f'{where}: {len(data)} of {size} bytes; the file was cut, fetch it again')
  return data


def open_binary(path: str) -> io.BufferedReader:
  """Opens a file for reading with seeks; one in a bucket is read by ranges.

  Raises:
    OSError: of a local file.
    UserError: no such object, or no answer, at any read.
  """
  if not storage.is_remote(path):
    return open(path, 'rb')
  found = storage.info(path)
  if found is None:
    raise UserError(f'{path}: no such object; check the path')
  return io.BufferedReader(_Ranges(path, found.size), _AHEAD)


def read_image(path: str, where: str) -> bytes:
  """Reads a whole image file, within the size limit.

  Raises:
    UserError: the file is missing, unreadable or larger than `MAX_IMAGE_BYTES`.
  """
  try:
    size = os.stat(path).st_size
  except OSError as error:
    raise UserError(f'{where}: cannot read ({error.strerror}); put the file back') from error
  check_size(size, where)
  return read_range(path, 0, size, where)


def check_size(size: int, where: str, limit: int = MAX_IMAGE_BYTES) -> None:
  """Raises a UserError for a file or member of more than `limit` bytes."""
  if size > limit:
    raise UserError(f'{where}: {size} bytes, over the limit of {limit}; make it smaller or drop it')


class _Ranges(io.RawIOBase):
  """An object in a bucket as a file: every read is one request."""

  def __init__(self, path: str, size: int):
    self._path, self._size, self._at = path, size, 0

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
    base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
    self._at = max(0, base + offset)
    return self._at

  def readinto(self, buffer: Any) -> int:
    stop = min(self._at + len(buffer), self._size)
    try:
      data = storage.read_part(self._path, self._at, stop)
    except FileNotFoundError as error:
      raise UserError(f'{self._path}: was removed while it was read; put it back') from error
    buffer[: len(data)] = data
    self._at += len(data)
    return len(data)
