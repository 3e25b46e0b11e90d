"""Masks of instances as run lengths, in COCO's uncompressed form."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool


def encode_mask(mask: Bool[np.ndarray, 'height width']) -> dict[str, list[int]]:
  """Returns `{'size': [height, width], 'counts': [...]}`.

  Counts are lengths of runs down the columns, left to right, the first one of False (it may be 0).
  """
  flat = mask.T.ravel()
  ends = np.flatnonzero(flat[1:] != flat[:-1]) + 1
  counts = np.diff(np.concatenate(([0], ends, [flat.size]))).tolist()
  return {'size': list(mask.shape), 'counts': [0, *counts] if flat[0] else counts}


def decode_mask(mask: Mapping[str, Any]) -> Bool[np.ndarray, 'height width']:
  """Returns the mask that `encode_mask` wrote.

  Raises:
    ValueError: the runs do not fill the size.
  """
  height, width = mask['size']
  counts = np.asarray(mask['counts'], np.int64)
  if counts.sum() != height * width or (counts < 0).any():
    raise ValueError(f'mask: runs sum to {counts.sum()}, the size {height} x {width} needs another')
  return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T
