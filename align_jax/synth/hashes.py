"""Perceptual hashes: 64 bits that stay nearly the same when a picture is scaled or recompressed."""

from collections.abc import Sequence

import imagehash
import numpy as np
from jaxtyping import UInt8, UInt64
from PIL import Image

from align_jax.errors import UserError

BITS = 64


def perceptual_hash(image: UInt8[np.ndarray, 'height width 3']) -> str:
  """Returns the hash of a picture as 16 hexadecimal digits.

  The signs, about their median, of the 8 × 8 lowest frequencies of the grey picture at 32 × 32.
  A blank picture has no frequencies but the mean, so that all blank pictures share a hash.

  Source: `imagehash.phash`, after Krawetz 2011, "Looks like it", hackerfactor.com.
  """
  return str(imagehash.phash(Image.fromarray(image)))


def to_bits(hashes: Sequence[str]) -> UInt64[np.ndarray, 'n']:
  """Reads hashes that `perceptual_hash` wrote.

  Raises:
    UserError: a text that is no such hash.
  """
  out = np.zeros(len(hashes), np.uint64)
  for i, text in enumerate(hashes):
    try:
      if len(text) != BITS // 4:
        raise ValueError(f'{len(text)} digits')
      out[i] = int(text, 16)
    except ValueError as error:
      raise UserError(
        f'perceptual hash {text!r}: not {BITS // 4} hexadecimal digits; score the images again'
      ) from error
  return out


def hamming(x: UInt64[np.ndarray, 'n'], y: UInt64[np.ndarray, 'm']) -> UInt8[np.ndarray, 'n m']:
  """Returns in how many bits each hash of x differs from each of y, 0 to 64."""
  return np.bitwise_count(x[:, None] ^ y)
