"""How different prompts are, and which are too much alike."""

import collections
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int


def pairwise_distance(vectors: Float[np.ndarray, 'n dim']) -> float:
  """Returns the mean cosine distance of all pairs of unit vectors; NaN of fewer than two.

  Without a product of all with all: the sum of the cosines is the square of the vectors' sum.
  """
  count = len(vectors)
  if count < 2:
    return float('nan')
  total = np.asarray(vectors, np.float64).sum(axis=0)
  own = float(np.sum(np.square(vectors, dtype=np.float64)))
  return float(1 - (total @ total - own) / (count * (count - 1)))


def distinct(texts: Sequence[str], n: int) -> float:
  """Returns distinct-n: different n-grams of words, as a share of all; NaN without any.

  Source: Li et al. 2016, arXiv 1510.03055, section 4.
  """
  grams: collections.Counter[tuple[str, ...]] = collections.Counter()
  for text in texts:
    words = text.lower().replace(',', ' ').split()
    grams.update(zip(*(words[i:] for i in range(n)), strict=False))
  total = grams.total()
  return len(grams) / total if total else float('nan')


def unlike(
  vectors: Float[np.ndarray, 'n dim'], threshold: float, enough: int
) -> Int[np.ndarray, 'kept']:
  """Returns the rows that are kept: each, in order, unless it is too much like one before.

  Args:
    vectors: unit vectors.
    threshold: a cosine above it is too much.
    enough: stop at so many.
  """
  kept: list[int] = []
  for row, vector in enumerate(vectors):
    if len(kept) == enough:
      break
    if not kept or float((vectors[kept] @ vector).max()) <= threshold:
      kept.append(row)
  return np.asarray(kept, np.int64)
