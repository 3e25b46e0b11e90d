"""The mask of an object before a quiet background, without any weights: the background, subtracted.

The background is what the border of the image goes on to: colour surfaces are fitted to the border
pixels, and what is far from all of them is the object. Its edge lies where a pixel is half object,
half background.
"""

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy import ndimage

from align_jax.synth.annotation.regions import fill_holes

SMALLEST = 3  # pixels of a side: a border and something within
_BORDER = 0.03  # of the side: how wide the border is that is taken for background
_ROUNDS = 4  # of the robust fit
_LEAST = 10.0  # distance in Lab below which border pixels go with a surface in any case
_FLOOR, _CEILING = 8.0, 20.0  # what a threshold follows from its own image between
_JUMP = 15.0  # in Lab, between border pixels four apart: where a background ends
_SMOOTH = 7  # pixels of the border: over which noise is taken out before
_SECOND = 0.2  # of the border: what a second background covers at least
_EDGE = 5  # pixels: how near the object's full colour is to its edge


def matte_mask(
  image: UInt8[np.ndarray, 'height width 3'], work_size: int = 256, *, bridge: bool = True
) -> Bool[np.ndarray, 'height width']:
  """Returns the mask of what stands before the background; empty where nothing does.

  Args:
    image: of any size; one with a side of fewer than 3 pixels has no object.
    work_size: longer side, pixels, that larger images are brought to, for speed.
    bridge: see `matte`.
  """
  if min(image.shape[:2]) < SMALLEST:
    return np.zeros(image.shape[:2], bool)
  work = reduced(image, work_size)
  mask = matte(*background_distance(work), bridge=bridge)
  return enlarged(mask, *image.shape[:2])


def matte(
  distance: Float[np.ndarray, 'height width'], threshold: float, *, bridge: bool = True
) -> Bool[np.ndarray, 'height width']:
  """Returns where an image is its object, from how far it is from its background.

  Args:
    distance, threshold: see `background_distance`.
    bridge: outlines with small gaps are closed, and what is inside them, in the background's own
      colour, is of the object.
  """
  far = distance > threshold
  if not far.any():
    return far
  # A pixel on the edge is a blend, as far from the background as it is object: half of the full
  # distance, which is found near it, is the edge. Inside, a pale part beside a dark one is no edge.
  full = ndimage.grey_dilation(distance, size=(_EDGE, _EDGE))
  mask = far & ((distance > 0.5 * full) | ndimage.binary_erosion(far, np.ones((3, 3))))
  if not bridge:
    return mask
  by = max(1, round(max(mask.shape) / 64))
  padded = np.pad(mask, by)
  closed = ndimage.binary_closing(padded, np.ones((2 * by + 1, 2 * by + 1)))[by:-by, by:-by]
  inside = fill_holes(closed) & ~closed
  return mask | ndimage.binary_dilation(
    inside, np.ones((3, 3)), iterations=by, mask=closed | inside
  )


