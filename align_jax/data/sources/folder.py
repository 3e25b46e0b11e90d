"""`folder:DIR`: images in one subfolder per class, or listed in a `captions.jsonl`."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

from align_jax import storage
from align_jax.data.record import Record
from align_jax.data.sources import fields as fields_lib
from align_jax.data.sources.base import Source, check_index
from align_jax.data.sources.files import IMAGE_SUFFIXES, read_image
from align_jax.data.sources.spec import ParsedSpec
from align_jax.errors import UserError, did_you_mean

LISTING = 'captions.jsonl'
_KEYS = ('file', 'id', *fields_lib.FIELDS)


def open_folder(spec: ParsedSpec) -> Source:
  """Opens a folder of images. Option: `template`, the caption of a class name.

  Raises:
    UserError: no such folder, no images, a bad line of `captions.jsonl` (with its number).
  """
  spec.check(['template'])
  root = os.path.expanduser(spec.path)
  if storage.is_remote(root):
    raise UserError(
      f'{spec.text}: single files in a bucket are too slow to train from; convert the folder to '
      'arrayrecord:gs://…, or mount the bucket (docs/storage.md)'
    )
  if not os.path.isdir(root):
    raise UserError(f'{spec.text}: no folder {spec.path!r}; check the path')
  listing = os.path.join(root, LISTING)
  template = fields_lib.template_option(spec)
  if os.path.isfile(listing):
    entries = _listed(root, listing, template)
  else:
    entries = _classes(root, template if template is not None else fields_lib.DEFAULT_TEMPLATE)
  if not entries:
    raise UserError(
      f'{spec.text}: no images; put them in one subfolder per class, or list them in {LISTING}'
    )
  return FolderSource(spec.text, root, entries)


class FolderSource:
  """Image files and what is known of each."""

  licence = ''

  def __init__(self, spec: str, root: str, entries: Sequence[tuple[str, dict[str, Any]]]):
    """`entries`: the path below `root`, and the other fields of the record, `id` among them."""
    self.spec = spec
    self._root = root
    self._entries = entries

  def __len__(self) -> int:
    return len(self._entries)

  def __getitem__(self, index: int) -> Record:
    check_index(index, len(self))
    file, fields = self._entries[index]
    path = os.path.join(self._root, file)
    return Record(image=read_image(path, path), **fields)

  def ids(self) -> Sequence[str]:
    return [fields['id'] for _, fields in self._entries]

  def pair_ids(self) -> Sequence[str]:
    return [fields.get('pair_id', '') for _, fields in self._entries]


def _classes(root: str, template: str) -> list[tuple[str, dict[str, Any]]]:
  """Lists the images below each class folder, in sorted order."""
  entries = []
  for name in sorted(_visible(os.listdir(root))):
    folder = os.path.join(root, name)
    if not os.path.isdir(folder):
      if name.lower().endswith(IMAGE_SUFFIXES):
        raise UserError(
          f'{folder}: an image outside a class folder; move it into DIR/CLASS/ '
          f'or list every image in {LISTING}'
        )
      continue
    # the same fields for every image of the class: one tuple each, shared
    labels, captions = (name,), fields_lib.label_caption(name, template)
    for file in _images(folder):
      path = fields_lib.check_text(os.path.relpath(file, root).replace(os.sep, '/'), root)
      entries.append((path, {'id': path, 'labels': labels, 'captions': captions}))
  return entries


def _images(folder: str) -> Iterator[str]:
  for parent, folders, files in os.walk(folder):
    folders[:] = sorted(_visible(folders))
    for file in sorted(_visible(files)):
      if file.lower().endswith(IMAGE_SUFFIXES):
        yield os.path.join(parent, file)


def _visible(names: list[str]) -> list[str]:
  return [n for n in names if not n.startswith('.')]


def _listed(root: str, listing: str, template: str | None) -> list[tuple[str, dict[str, Any]]]:
  """Reads `captions.jsonl`, checking every line before anything is trained on."""
  entries = []
  lines: dict[str, int] = {}  # record id -> line
  real_root = os.path.realpath(root)
  parents: dict[str, str] = {}  # folder -> the same without links; one look-up per folder
  with open(listing, 'rb') as file:
    for number, line in enumerate(file, start=1):
      if not line.strip():
        continue
      where = f'{listing}:{number}'
      fields = fields_lib.parse_object(line, where)
      for key in fields:
        if key not in _KEYS:
          raise UserError(f"{where}: unknown field '{key}'{did_you_mean(key, _KEYS)}")
      path = fields.get('file')
      if not isinstance(path, str) or not path or '\0' in path:
        raise UserError(f'{where}: no file; write "file": "name.png", a path below the folder')
      _check_inside(root, real_root, path, parents, where)
      name = fields_lib.check_text(str(fields.get('id', path)), where)
      if name in lines:
        raise UserError(
          f'{where}: {name!r} is on line {lines[name]} already; '
          'put its captions in one list, "captions": [...], or give each line an "id"'
        )
      lines[name] = number
      entries.append((path, {'id': name, **fields_lib.metadata(fields, where, template)}))
  return entries


def _check_inside(
  root: str, real_root: str, path: str, parents: dict[str, str], where: str
) -> None:
  """Raises a UserError unless `path` is a file below the root, links followed."""
  mend = 'copy the file into the folder and name it by its path there'
  if os.path.isabs(path) or '..' in path.replace('\\', '/').split('/'):
    raise UserError(f'{where}: file {path!r} leaves the folder; {mend}')
  full = os.path.join(root, path)
  parent = os.path.dirname(full)
  if parent not in parents:
    parents[parent] = os.path.realpath(parent)
  real = os.path.join(parents[parent], os.path.basename(full))
  if os.path.islink(full):
    real = os.path.realpath(full)
  if os.path.commonpath([real_root, real]) != real_root:
    raise UserError(f'{where}: file {path!r} leaves the folder through a link; {mend}')
  if not os.path.isfile(full):
    raise UserError(f'{where}: no file {path!r}; put it back or take the line out')
