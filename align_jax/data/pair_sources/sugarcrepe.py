"""`sugarcrepe:DIR`: images with a caption, and a caption that is nearly the same but wrong.

Source: Hsieh et al. 2023, arXiv 2306.14610 (SugarCrepe); Dumpala et al. 2024, arXiv 2406.11171
(SugarCrepe++, which adds a second caption that says the same in other words).
"""

import collections
import dataclasses
import functools
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from align_jax.data.pair_record import Content, PairRecord
from align_jax.data.pair_sources.image_root import ImageRoot
from align_jax.data.pair_sources.options import choice_option, names_option, whole_option
from align_jax.data.sources import fields as fields_lib
from align_jax.data.sources.base import check_index
from align_jax.data.sources.spec import ParsedSpec
from align_jax.errors import UserError

CATEGORIES = (
  'replace_obj', 'replace_att', 'replace_rel', 'swap_obj', 'swap_att', 'add_obj', 'add_att'
)  # fmt: skip
_MAX_BYTES = 1 << 26  # of one file; the largest published one has half a megabyte


@dataclasses.dataclass(frozen=True)
class _Item:
  id: str
  category: str
  filename: str
  captions: tuple[str, ...]  # right, in ++ right as well, wrong


def open_sugarcrepe(spec: ParsedSpec) -> 'SugarCrepeSource':
  """Opens a folder of `CATEGORY.json` files, of SugarCrepe or of SugarCrepe++.

  Options: `images`, the folder of COCO's val2017 images (by default the path); `categories`, with
  commas between (by default those that are there); `missing`, `error` or `skip`, for images that
  are not there; `limit`, only so many of each category.

  Raises:
    UserError: an unknown option or category, no files, an item that cannot be understood, an image
      that is missing (unless skipped) or lies outside the image folder.
  """
  spec.check(('images', 'categories', 'missing', 'limit'), generic=False)
  skip = choice_option(spec, 'missing', ('error', 'skip')) == 'skip'
  limit = whole_option(spec, 'limit', 0, 1)
  path = os.path.expanduser(spec.path)
  there = [c for c in CATEGORIES if os.path.isfile(os.path.join(path, f'{c}.json'))]
  if not there:
    raise UserError(f'{spec.text}: no file such as {CATEGORIES[0]}.json in {path}; check the path')
  wanted = names_option(spec, 'categories', CATEGORIES, there)
  root = ImageRoot(spec.options.get('images', path), spec.text)
  items: list[_Item] = []
  skipped: collections.Counter[str] = collections.Counter()
  for category in wanted:
    file = os.path.join(path, f'{category}.json')
    for item in _read(file, category)[: limit or None]:
      where = f'{file}: item {item.id.split("-")[-1]}'
      if root.find(item.filename, where) is not None:
        items.append(item)
      elif skip:
        skipped['image not there'] += 1
      else:
        raise UserError(
          f'{where}: no image {item.filename!r} below {root.path}; put it back, or leave such '
          'items out with ?missing=skip'
        )
  if not items:
    raise UserError(f'{spec.text}: none of the images is in {root.path}; say where, images=DIR')
  if len({len(item.captions) for item in items}) != 1:
    raise UserError(f'{spec.text}: files of SugarCrepe and of SugarCrepe++; put them apart')
  return SugarCrepeSource(spec.text, root, items, dict(skipped))


class SugarCrepeSource:
  """Images as queries; the candidates are the right captions, then the wrong one.

  Attributes:
    plus_plus: whether there are two right captions.
    skipped: what was left out, by reason.
  """

  licence = ''

  def __init__(self, spec: str, root: ImageRoot, items: Sequence[_Item], skipped: dict[str, int]):
    self.spec = spec
    self.plus_plus = len(items[0].captions) == 3
    self.skipped: Mapping[str, int] = skipped
    self._root, self._items = root, items

  def __len__(self) -> int:
    return len(self._items)

  def __getitem__(self, index: int) -> PairRecord:
    check_index(index, len(self))
    item = self._items[index]
    captions = tuple(Content(caption) for caption in item.captions)
    image = self._root.read(item.filename, self.spec)
    return PairRecord(
      id=item.id,
      task=item.category,
      query=Content(images=(image,), id=item.filename),
      positive=captions[0],
      candidates=captions,
    )

  def ids(self) -> Sequence[str]:
    return [item.id for item in self._items]

  @functools.cached_property
  def categories(self) -> Sequence[str]:
    """The categories that are there, in the published order."""
    found = {item.category for item in self._items}
    return [c for c in CATEGORIES if c in found]


def _read(file: str, category: str) -> list[_Item]:
  """Returns the items of a file: an object of objects by number, or a list of them."""
  try:
    if os.path.getsize(file) > _MAX_BYTES:
      raise UserError(f'{file}: over {_MAX_BYTES} bytes; this is no file of SugarCrepe')
    with open(file, encoding='utf-8') as opened:
      value = json.load(opened)
  except (ValueError, RecursionError) as error:
    raise UserError(f'{file}: not JSON ({error}); fetch the file again') from error
  except OSError as error:
    raise UserError(f'{file}: cannot read ({error.strerror}); put the file back') from error
  pairs = value.items() if isinstance(value, dict) else enumerate(value)
  items = [_item(category, str(number), fields, file) for number, fields in pairs]
  if len({len(item.captions) for item in items}) > 1:
    raise UserError(f'{file}: "caption2" in some items only; SugarCrepe++ has it in all of them')
  return items


def _item(category: str, number: str, fields: Any, file: str) -> _Item:
  where = f'{file}: item {number}'
  if not isinstance(fields, dict):
    raise UserError(f'{where}: expected an object, got {type(fields).__name__}')
  keys = ('filename', 'caption', *(['caption2'] if 'caption2' in fields else []))
  values = [fields.get(key) for key in (*keys, 'negative_caption')]
  for key, value in zip((*keys, 'negative_caption'), values, strict=True):
    if not isinstance(value, str) or not value.strip():
      raise UserError(f'{where}: no text in "{key}"; fetch the file again')
  filename, *captions = (fields_lib.check_text(str(value), where) for value in values)
  # as written: the published scripts embed captions with their spaces and full stops
  return _Item(f'{category}-{number}', category, filename, tuple(captions))
