"""Small files, written whole or not at all."""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator

from align_jax.errors import UserError
from align_jax.storage import TEMPORARY, AnyPath, is_remote, write_object


def write_file(path: str | AnyPath, content: str | bytes) -> None:
  """Writes a file aside, then renames it: a reader sees the old one or the new one.

  An object in a bucket is replaced in one step by itself.

  Raises:
    UserError: a full or read-only disk, a store that does not answer; the old file stays.
  """
  path = str(path)
  data = content.encode() if isinstance(content, str) else content
  if is_remote(path):
    write_object(path, data)
    return
  folder = os.path.dirname(path)
  temporary = aside(path)
  try:
    with disk_errors(folder):
      os.makedirs(folder or '.', exist_ok=True)
      with open(temporary, 'wb') as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
      os.replace(temporary, path)
  except BaseException:
    with contextlib.suppress(OSError):
      os.remove(temporary)
    raise


def aside(path: str) -> str:
  """Returns where to write a file before it is renamed to `path`.

  No other writer has the same name: processes of several machines, which share a disk, may share a
  process id as well.
  """
  folder, name = os.path.split(path)
  return os.path.join(folder, f'.{name}{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}')


@contextlib.contextmanager
def disk_errors(directory: str) -> Iterator[None]:
  """Turns what a full or read-only disk raises into a UserError."""
  try:
    yield
  except (OSError, RuntimeError) as error:  # RuntimeError: from the ArrayRecord writer
    full = getattr(error, 'errno', None) in (errno.ENOSPC, errno.EDQUOT)
    if full or 'No space left' in str(error) or 'quota exceeded' in str(error):
      raise UserError(
        f'{directory}: no space left on the disk; free some and run the same command again'
      ) from error
    raise UserError(f'{directory}: cannot write ({error}); check the folder') from error


def sync(path: str) -> None:
  """Waits until a file, or the names in a folder, are on the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
