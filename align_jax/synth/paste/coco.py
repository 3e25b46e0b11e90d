"""An annotation file in the format of COCO, written as its pictures come: none is held.

Format: https://cocodataset.org/#format-data, with masks as compressed run lengths.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from typing import IO, Any

from align_jax import storage
from align_jax.cache import cache_folder
from align_jax.data.record import Record
from align_jax.data.shards import checksum
from align_jax.files import aside, disk_errors, sync
from align_jax.synth.paste.objects import Outline, outlines


class CocoWriter:
  """Writes `annotations.json` aside; `commit` puts it in place, leaving without it drops it.

  Images have ids from 1 on, in the order they came, and so have annotations; `file_name` is the
  record's id and `.png`, and the id itself is in `record_id`. An object of which only the box is
  known has an empty `segmentation`.
  """

  def __init__(self, path: str, categories: Sequence[str] = (), licence: str = ''):
    """Prepares.

    Args:
      path: of the file; it may be in a bucket.
      categories: their ids are 1, 2, … in this order; others follow as they appear.
      licence: of the pictures; '' if unknown.
    """
    self._path, self._licence = path, licence
    folder = os.path.dirname(path)
    if storage.is_remote(path):
      # where the shards of the same folder are written aside (and what killed writers left is
      # removed by the next one)
      name = hashlib.sha256(folder.rstrip('/').encode()).hexdigest()[:16]
      folder = str(cache_folder() / 'writing' / name)
    self._folder = folder
    hidden = aside(os.path.join(folder, os.path.basename(path)))
    self._main, self._side = hidden, f'{hidden}-annotations'
    self._categories = {name: number for number, name in enumerate(categories, start=1)}
    self._images = self._annotations = 0
    self._files = contextlib.ExitStack()

  def __enter__(self) -> 'CocoWriter':
    with disk_errors(self._folder):
      os.makedirs(self._folder or '.', exist_ok=True)
      self._pictures = self._open(self._main)
      self._objects = self._open(self._side)
      head: dict[str, Any] = {'info': {'description': 'align_jax.synth.paste', 'version': '1'}}
      head['licenses'] = [{'id': 1, 'name': self._licence, 'url': ''}] if self._licence else []
      self._pictures.write(json.dumps(head, ensure_ascii=False)[:-1] + ', "images": [')
    return self

  def __exit__(self, *exception: object) -> None:
    with contextlib.suppress(OSError):
      self._files.close()
    for path in (self._main, self._side):
      with contextlib.suppress(OSError):
        os.remove(path)

  def add(self, record: Record, width: int, height: int) -> None:
    """Adds a picture and the objects that its truth tells of."""
    self._images += 1
    image: dict[str, Any] = {
      'id': self._images,
      'width': width,
      'height': height,
      'file_name': f'{record.id}.png',
      'record_id': record.id,
    }
    if self._licence:
      image['license'] = 1
    with disk_errors(self._folder):
      self._pictures.write(_item(image, self._images == 1))
      for outline in outlines(record):
        self._annotations += 1
        entry = self._entry(outline)
        self._objects.write(_item(entry, self._annotations == 1))

  def commit(self) -> None:
    """Finishes the file and renames or uploads it into place.

    Raises:
      UserError: a full disk, a store that does not answer; what was there before stays.
    """
    with disk_errors(self._folder):
      self._objects.close()
      self._pictures.write('\n], "annotations": [')
      with open(self._side, encoding='utf-8') as objects:
        shutil.copyfileobj(objects, self._pictures)
      categories = [
        {'id': number, 'name': name, 'supercategory': ''}
        for name, number in self._categories.items()
      ]
      text = json.dumps(categories, ensure_ascii=False)
      self._pictures.write(f'\n], "categories": {text}}}\n')
      self._pictures.close()
      sync(self._main)
    if storage.is_remote(self._path):
      storage.upload(self._main, self._path, checksum(self._main))
      return
    with disk_errors(self._folder):
      os.replace(self._main, self._path)
      sync(self._folder or '.')

  def _open(self, path: str) -> IO[str]:
    return self._files.enter_context(open(path, 'w', encoding='utf-8'))

  def _entry(self, outline: Outline) -> dict[str, Any]:
    category = self._categories.setdefault(outline.label, len(self._categories) + 1)
    size = [outline.height, outline.width]
    entry: dict[str, Any] = {
      'id': self._annotations,
      'image_id': self._images,
      'category_id': category,
      'bbox': list(outline.box),
      'area': outline.area,
      'segmentation': {'size': size, 'counts': outline.rle} if outline.rle else [],
      'iscrowd': 0,
    }
    return {**entry, 'source': outline.source} if outline.source else entry


def _item(values: dict[str, Any], first: bool) -> str:
  return ('\n' if first else ',\n') + json.dumps(values, ensure_ascii=False)
