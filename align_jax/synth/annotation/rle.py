"""Masks as COCO's compressed run lengths, by pycocotools."""

import numpy as np
from jaxtyping import Bool, Int
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
  run_lengths(rle, height, width)
  return coco.decode({'size': [height, width], 'counts': rle.encode('ascii')}).astype(bool)


def area_of(rle: str, height: int, width: int) -> int:
  """Returns the pixels of a packed mask. Raises as `decode` does."""
  return int(run_lengths(rle, height, width)[1::2].sum())


def run_lengths(rle: str, height: int, width: int) -> Int[np.ndarray, ' runs']:
  """Unpacks the text: lengths of runs down the columns, of what is outside and inside in turn.

  pycocotools itself reads past the end of a text that is cut short, and hands out the memory it
  finds; so the text is read here first. Each number is written in groups of 5 bits, the lowest
  first, bit 32 says that another group follows, bit 16 of the last one is the sign; from the fourth
  number on it is the difference from the one before the last.

  Raises:
    UserError: the text is damaged or of another size.
  """
  where = f'mask of {width} x {height} pixels: damaged run lengths'
  try:
    groups = np.frombuffer(rle.encode('ascii'), np.uint8).astype(np.int64) - 48
  except UnicodeEncodeError as error:
    raise UserError(f'{where} ({error})') from error
  last = (groups & 32) == 0
  if not len(groups) or not last[-1] or groups.min() < 0 or groups.max() > 63:
    raise UserError(f'{where} ({rle[:20]!r}...)')
  ends = np.flatnonzero(last)
  starts = np.concatenate([[0], ends[:-1] + 1])
  count = ends - starts + 1
  if count.max() > 12:  # 60 bits
    raise UserError(f'{where} ({rle[:20]!r}...)')
  shift = 5 * (np.arange(len(groups)) - np.repeat(starts, count))
  numbers = np.add.reduceat((groups & 31) << shift, starts)
  runs = np.where(groups[ends] & 16, numbers - (1 << 5 * count), numbers)
  runs[1::2], runs[2::2] = np.cumsum(runs[1::2]), np.cumsum(runs[2::2])
  if runs.min() < 0 or runs.max() > height * width or runs.sum() != height * width:
    raise UserError(f'{where} (they sum to {runs.sum()})')
  return runs


def box_of(mask: Bool[np.ndarray, 'height width']) -> tuple[int, int, int, int]:
  """Returns x, y, width and height of the smallest box around a mask; zeros if it is empty."""
  rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
  if not len(rows):
    return 0, 0, 0, 0
  x, y = int(columns[0]), int(rows[0])
  return x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1
