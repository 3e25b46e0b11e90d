"""Real images that generated ones are compared with: cut, embedded once, kept in a file."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from align_jax.data.images import ImageError, decode_image
from align_jax.data.record import Record
from align_jax.data.sources.base import Source
from align_jax.data.transforms import apply_to_picture
from align_jax.errors import UserError, require
from align_jax.evaluation.zero_shot import class_vectors
from align_jax.files import aside, disk_errors, sync
from align_jax.synth.filtration.similarity import finite_rows
from align_jax.synth.filtration.views import View, show
from align_jax.synth.paste.objects import outlines
from align_jax.synth.rows import Embedder

Instance = tuple[str, Bool[np.ndarray, 'height width'] | None, tuple[int, int, int, int] | None]
_FORMAT = 'align_jax.references 1'
_ARRAYS = ('embeddings', 'held_out', 'category', 'texts')
_BATCH = 256  # instances are embedded in both views: even


@dataclasses.dataclass(frozen=True)
class ReferenceConfig:
  """What is compared with what.

  Attributes:
    real_view, generated_view: `black`, `blurred` or `whole`, see `views.show`.
    padding, blur: of `blurred`, shares of the longer side of the object's box.
    limit: real instances of a category, the first of the source; 0: all.
    smallest: pixels; a real instance whose box is narrower and lower is left out.
    templates: texts of a category, each with one `{}` for its name; their mean stands for it.
  """

  real_view: View = 'blurred'
  generated_view: View = 'black'
  padding: float = 0.2
  blur: float = 0.06
  limit: int = 1000
  smallest: int = 8
  templates: tuple[str, ...] = ('a photo of a {}',)

  def __post_init__(self) -> None:
    where = 'config.filtration.references'
    require(0 <= self.padding <= 2, f'{where}.padding', f'{self.padding} is outside 0 to 2')
    require(0 <= self.blur <= 1, f'{where}.blur', f'{self.blur} is outside 0 to 1')
    require(self.limit >= 0, f'{where}.limit', f'{self.limit} is negative; 0 takes all')
    require(self.smallest >= 1, f'{where}.smallest', f'{self.smallest} must be at least 1')
    require(bool(self.templates), f'{where}.templates', 'none; name at least one')
    for text in self.templates:
      require(
        text.count('{}') == 1 and text.count('{') == 1 and text.count('}') == 1,
        f'{where}.templates',
        f'{text!r} needs one {{}} for the name, and no other brace',
      )


@dataclasses.dataclass(frozen=True)
class References:
  """Real embeddings and category texts, by one encoder.

  Attributes:
    categories: names, in the order of their numbers.
    embeddings: unit vectors of real instances, in the view of real ones.
    held_out: of the same instances in the view of generated ones, to calibrate thresholds by.
    category: number of the category of each.
    texts: a unit vector for each category.
    key: tells what they were made of.
    notes: what was left out, in words.
  """

  categories: tuple[str, ...]
  embeddings: Float[np.ndarray, 'm dim']
  held_out: Float[np.ndarray, 'm dim']
  category: Int[np.ndarray, 'm']
  texts: Float[np.ndarray, 'c width']
  key: str = ''
  notes: tuple[str, ...] = ()

  @functools.cached_property
  def counts(self) -> dict[str, int]:
    """How many real instances there are of each category."""
    found = np.bincount(self.category, minlength=len(self.categories))
    return dict(zip(self.categories, found.tolist(), strict=True))

  @functools.cached_property
  def numbers(self) -> dict[str, int]:
    """Category name to number."""
    return {name: i for i, name in enumerate(self.categories)}

  def neighbour(self, name: str) -> str:
    """The category with real instances whose text is nearest; '' if there is none at all."""
    near = self.texts @ self.texts[self.numbers[name]]
    there = np.bincount(self.category, minlength=len(self.categories)) > 0
    near = np.where(there & np.isfinite(near), near, -np.inf)
    near[self.numbers[name]] = -np.inf
    best = int(near.argmax())
    return self.categories[best] if np.isfinite(near[best]) else ''


def make_references(
  config: ReferenceConfig,
  categories: Sequence[str],
  real: Source | None,
  embedder: Embedder,
  real_id: str,
  path: Path,
) -> References:
  """Embeds the real instances of the categories, or reads what an earlier call wrote.

  Args:
    config: how they are shown.
    categories: names, distinct.
    real: records with labels; None: there are no real images.
    embedder: what embeds; another one is told by what it makes of the texts and of a test picture.
    real_id: tells the real records from others, such as a digest of their ids.
    path: of a safetensors file; one that is damaged or was made of something else is made anew.

  Raises:
    UserError: no categories, a full disk.
  """
  if not categories:
    raise UserError('config.categories: no category to compare images of; name at least one')
  spec = real.spec if real is not None else ''
  texts = np.asarray(class_vectors(embedder, categories, config.templates), np.float32)  # type: ignore[arg-type]
  probe = np.asarray(embedder.embed_images(_test_picture(embedder)), np.float32)
  told = _digest({'texts': texts, 'probe': probe})
  facts = [_FORMAT, dataclasses.asdict(config), list(categories), spec, real_id, told]
  key = hashlib.blake2b(json.dumps(facts).encode(), digest_size=12).hexdigest()
  found = _read(path, key)
  if found is not None:
    return found
  found_real = _embed(config, categories, real, embedder, texts.shape[1])
  made = References(tuple(categories), *found_real[:3], texts, key, found_real[3])
  _write(path, made)
  return made


def instances(record: Record) -> Iterator[Instance]:
  """Yields label, mask and box of each object of a record; the whole image without ground truth.

  Read is what `paste.objects.outlines` reads.
  """
  found = outlines(record)
  for outline in found:
    yield outline.label, outline.mask(), outline.box
  if not found and record.labels:
    yield record.labels[0], None, None


def _test_picture(embedder: Embedder) -> UInt8[np.ndarray, '1 height width 3']:
  """A picture that any two encoders see differently."""
  noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
  return apply_to_picture(embedder.transform, Image.fromarray(noise), np.random.default_rng(0))[
    None
  ]


def _embed(
  config: ReferenceConfig,
  categories: Sequence[str],
  real: Source | None,
  embedder: Embedder,
  dim: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[str, ...]]:
  """Returns embeddings in both views, categories, and what was left out."""
  number = {name: i for i, name in enumerate(categories)}
  counts = [0] * len(categories)
  left_out = {'images that cannot be read': 0, 'small instances': 0, 'not finite': 0}
  views: list[np.ndarray] = []
  of: list[int] = []
  done: list[np.ndarray] = []

  def has_room(label: str) -> bool:
    return label in number and (not config.limit or counts[number[label]] < config.limit)

  def flush() -> None:
    if views:
      done.append(np.asarray(embedder.embed_images(np.stack(views)), np.float32))
      views.clear()

  for position in range(len(real) if real is not None else 0):
    assert real is not None
    if config.limit and min(counts) >= config.limit:
      break
    try:
      record = real[position]
    except UserError:
      left_out['images that cannot be read'] += 1
      continue
    if not any(has_room(label) for label in record.labels):
      continue
    try:
      image = decode_image(record.image)
      found = list(instances(record))
    except (ImageError, UserError, LookupError, TypeError, ValueError):  # truth is anyone's JSON
      left_out['images that cannot be read'] += 1
      continue
    for label, mask, box in found:
      if not has_room(label):
        continue
      if (box is not None and max(box[2:]) < config.smallest) or (
        mask is not None and (mask.shape != image.shape[:2] or not mask.any())
      ):
        left_out['small instances'] += 1
        continue
      for view in (config.real_view, config.generated_view):
        views.append(
          show(
            view,
            embedder.transform,
            image,
            mask,
            box,
            padding=config.padding,
            blur=config.blur,
          )
        )
      of.append(number[label])
      counts[number[label]] += 1
      if len(views) == _BATCH:
        flush()
  flush()
  x = np.concatenate(done) if done else np.zeros((0, dim), np.float32)
  x, held_out = x[::2], x[1::2]
  good = finite_rows(x) & finite_rows(held_out)
  left_out['not finite'] = int((~good).sum())
  notes = tuple(f'{count} {what} left out' for what, count in left_out.items() if count)
  return x[good], held_out[good], np.asarray(of, np.int32)[good], notes


def _digest(arrays: dict[str, np.ndarray]) -> str:
  digest = hashlib.blake2b(digest_size=16)
  for name in sorted(arrays):
    digest.update(f'{name} {arrays[name].shape} {arrays[name].dtype}'.encode())
    digest.update(np.ascontiguousarray(arrays[name]).tobytes())
  return digest.hexdigest()


def _write(path: Path, made: References) -> None:
  """Writes the file aside, then renames it."""
  arrays = {name: np.ascontiguousarray(getattr(made, name)) for name in _ARRAYS}
  facts = {'format': _FORMAT, 'key': made.key, 'digest': _digest(arrays)}
  facts |= {'categories': json.dumps(made.categories), 'notes': json.dumps(made.notes)}
  hidden = Path(aside(str(path)))
  try:
    with disk_errors(str(path.parent)):
      path.parent.mkdir(parents=True, exist_ok=True)
      hidden.write_bytes(save(arrays, facts))
      sync(str(hidden))
      os.replace(hidden, path)
  finally:
    with contextlib.suppress(OSError):
      hidden.unlink()


def _read(path: Path, key: str) -> References | None:
  """Reads the file; None where it is missing, damaged, or made of something else."""
  if not path.is_file():
    return None
  try:
    with safe_open(path, framework='np') as file:
      facts: dict[str, Any] = file.metadata() or {}
      if (facts.get('format'), facts.get('key')) != (_FORMAT, key):
        return None
      arrays = {name: file.get_tensor(name) for name in _ARRAYS}
    if facts['digest'] != _digest(arrays):
      return None
    names, notes = json.loads(facts['categories']), json.loads(facts['notes'])
    return References(tuple(names), **arrays, key=key, notes=tuple(notes))
  except (OSError, SafetensorError, ValueError, LookupError):
    return None
