"""How an object is shown to the encoder: what is around it, cut, and made square."""

from typing import Literal

import numpy as np
from jaxtyping import Bool, UInt8

from align_jax.data.transforms import Transform, apply
from align_jax.synth.annotation.regions import crop_blurred, crop_on_black
from align_jax.synth.annotation.rle import box_of

View = Literal['black', 'blurred', 'whole']


def show(
  view: View,
  transform: Transform,
  image: UInt8[np.ndarray, 'height width 3'],
  mask: Bool[np.ndarray, 'height width'] | None = None,
  box: tuple[int, int, int, int] | None = None,
  *,
  padding: float = 0.2,
  blur: float = 0.06,
) -> UInt8[np.ndarray, 'size size 3']:
  """Returns the pixels that the encoder is given.

  Args:
    view: `black`: cut to the mask, black outside it; `blurred`: cut to the box and some more,
      blurred outside the mask; `whole`: the image as it is.
    transform: of the encoder.
    image, mask, box: the picture and its object; without a mask a box is cut, not blurred; without
      both the whole image is shown.
    padding, blur: of `blurred`, see `annotation.regions.crop_blurred`.

  Source: DiverGen, arXiv 2405.10185, section 3.4, where real instances are `blurred` and generated
  ones `black`. Unlike there the cut is made square before it is resized, so that the centre crop of
  CLIP's own transform leaves nothing of a long object out.
  """
  part = image
  if mask is not None and not mask.any():
    mask = box = None
  if view != 'whole' and (mask is not None or box is not None):
    if view == 'black' and mask is not None:
      part = _square(crop_on_black(image, mask), black=True)
    else:
      around = box if box is not None else box_of(mask)  # type: ignore[arg-type]
      part = _square(crop_blurred(image, mask, around, padding, blur), black=False)
  return apply(transform, np.ascontiguousarray(part), np.random.default_rng(0))


def _square(
  image: UInt8[np.ndarray, 'height width 3'], *, black: bool
) -> UInt8[np.ndarray, 'side side 3']:
  """Adds to the shorter side, as much before as after: black, or the outermost pixels again."""
  height, width = image.shape[:2]
  side = max(height, width)
  tall, wide = side - height, side - width
  margins = ((tall // 2, tall - tall // 2), (wide // 2, wide - wide // 2), (0, 0))
  return np.pad(image, margins, mode='constant') if black else np.pad(image, margins, mode='edge')