def background_distance(
  image: UInt8[np.ndarray, 'height width 3'],
) -> tuple[Float[np.ndarray, 'height width'], float]:
  """Returns how far each pixel's colour is from the background's there, in Lab, and what is far.

  The outermost pixels are walked round and cut where the colour jumps. The longest piece is
  background: a quadratic surface is fitted to it, so that plain and fading ones are told alike, and
  again to all of the border that goes with it. Another long piece that does not go with it is a
  second background (a floor and a wall); short ones are objects that touch the border.
  """
  lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
  height, width = lab.shape[:2]
  y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
  terms = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], axis=-1)
  ring = _ring(height, width)
  rows, colours = terms[ring], lab[ring].astype(np.float64)
  smooth = cv2.cvtColor(cv2.medianBlur(image, 3).astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
  pieces = _pieces(smooth[ring])
  lengths = np.bincount(pieces)
  distance = np.full((height, width), np.inf)
  far = np.full(len(rows), np.inf)
  noise = 0.0
  for piece in np.argsort(-lengths, kind='stable'):
    mine = pieces == piece
    first = not noise and np.isinf(far).all()
    limit = max(_LEAST, 4 * noise)
    if not first and (lengths[piece] < _SECOND * len(rows) or np.median(far[mine]) <= limit):
      continue
    surface = _fit(rows, colours, mine)
    off = _far(rows, colours, surface)
    if first:
      noise = float(np.median(off[mine]))
    far = np.minimum(far, off)
    distance = np.minimum(distance, _far(terms, lab, surface))
  threshold = max(_FLOOR, 4 * noise)
  strong = distance[distance > 2 * threshold]
  if strong.size:  # the halo of a compressed picture grows with the contrast
    threshold = max(threshold, min(_CEILING, 0.25 * float(np.median(strong))))
  return distance, threshold


def border(height: int, width: int) -> Bool[np.ndarray, 'height width']:
  """Returns the pixels that are taken for background."""
  out = np.ones((height, width), bool)
  by = max(1, round(_BORDER * max(height, width)))
  out[by : height - by, by : width - by] = False
  return out


def reduced(
  image: UInt8[np.ndarray, 'height width 3'], work_size: int
) -> UInt8[np.ndarray, 'h w 3']:
  """Returns the image, made smaller if its longer side is more than `work_size`."""
  height, width = image.shape[:2]
  scale = work_size / max(height, width)
  if scale >= 1:
    return image
  size = (max(8, round(width * scale)), max(8, round(height * scale)))
  return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def enlarged(
  mask: Bool[np.ndarray, 'h w'], height: int, width: int
) -> Bool[np.ndarray, 'height width']:
  """Returns a mask in the size of the image it is of."""
  if mask.shape == (height, width):
    return mask
  soft = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
  return soft >= 0.5


def _ring(height: int, width: int) -> tuple[Int[np.ndarray, ' ring'], Int[np.ndarray, ' ring']]:
  """Returns rows and columns of the outermost pixels, once round."""
  x, y = np.arange(width - 1), np.arange(height - 1)
  top, right = np.zeros_like(x), np.full_like(y, width - 1)
  bottom, left = np.full_like(x, height - 1), np.zeros_like(y)
  rows = np.concatenate([top, y, bottom, height - 1 - y])
  return rows, np.concatenate([x, right, width - 1 - x, left])


def _pieces(colours: Float[np.ndarray, 'ring 3']) -> Int[np.ndarray, ' ring']:
  """Numbers the pieces of a ring between jumps of the colour."""
  smooth = ndimage.median_filter(colours, (_SMOOTH, 1), mode='wrap')
  step = np.linalg.norm(np.roll(smooth, -2, axis=0) - np.roll(smooth, 2, axis=0), axis=1)
  jump = step > max(_JUMP, 4 * float(np.median(step)))  # in noise every step is one
  parts, count = ndimage.label(~jump)
  if not count:
    return np.zeros(len(jump), np.int64)
  if parts[0] and parts[-1]:  # the ring is closed
    parts[parts == parts[-1]] = parts[0]
  # pixels of a jump go with the piece before them
  known = np.maximum.accumulate(np.where(parts > 0, np.arange(len(parts)), -1))
  known[known < 0] = int(np.flatnonzero(parts)[-1])
  return parts[known].astype(np.int64)


def _fit(
  rows: Float[np.ndarray, 'ring 6'],
  colours: Float[np.ndarray, 'ring 3'],
  start: Bool[np.ndarray, ' ring'],
) -> Float[np.ndarray, 'terms 3']:
  """Fits a surface, first a plane, to some of the ring, then to all that goes with it."""
  use = start
  surface = np.zeros((6, 3))
  for count in range(_ROUNDS):
    wanted = rows[use][:, : (3 if count < _ROUNDS // 2 else 6)]
    ridge = 1e-3 * len(wanted) * np.eye(wanted.shape[1])
    ridge[0, 0] = 1e-9  # the surface may lie anywhere, but bends only for a reason
    surface = np.linalg.solve(wanted.T @ wanted + ridge, wanted.T @ colours[use])
    far = _far(rows, colours, surface)
    use = far <= max(_LEAST, 2.5 * float(np.median(far[start])))
  return surface


def _far(
  terms: Float[np.ndarray, '*pixels 6'],
  colours: Float[np.ndarray, '*pixels 3'],
  surface: Float[np.ndarray, 'terms 3'],
) -> Float[np.ndarray, '*pixels']:
  return np.linalg.norm(colours - terms[..., : len(surface)] @ surface, axis=-1)
