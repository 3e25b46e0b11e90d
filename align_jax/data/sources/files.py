"""Finding and reading the files behind a spec."""

import glob
import os

from align_jax.data.sources.spec import ParsedSpec
from align_jax.errors import UserError

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp')
MAX_IMAGE_BYTES = 1 << 27  # encoded; 128 MiB is beyond any image under the pixel limit
MAX_TEXT_BYTES = 1 << 20  # captions and metadata of one record


def expand(spec: ParsedSpec, suffix: str) -> list[str]:
  """Returns the sorted files of a glob, of one file, or of a folder's `*suffix`.

  Raises:
    UserError: nothing matches.
  """
  pattern = os.path.expanduser(spec.path)
  if not pattern:
    raise UserError(f'{spec.text}: no path; write {spec.scheme}:DIR/*{suffix}')
  if os.path.isdir(pattern):
    files = glob.glob(os.path.join(glob.escape(pattern), f'*{suffix}'))
  elif os.path.isfile(pattern):
    files = [pattern]
  else:
    files = [f for f in glob.glob(pattern, recursive=True) if os.path.isfile(f)]
  if not files:
    raise UserError(f'{spec.text}: no file matches {spec.path}; check the path and the suffix')
  return sorted(files)


def read_range(path: str, offset: int, size: int, where: str) -> bytes:
  """Reads `size` bytes at `offset`; opens the file anew, so any thread and process may call it.

  Raises:
    UserError: the file cannot be read or is shorter; `where` names the place.
  """
  try:
    with open(path, 'rb') as file:
      file.seek(offset)
      data = file.read(size)
  except OSError as error:
    raise UserError(f'{where}: cannot read ({error.strerror}); put the file back') from error
  if len(data) != size:
    raise UserError(f'{where}: {len(data)} of {size} bytes; the file was cut, fetch it again')
  return data


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
