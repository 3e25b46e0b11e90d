"""A disk that is soon full."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[Path]:
  """A real file system of that size at `folder`; skips the test where none can be mounted."""
  folder.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', f'size={mebibytes}m', 'tmpfs', str(folder)]
  if subprocess.run(mount, capture_output=True, check=False).returncode:
    pytest.skip('mounting a small file system needs root')
  try:
    yield folder
  finally:
    subprocess.run(['umount', '-l', str(folder)], check=True)
