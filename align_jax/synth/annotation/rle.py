"""Masks as COCO's compressed run lengths, by pycocotools."""

import numpy as np
from jaxtyping import Bool
from pycocotools import mask as coco

from align_jax.errors import UserError


def encode(mask: Bool[np.ndarray, 'height width']) -> str:
  """Returns the run lengths of a mask (`counts` of a COCO segmentation), as text."""
  return coco.encode(np.asfortranarray(mask, np.uint8))['counts'].decode('ascii')


def decode(rle: str, height: int, width: int) -> Bool[np.ndarray, 'height width']:
  """Returns the mask that `encode` wrote.

  Raises:
    UserError: the text is damaged or of another size.
  """
  try:
    return coco.decode({'size': [height, width], 'counts': rle.encode('ascii')}).astype(bool)
  except (ValueError, UnicodeEncodeError, MemoryError) as error:
    raise UserError(f'mask of {width} x {height} pixels: damaged run lengths ({error})') from error


def box_of(mask: Bool[np.ndarray, 'height width']) -> tuple[int, int, int, int]:
  """Returns x, y, width and height of the smallest box around a mask; zeros if it is empty."""
  rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
  if not len(rows):
    return 0, 0, 0, 0
  x, y = int(columns[0]), int(rows[0])
  return x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1
