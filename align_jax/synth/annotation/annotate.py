"""Stage 4: where the object of each image is, and the hash of the image."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, UInt8

from align_jax.errors import require
from align_jax.synth.annotation.grabcut import grabcut_mask
from align_jax.synth.annotation.matte import matte_mask
from align_jax.synth.annotation.regions import fill_holes, largest_part
from align_jax.synth.annotation.rle import box_of, encode
from align_jax.synth.annotation.sam import load_sam
from align_jax.synth.hashes import perceptual_hash
from align_jax.synth.rows import AnnotationRow

EMPTY, WHOLE = 'empty', 'whole_image'
Masker: TypeAlias = Callable[
  [UInt8[np.ndarray, 'height width 3']], Bool[np.ndarray, 'height width']
]


@dataclasses.dataclass(frozen=True)
class AnnotationConfig:
  """How objects are found.

  Attributes:
    method: `matte` (the background, read off the border, subtracted: no weights), `grabcut`
      (GrabCut, seeded with that), `sam` (SAM-background, DiverGen), or `none` (no masks).
    folder: of `sam`: a SAM saved by transformers.
    device: of `sam`, for PyTorch.
    parts: `largest` keeps the largest connected part of a mask, as DiverGen; `all` keeps all, for
      images of several objects.
    holes: `fill` those that do not reach the border, or do so through a small gap (what is drawn in
      the background's own colour inside an object is lost else), or `keep` them.
    whole: a mask that covers more of the image is none: the background was not told apart.
    work_size: of `matte` and `grabcut`: the longer side, pixels, that larger images are brought to.
    iterations: of `grabcut`.
  """

  method: Literal['matte', 'grabcut', 'sam', 'none'] = 'matte'
  folder: str = ''
  device: str = 'cpu'
  parts: Literal['largest', 'all'] = 'largest'
  holes: Literal['keep', 'fill'] = 'fill'
  whole: float = 0.95
  work_size: int = 256
  iterations: int = 3

  def __post_init__(self) -> None:
    where = 'config.annotation'
    require(
      (self.method == 'sam') == bool(self.folder),
      f'{where}.folder',
      'method sam needs one, the others none',
    )
    require(0 < self.whole <= 1, f'{where}.whole', f'{self.whole} is no share above 0')
    require(32 <= self.work_size <= 2048, f'{where}.work_size', f'{self.work_size}: 32 to 2048')
    require(1 <= self.iterations <= 20, f'{where}.iterations', f'{self.iterations}: 1 to 20')


@functools.lru_cache(maxsize=2)  # a SAM is loaded once, not for each part
def make_masker(config: AnnotationConfig) -> Masker | None:
  """Returns what makes the raw mask of an image; None for `none`.

  Raises:
    UserError: a SAM that cannot be loaded.
  """
  if config.method == 'none':
    return None
  if config.method == 'sam':
    return load_sam(config.folder, config.device)
  bridge = config.holes == 'fill'
  if config.method == 'matte':
    return lambda image: matte_mask(image, config.work_size, bridge=bridge)
  return lambda image: grabcut_mask(image, config.work_size, config.iterations, bridge=bridge)


def annotate(
  config: AnnotationConfig,
  masker: Masker | None,
  id_: str,
  image: UInt8[np.ndarray, 'height width 3'],
) -> AnnotationRow:
  """Says where the object of an image is.

  Returns: a row; its `failure` is `empty` or `whole_image` where there is no usable mask, `none`
    where none is asked for.
  """
  height, width = image.shape[:2]
  if masker is None:
    return AnnotationRow(id_, width, height, failure='none')
  mask = masker(image)
  mask = largest_part(mask) if config.parts == 'largest' else mask
  mask = fill_holes(mask) if config.holes == 'fill' else mask
  area = float(mask.mean())
  if not mask.any():
    return AnnotationRow(id_, width, height, failure=EMPTY)
  if area > config.whole:
    return AnnotationRow(id_, width, height, area=round(area, 6), failure=WHOLE)
  return AnnotationRow(id_, width, height, round(area, 6), box_of(mask), encode(mask))


def annotate_part(
  config: AnnotationConfig,
  ids: Sequence[str],
  images: Sequence[UInt8[np.ndarray, '_ _ 3']],
  seen: Callable[[int], None] = lambda count: None,
) -> list[AnnotationRow]:
  """Annotates and hashes the images of a part, in order; `seen` is told of so many more."""
  masker = make_masker(config)
  rows = []
  for id_, image in zip(ids, images, strict=True):
    row = annotate(config, masker, id_, image)
    rows.append(dataclasses.replace(row, phash=perceptual_hash(image)))
    seen(1)
  return rows
