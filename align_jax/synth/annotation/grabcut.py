"""The mask of one object by GrabCut, seeded with what is far from the border's colours.

GrabCut (Rother et al. 2004, ACM TOG 23) learns the colours of object and background as mixtures:
for backgrounds that are no smooth surface, which `matte` takes them for. Where they are, it is
slower and no better, see docs/synth.md.
"""

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from align_jax.synth.annotation.matte import (
  SMALLEST,
  background_distance,
  border,
  enlarged,
  matte,
  reduced,
)

_ENOUGH = 8  # pixels of each kind, for a mixture of five colours


def grabcut_mask(
  image: UInt8[np.ndarray, 'height width 3'],
  work_size: int = 256,
  iterations: int = 3,
  *,
  bridge: bool = True,
) -> Bool[np.ndarray, 'height width']:
  """Returns the mask of what stands before the background; empty where nothing does.

  Args:
    image: of any size; one with a side of fewer than 3 pixels has no object.
    work_size: longer side, pixels, that larger images are brought to, for speed.
    iterations: of GrabCut.
    bridge: see `matte.matte`.
  """
  if min(image.shape[:2]) < SMALLEST:
    return np.zeros(image.shape[:2], bool)
  work = np.ascontiguousarray(reduced(image, work_size))
  distance, threshold = background_distance(work)
  seed = matte(distance, threshold, bridge=bridge)
  if not seed.any():
    return np.zeros(image.shape[:2], bool)
  mask = np.where(seed, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
  mask[seed & (distance > 3 * threshold)] = cv2.GC_FGD
  mask[~seed & ((distance <= threshold / 2) | border(*seed.shape))] = cv2.GC_BGD
  inside = np.isin(mask, (cv2.GC_FGD, cv2.GC_PR_FGD))
  if min(np.count_nonzero(inside), np.count_nonzero(~inside)) >= _ENOUGH:
    cv2.setRNGSeed(0)  # its k-means draws centres by lot
    models = np.zeros((1, 65)), np.zeros((1, 65))
    unused = (0, 0, 1, 1)  # a rectangle, for those who have no mask
    cv2.grabCut(work, mask, unused, *models, iterations, cv2.GC_INIT_WITH_MASK)
    inside = np.isin(mask, (cv2.GC_FGD, cv2.GC_PR_FGD))
  return enlarged(inside, *image.shape[:2])
