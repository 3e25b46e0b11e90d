"""Images that someone else made, each with its prompt: a folder, a tar, or any source."""

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8

from align_jax import storage
from align_jax.data.images import MAX_PIXELS, ImageError, decode_image
from align_jax.data.record import Record
from align_jax.data.sources import Source, open_source, parse_spec
from align_jax.data.sources.fields import check_text, texts
from align_jax.data.sources.files import IMAGE_SUFFIXES, MAX_TEXT_BYTES, check_size, read_range
from align_jax.data.sources.folder import LISTING, FolderSource
from align_jax.data.sources.subset import select
from align_jax.errors import UserError, require
from align_jax.synth.rows import PromptRow

STRATEGY = 'external'
UNREADABLE = 'unreadable'
TOO_SMALL = 'too_small'


@dataclasses.dataclass(frozen=True)
class ExternalConfig:
  """Where the images are.

  Attributes:
    source: a folder (`captions.jsonl`, or `NAME.txt` beside `NAME.png`, or one subfolder per
      class), a tar in WebDataset's layout, or any source spec with captions or prompts.
    category: of images without a label; '' asks for a label of every image.
    version: of the generator that made them, for provenance; '' is told by a checksum.
    min_side: smaller images are left out, pixels.
    max_pixels: width × height of the largest image that is decoded.
  """

  source: str
  category: str = ''
  version: str = ''
  min_side: int = 16
  max_pixels: int = MAX_PIXELS

  def check(self, where: str) -> None:
    """Raises a UserError, `where.field: …`, for a value out of range."""
    require(bool(self.source), f'{where}.source', 'empty; name a folder, a tar or a source spec')
    require(self.min_side >= 1, f'{where}.min_side', f'{self.min_side} must be at least 1')
    require(
      1 <= self.max_pixels <= MAX_PIXELS,
      f'{where}.max_pixels',
      f'{self.max_pixels}: 1 to {MAX_PIXELS}',
    )


class ExternalImages:
  """A generator whose images are there already: it is asked by prompt id, not by prompt.

  All records are read once at the beginning, for their texts and a checksum; images are not kept.

  Attributes:
    generator_id: `external:` and its version.
    settings: for provenance.
  """

  def __init__(self, config: ExternalConfig, name: str = STRATEGY, where: str = 'generator'):
    """Opens the images.

    Args:
      config: see `ExternalConfig`.
      name: of the generator; its prompt ids begin with it.
      where: names the generator in messages.

    Raises:
      UserError: no such source, a bad setting, an image without a category, two with one id, text
        that cannot be read, a path that leaves the folder or the tar.
    """
    config.check(where)
    self._limits = config.min_side, config.max_pixels
    self._source = open_images(config.source)
    self._rows: list[PromptRow] = []
    self._index: dict[str, int] = {}
    digest = hashlib.blake2b(digest_size=6)
    for index in range(len(self._source)):
      record = self._source[index]
      row = _row(record, name, config.category, f'{self._source.spec}: {record.id}', where)
      if row.id in self._index:
        raise UserError(f'{self._source.spec}: two records with the id {record.id!r}; rename one')
      self._index[row.id] = index
      self._rows.append(row)
      for part in (record.id, row.category, row.text):
        digest.update(f'{part}\0'.encode())
      digest.update(hashlib.blake2b(record.image).digest())
    self.generator_id = f'external:{config.version or digest.hexdigest()}'
    self.settings: Mapping[str, Any] = {
      'source': self._source.spec,
      'images': digest.hexdigest(),
      'licence': self._source.licence,
    }

  def rows(self) -> list[PromptRow]:
    """The prompts that there are images of, in the order of the source."""
    return list(self._rows)

  def image(self, prompt_id: str) -> UInt8[np.ndarray, 'height width 3'] | None:
    """The image of a prompt; None where `failure` has a reason. Read anew on each call."""
    found = self._load(prompt_id)
    return None if isinstance(found, str) else found

  def failure(self, prompt_id: str) -> str:
    """Why there is no image: `corrupt`, `too_large`, `too_small`, `format`, `unreadable`, or ''."""
    found = self._load(prompt_id)
    return found if isinstance(found, str) else ''

  def _load(self, prompt_id: str) -> np.ndarray | str:
    smallest, largest = self._limits
    try:
      pixels = decode_image(self._source[self._index[prompt_id]].image, largest)
    except ImageError as error:
      return error.reason
    except (UserError, OSError):  # taken away or cut since the beginning
      return UNREADABLE
    return pixels if min(pixels.shape[:2]) >= smallest else TOO_SMALL


