"""The mask of one object before a plain background, without any weights: border colours, GrabCut.

The background is what the border of the image goes on to: a colour surface is fitted to the border
pixels, whatever is far from it begins as the object, and GrabCut (Rother et al. 2004, ACM TOG 23)
settles the rest.
"""

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

_BORDER = 0.03  # of the side: how wide the border is that is taken for background
_ROUNDS = 4  # of the robust fit
_LEAST = 10.0  # distance in Lab below which a pixel is never taken for the object at first


def grabcut_mask(
  image: UInt8[np.ndarray, 'height width 3'], work_size: int = 128, iterations: int = 3
) -> Bool[np.ndarray, 'height width']:
  """Returns the mask of what stands before the background; empty where nothing does.

  Args:
    image: of 8 pixels and more on each side.
    work_size: longer side, pixels, that the image is brought to: small ones are enlarged, for a
      mask finer than their pixels; large ones are made smaller, for speed.
    iterations: of GrabCut.
  """
  height, width = image.shape[:2]
  scale = work_size / max(height, width)
  size = (max(8, round(width * scale)), max(8, round(height * scale)))
  way = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
  work = cv2.resize(image, size, interpolation=way)
  distance = background_distance(work)
  threshold = max(_LEAST, _otsu(distance))
  if distance.max() <= threshold:
    return np.zeros((height, width), bool)
  mask = np.where(distance > threshold, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
  mask[distance <= _LEAST / 3] = cv2.GC_BGD
  border = _border(*distance.shape)
  mask[border & (distance <= threshold)] = cv2.GC_BGD
  if min(np.count_nonzero(mask == cv2.GC_PR_FGD), np.count_nonzero(mask != cv2.GC_PR_FGD)) >= 8:
    cv2.setRNGSeed(0)  # its k-means draws centres by lot
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(work, mask, None, *models, iterations, cv2.GC_INIT_WITH_MASK)
  found = np.isin(mask, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32)
  return cv2.resize(found, (width, height), interpolation=cv2.INTER_AREA) >= 0.5


def background_distance(
  image: UInt8[np.ndarray, 'height width 3'],
) -> Float[np.ndarray, 'height width']:
  """Returns how far each pixel's colour is from the background's there, in Lab.

  The background is a quadratic surface through the border pixels, fitted again without those that
  are far from it (an object that touches the border), so that plain and fading ones are told alike.
  """
  lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
  height, width = lab.shape[:2]
  y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
  terms = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], axis=-1)
  border = _border(height, width)
  rows, colours = terms[border], lab[border].astype(np.float64)
  # from the commonest colour on: a mean would lie between the object's colours and the background's
  centre = np.median(colours, axis=0)
  far = np.linalg.norm(colours - centre, axis=1)
  for count in range(_ROUNDS):
    use = far <= max(_LEAST, 2.5 * float(np.median(far)))
    wanted = rows[use][:, : (3 if count < _ROUNDS // 2 else 6)]
    ridge = 1e-3 * len(wanted) * np.eye(wanted.shape[1])
    ridge[0, 0] = 0.0  # the surface may lie anywhere, but bends only for a reason
    surface = np.linalg.solve(wanted.T @ wanted + ridge, wanted.T @ colours[use])
    far = np.linalg.norm(colours - rows[:, : wanted.shape[1]] @ surface, axis=1)
  return np.linalg.norm(lab - terms[..., : len(surface)] @ surface, axis=-1)


def _border(height: int, width: int) -> Bool[np.ndarray, 'height width']:
  out = np.ones((height, width), bool)
  by = max(1, round(_BORDER * max(height, width)))
  out[by : height - by, by : width - by] = False
  return out


def _otsu(distance: Float[np.ndarray, 'height width']) -> float:
  """The threshold between two kinds of pixels (Otsu 1979, IEEE Trans. SMC 9)."""
  top = float(distance.max())
  if top <= 0:
    return 0.0
  scaled = np.round(255 * distance / top).astype(np.uint8)
  level, _ = cv2.threshold(scaled, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
  # half way down: the edge of a drawing is a blend, and thin parts are all edge
  return float(level) * top / 255 / 2
