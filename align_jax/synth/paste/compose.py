"""Instances onto a picture: pixels, and what becomes of the boxes and masks beneath.

Nothing here is drawn by lot: where and how large is said by `Placement`s (see `placement`).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from scipy import ndimage

from align_jax.errors import UserError
from align_jax.synth.annotation.regions import Box
from align_jax.synth.annotation.rle import box_of


@dataclasses.dataclass(frozen=True)
class Thing:
  """An object in a picture.

  Attributes:
    label: class name.
    box: x, y, width, height, pixels.
    mask: of the whole picture; None if only the box is known.
    source: id of the instance that was pasted here; '' for what was there before.
  """

  label: str
  box: Box
  mask: Bool[np.ndarray, 'height width'] | None = None
  source: str = ''


@dataclasses.dataclass(frozen=True)
class Instance:
  """An object cut out of its picture.

  Attributes:
    id: of the record that it is from.
    label: class name.
    pixels: RGB and alpha, cut to the object's box.
  """

  id: str
  label: str
  pixels: UInt8[np.ndarray, 'h w 4']


@dataclasses.dataclass(frozen=True)
class Placement:
  """Where an instance goes.

  Attributes:
    instance: what.
    box: x, y, width, height of what its pixels become, in the picture's; what reaches over the
      border is cut off.
    mirror: left and right change places.
  """

  instance: Instance
  box: Box
  mirror: bool = False


@dataclasses.dataclass(frozen=True)
class Composed:
  """A picture after pasting.

  Attributes:
    image: the pixels.
    things: what is left of the things that were in it, in order.
    pasted: what is seen of those that were pasted, the lowest first.
  """

  image: UInt8[np.ndarray, 'height width 3']
  things: tuple[Thing, ...]
  pasted: tuple[Thing, ...]


def compose(
  image: UInt8[np.ndarray, 'height width 3'],
  things: Sequence[Thing],
  placements: Sequence[Placement],
  *,
  feather: float = 0.0,
  least_visible: float = 0.2,
  least_pixels: int = 4,
) -> Composed:
  """Pastes instances onto a picture, one after another.

  A mask beneath loses what is covered and its box shrinks to what is left; where only a box is
  known it stays as it is. An object of which too little is left is dropped (of a pasted one, the
  pixels stay).

  Args:
    image: the picture; it is not changed.
    things: what is in it.
    placements: what is pasted, the lowest first.
    feather: standard deviation, pixels, of the edge: towards it the picture shines through, up to
      one half. 0: a hard edge. Masks are hard in any case.
    least_visible: share of an object, as it was before or as it was pasted, below which it is
      dropped.
    least_pixels: an object pasted with fewer of them is not pasted.

  Raises:
    UserError: a mask of another size than the picture.

  Source: X-Paste, arXiv 2212.03863, section 3.3 (hard paste, occluded masks updated), as DiverGen
    uses it.
  """
  out = image.copy()
  height, width = image.shape[:2]
  for thing in things:
    if thing.mask is not None and thing.mask.shape != (height, width):
      raise UserError(
        f'object {thing.label!r}: a mask of {thing.mask.shape[1]} x {thing.mask.shape[0]} in a '
        f'picture of {width} x {height}; mend the record'
      )
  layers = []
  for placement in placements:
    mask = _paste(out, placement, feather, least_pixels)
    if mask is not None:
      layers.append((placement.instance, mask))
  above = np.zeros((height, width), bool)
  pasted = []
  for instance, mask in reversed(layers):  # from the top down
    thing = Thing(instance.label, box_of(mask), mask, instance.id)
    pasted.append(_seen(thing, above, least_visible))
    above |= mask
  # of the things of the picture none covers another: their masks are of what is seen
  left = [_seen(thing, above, least_visible) for thing in things]
  return Composed(
    out,
    tuple(thing for thing in left if thing is not None),
    tuple(thing for thing in reversed(pasted) if thing is not None),
  )


def resize_rgba(
  pixels: UInt8[np.ndarray, 'h w 4'], width: int, height: int
) -> UInt8[np.ndarray, 'height width 4']:
  """Resizes a cut-out; no colour of its transparent part bleeds in."""
  if pixels.shape[:2] == (height, width):
    return pixels
  picture = Image.fromarray(pixels).convert('RGBa')  # premultiplied
  picture = picture.resize((width, height), Image.Resampling.BICUBIC)
  return np.asarray(picture.convert('RGBA'))


def _paste(
  out: UInt8[np.ndarray, 'height width 3'], placement: Placement, feather: float, least_pixels: int
) -> Bool[np.ndarray, 'height width'] | None:
  """Pastes one instance into `out`; returns its mask, None if too little of it would be seen."""
  x, y, width, height = placement.box
  pixels = resize_rgba(placement.instance.pixels, width, height)
  if placement.mirror:
    pixels = pixels[:, ::-1]
  solid = pixels[..., 3] >= 128
  top, left = max(0, -y), max(0, -x)
  bottom, right = min(height, out.shape[0] - y), min(width, out.shape[1] - x)
  if bottom <= top or right <= left:
    return None
  inside = np.s_[top:bottom, left:right]
  if np.count_nonzero(solid[inside]) < max(1, least_pixels):
    return None
  where = np.s_[y + top : y + bottom, x + left : x + right]
  if feather:
    weight = _feathered(solid, feather)[inside][..., None]
    mixed = weight * pixels[inside][..., :3] + (1 - weight) * out[where]
    out[where] = np.round(mixed).astype(np.uint8)
  else:
    out[where][solid[inside]] = pixels[inside][..., :3][solid[inside]]
  mask = np.zeros(out.shape[:2], bool)
  mask[where] = solid[inside]
  return mask


def _feathered(solid: Bool[np.ndarray, 'h w'], sigma: float) -> Float[np.ndarray, 'h w']:
  """How much of each pixel is the instance: nothing outside, for what is there is not its own."""
  by = 1 + int(3 * sigma)
  padded = np.pad(solid.astype(np.float32), by)
  return ndimage.gaussian_filter(padded, sigma)[by:-by, by:-by] * solid


def _seen(
  thing: Thing, above: Bool[np.ndarray, 'height width'], least_visible: float
) -> Thing | None:
  """What is left of a thing under what was pasted over it; None if that is too little."""
  if thing.mask is None:
    x, y, width, height = thing.box
    before = width * height
    left = before - int(np.count_nonzero(above[max(0, y) : y + height, max(0, x) : x + width]))
    seen, box = None, thing.box
  else:
    before = int(np.count_nonzero(thing.mask))
    seen = thing.mask & ~above
    left, box = int(np.count_nonzero(seen)), box_of(seen)
  if left < max(1, least_visible * before):
    return None
  return dataclasses.replace(thing, mask=seen, box=box)