def open_images(source: str) -> Source:
  """Opens a folder, a tar or a source spec; see `ExternalConfig.source`.

  Raises:
    UserError: what the source raises, or a link that leaves the folder.
  """
  path = os.path.expanduser(source)
  if not storage.is_remote(path) and os.path.isdir(path):
    source = f'folder:{path}'
  elif path.endswith('.tar') and (storage.is_remote(path) or os.path.isfile(path)):
    source = f'webdataset:{path}'
  spec = parse_spec(source)
  root = os.path.expanduser(spec.path)
  if spec.scheme != 'folder' or not os.path.isdir(root):
    return open_source(source)
  if os.path.isfile(os.path.join(root, LISTING)):
    return open_source(source)  # which checks the paths that the listing names
  files = sorted(_images(root))
  if not any(os.path.isfile(_text_of(os.path.join(root, file))) for file in files):
    return open_source(source)
  spec.check(['template'])
  return select(FolderSource(spec.text, root, [_beside(root, f) for f in files]), spec)


def _images(root: str) -> Iterator[str]:
  """The images below a folder, by their path there.

  Raises:
    UserError: one is a link to a place outside.
  """
  real_root = os.path.realpath(root)
  for parent, folders, files in os.walk(root):
    folders[:] = [f for f in folders if not f.startswith('.')]
    for file in files:
      full = os.path.join(parent, file)
      text = _text_of(full)
      if file.startswith('.') or not file.lower().endswith(IMAGE_SUFFIXES):
        continue
      for path in (full, text):
        if os.path.islink(path) and not _is_inside(path, real_root):
          raise UserError(f'{path}: a link out of the folder; copy the file into it')
      yield check_text(os.path.relpath(full, root).replace(os.sep, '/'), root)


def _is_inside(path: str, real_root: str) -> bool:
  return os.path.commonpath([real_root, os.path.realpath(path)]) == real_root


def _text_of(image: str) -> str:
  return f'{os.path.splitext(image)[0]}.txt'


def _beside(root: str, file: str) -> tuple[str, dict[str, Any]]:
  """The fields of an image with its prompt in a text file; its subfolder is its label."""
  fields: dict[str, Any] = {'id': file}
  if '/' in file:
    fields['labels'] = (file.split('/')[0],)
  path = _text_of(os.path.join(root, file))
  if os.path.isfile(path):
    size = os.path.getsize(path)
    check_size(size, path, MAX_TEXT_BYTES)
    prompt = ' '.join(texts(read_range(path, 0, size, path), path)[0].split())
    fields['captions'] = (prompt,) if prompt else ()
  return file, fields


def _row(record: Record, name: str, category: str, place: str, where: str) -> PromptRow:
  label = record.labels[0].strip() if record.labels else ''
  if not (label or category):
    raise UserError(
      f'{place}: no label that says its category; add one, or set {where}.category for all'
    )
  found = record.prompt or next(iter(record.captions), '') or label or category
  made_by = {'generator': record.generator_id} if record.generator_id else {}
  return PromptRow(
    id=f'{name}/{record.id}',
    category=label or category,
    text=found,
    strategy=STRATEGY,
    attributes=made_by,
  )
