"""What is done with a mask: its largest part, its holes, crops of the image by it."""

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

from align_jax.synth.annotation.rle import box_of

Box = tuple[int, int, int, int]  # x, y, width, height, pixels
Image = UInt8[np.ndarray, 'height width 3']
Mask = Bool[np.ndarray, 'height width']

_CROSS = np.ones((3, 3), bool)  # corners touch: thin lines of a drawing stay in one piece


def largest_part(mask: Mask) -> Mask:
  """Returns the largest connected component of a mask (8 neighbours); of equal ones the first."""
  parts, count = ndimage.label(mask, structure=_CROSS)
  if count <= 1:
    return mask
  sizes = np.bincount(parts.ravel())[1:]
  return parts == 1 + int(np.argmax(sizes))


def fill_holes(mask: Mask) -> Mask:
  """Returns the mask with everything inside that does not reach the border."""
  return ndimage.binary_fill_holes(mask)


def crop_rgba(image: Image, mask: Mask) -> UInt8[np.ndarray, 'h w 4']:
  """Cuts the object out: the box of the mask, the mask as its alpha.

  Source: DiverGen, arXiv 2405.10185, section 3.3.
  """
  x, y, width, height = box_of(mask)
  alpha = np.where(mask, 255, 0).astype(np.uint8)
  return np.dstack([image, alpha])[y : y + height, x : x + width]


def crop_on_black(image: Image, mask: Mask) -> UInt8[np.ndarray, 'h w 3']:
  """Cuts the object out and blackens all else, as DiverGen shows generated instances to CLIP."""
  x, y, width, height = box_of(mask)
  return np.where(mask[..., None], image, 0)[y : y + height, x : x + width].astype(np.uint8)


def crop_blurred(
  image: Image, mask: Mask | None, box: Box, padding: float = 0.2, blur: float = 0.06
) -> UInt8[np.ndarray, 'h w 3']:
  """Cuts a real instance out with some of what is around it, blurred.

  DiverGen pads by 40 pixels at 224 and more, which is `padding` of the box here, for boxes are of
  any size.

  Args:
    image: the picture.
    mask: of the instance; None blurs nothing.
    box: of the instance.
    padding: on each side, of the longer side of the box; cut off at the picture's border.
    blur: standard deviation of the Gaussian outside the mask, of the longer side.
  """
  longest = max(box[2], box[3])
  x0, y0, x1, y1 = padded(box, padding, image.shape[1], image.shape[0])
  part = image[y0:y1, x0:x1]
  if mask is None:
    return part
  sigma = (blur * longest, blur * longest, 0)
  soft: Float[np.ndarray, 'h w 3'] = ndimage.gaussian_filter(part.astype(np.float32), sigma)
  inside = mask[y0:y1, x0:x1, None]
  return np.where(inside, part, np.round(soft)).astype(np.uint8)


def padded(box: Box, padding: float, width: int, height: int) -> tuple[int, int, int, int]:
  """Returns left, top, right, bottom of a box made larger, within a picture."""
  x, y, w, h = box
  by = round(padding * max(w, h))
  return max(0, x - by), max(0, y - by), min(width, x + w + by), min(height, y + h + by)
