"""Tensors of a folder's safetensors files, one at a time; what is not asked for stays there."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from align_jax.errors import UserError

INDEX = 'model.safetensors.index.json'
_SINGLE = (
  'model.safetensors',
  'open_clip_model.safetensors',
  'open_clip_pytorch_model.safetensors',
)
_PICKLED = ('*.bin', '*.pt', '*.pth', '*.ckpt')
_FLOATS = ('F64', 'F32', 'F16', 'BF16')


class Tensors:
  """The tensors of a folder by name."""

  def __init__(self, folder: Path, aliases: Sequence[tuple[str, str]] = ()):
    """Reads the headers.

    Args:
      folder: with safetensors.
      aliases: beginnings of names there, and what they are here; the first that fits is taken.

    Raises:
      UserError: no safetensors there, or files that are cut short or not what the index says.
    """
    self._where: dict[str, Path] = {}
    self._named: dict[str, str] = {}  # as in the file
    self._shapes: dict[str, tuple[int, ...]] = {}
    for path, wanted in _files(folder):
      with _readable(path), safe_open(path, framework='np') as file:
        names = set(file.keys())
        if wanted is not None and wanted - names:
          raise UserError(f'{path}: no tensor {min(wanted - names)!r}, which the index puts there')
        for there in names:
          part = file.get_slice(there)
          name = _renamed(there, aliases)
          self._named[name] = there
          self._where[name] = path
          self._shapes[name] = tuple(part.get_shape())

  @property
  def names(self) -> frozenset[str]:
    return frozenset(self._where)

  def path(self, name: str) -> Path:
    """The file that a tensor is in."""
    return self._where[name]

  def shape(self, name: str) -> tuple[int, ...]:
    return self._shapes[name]

  def read(self, name: str) -> np.ndarray:
    """Reads a tensor as float32.

    Raises:
      UserError: it is not of a floating-point type.
    """
    path = self._where[name]
    with _readable(path), safe_open(path, framework='np') as file:
      there = self._named[name]
      kind = file.get_slice(there).get_dtype()
      if kind not in _FLOATS:
        raise UserError(f'{path}: {name} is of type {kind}; only {", ".join(_FLOATS)} can be read')
      return np.asarray(file.get_tensor(there), np.float32)


def _renamed(name: str, aliases: Sequence[tuple[str, str]]) -> str:
  for there, here in aliases:
    if name.startswith(there):
      return here + name.removeprefix(there)
  return name


def _files(folder: Path) -> list[tuple[Path, set[str] | None]]:
  """The files, each with the tensors that the index puts there; None: there is no index."""
  index = folder / INDEX
  if index.is_file():
    try:
      placed = json.loads(index.read_bytes())['weight_map']
      files: dict[str, set[str]] = {}
      for name, file in placed.items():
        files.setdefault(str(file), set()).add(name)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
      raise UserError(f'{index}: not an index of safetensors ({error!r})') from error
    for file in files:
      if Path(file).name != file or not file.endswith('.safetensors'):
        raise UserError(f'{index}: {file!r} is no safetensors file of this folder')
      if not (folder / file).is_file():
        raise UserError(f'{folder / file}: missing, but named in {INDEX}; copy it there')
    return [(folder / file, names) for file, names in sorted(files.items())]
  for name in _SINGLE:
    if (folder / name).is_file():
      return [(folder / name, None)]
  if any(next(folder.glob(pattern), None) for pattern in _PICKLED):
    raise UserError(
      f'{folder}: holds pickled weights alone, which can run code and are never loaded; save the '
      'model again with safe_serialization=True'
    )
  raise UserError(f'{folder}: holds no {_SINGLE[0]}; name a folder saved with save_pretrained')


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
  try:
    yield
  except SafetensorError as error:
    raise UserError(f'{path}: cannot be read ({error}); copy the file again') from error
