"""Pixels to a square of the model's size: the processors of CLIP and SigLIP, and augmentation."""

import dataclasses
import functools
import math
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from align_jax.data.crop import FILTERS, cut
from align_jax.data.images import MAX_PIXELS, decode_part, decode_picture
from align_jax.errors import UserError

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's greyscale
_RATIOS = (3 / 4, 4 / 3)
_MAX_HUE = 0.1  # share of the colour circle at jitter strength 1
_MAX_ASPECT = 32


@dataclasses.dataclass(frozen=True)
class Transform:
  """What happens to a decoded picture.

  Attributes:
    image_size: side of the result, pixels.
    mode: `eval` only resizes; `train` augments as well, by the fields below.
    resize: `crop` scales the shorter side and crops the centre (CLIP), `squash` ignores the aspect
      ratio (SigLIP).
    interpolation: the resampling filter.
    short_side: of `crop`: the shorter side before the centre is cut out; 0: `image_size`.
    min_scale: lower bound of a random crop's share of the area (upper bound 1); 1 takes no random
      crop but resizes as in `eval`.
    flip: mirror every second picture. Wrong where captions say left and right.
    colour: jitter strength in [0, 1): brightness, contrast and saturation vary by ±`colour`, hue by
      a tenth of that share of the colour circle.
  """

  image_size: int
  mode: Literal['train', 'eval'] = 'eval'
  resize: Literal['crop', 'squash'] = 'crop'
  interpolation: Literal['bicubic', 'bilinear'] = 'bicubic'
  min_scale: float = 1.0
  flip: bool = False
  colour: float = 0.0
  short_side: int = 0

  def __post_init__(self):
    if self.short_side and (self.short_side < self.image_size or self.resize != 'crop'):
      raise UserError(
        f'transform.short_side: {self.short_side} is for resize=crop, at least image_size '
        f'{self.image_size}; set 0'
      )
    if self.image_size < 1:
      raise UserError(f'transform.image_size: {self.image_size} is no size; set 1 or more')
    if not 0 < self.min_scale <= 1:
      raise UserError(f'transform.min_scale: {self.min_scale} is outside (0, 1]')
    if not 0 <= self.colour < 1:
      raise UserError(f'transform.colour: {self.colour} is outside [0, 1)')
    if self.interpolation not in FILTERS:
      raise UserError(f'transform.interpolation: {self.interpolation!r} is not bicubic or bilinear')


def apply(
  transform: Transform, image: UInt8[np.ndarray, 'height width 3'], rng: np.random.Generator
) -> UInt8[np.ndarray, 'size size 3']:
  """Resizes, and in `train` mode augments, one picture.

  In `eval` mode the result equals, pixel for pixel and before normalisation, that of Hugging Face's
  `CLIPImageProcessorPil` (`crop`) or `SiglipImageProcessorPil` (`squash`), and `rng` is not used.

  Args:
    transform: what to do.
    image: decoded pixels.
    rng: the example's own generator.

  Returns: the pixels, possibly read-only; `image` itself where nothing had to be done.
  """
  size = transform.image_size
  plain = transform.mode == 'eval' or not (
    transform.min_scale < 1 or transform.flip or transform.colour
  )
  if plain and image.shape[:2] == (size, size) and not transform.short_side:
    return image
  return apply_to_picture(transform, Image.fromarray(image), rng)


def apply_to_picture(
  transform: Transform, picture: Image.Image, rng: np.random.Generator
) -> UInt8[np.ndarray, 'size size 3']:
  """Does what `apply` does, straight from a decoder's RGB picture: two copies fewer."""
  if transform.mode == 'eval':
    return np.asarray(_fit(transform, picture))
  if transform.min_scale < 1:
    box = random_box(transform, *picture.size, rng)
    return _augment(
      transform, cut(picture, box, transform.image_size, transform.interpolation), rng
    )
  return _augment(transform, _fit(transform, picture), rng)


def apply_to_bytes(
  transform: Transform, data: bytes, rng: np.random.Generator, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, 'size size 3']:
  """Decodes a picture and does what `apply` does, with the same draws.

  In `train` mode with random crops, a JPEG whose crop is twice the result's size or more is decoded
  at a fraction of its size (see `images.decode_part`); pixels then differ a little from `apply`.
  In all other cases they are equal.

  Raises:
    ImageError: the bytes give no picture.
  """
  if transform.mode == 'eval' or transform.min_scale == 1:
    return apply_to_picture(transform, decode_picture(data, max_pixels), rng)
  choose = functools.partial(random_box, transform, rng=rng)
  picture, box = decode_part(data, choose, transform.image_size, max_pixels)
  return _augment(transform, cut(picture, box, transform.image_size, transform.interpolation), rng)


def _augment(
  transform: Transform, picture: Image.Image, rng: np.random.Generator
) -> UInt8[np.ndarray, 'size size 3']:
  """Mirrors and recolours."""
  if transform.flip and rng.random() < 0.5:
    picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
  if transform.colour:
    picture = _jitter_colour(picture, transform.colour, rng)
  return np.asarray(picture)


def colour_matrix(
  brightness: float, contrast: float, saturation: float, angle: float, mean: float
) -> tuple[float, ...]:
  """Returns the 3 × 4 matrix, row by row, that adjusts the colours of a picture.

  The steps are brightness (factor), contrast (factor, about the mean luma), saturation (factor,
  about each pixel's luma) and a rotation of RGB space by `angle`, in radians, about its grey axis.
  All four are linear in the pixel and the last two keep grey grey, so that they multiply into one
  matrix: one pass, rounded and clipped once.

  Args:
    mean: the picture's mean luma before the first step, 0 to 255.
  """
  cos, sin = math.cos(angle), math.sin(angle) / math.sqrt(3)
  third, gain = (1 - cos) / 3, brightness * contrast
  a, b, c = cos + third, third - sin, third + sin  # Rodrigues' formula; rows add up to 1
  offset = brightness * (1 - contrast) * mean
  out: list[float] = []
  for row in ((a, b, c), (c, a, b), (b, c, a)):
    pairs = zip(row, _LUMA, strict=True)
    out += [gain * (saturation * turn + (1 - saturation) * luma) for turn, luma in pairs]
    out.append(offset)
  return tuple(out)


def _jitter_colour(picture: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
  draws = (2 * rng.random(4) - 1).tolist()
  red, green, blue = picture.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))  # type: ignore
  mean = _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue
  brightness, contrast, saturation = (1 + strength * draw for draw in draws[:3])
  angle = 2 * math.pi * _MAX_HUE * strength * draws[3]
  matrix = colour_matrix(brightness, contrast, saturation, angle, mean)
  return picture.convert('RGB', matrix)  # type: ignore[arg-type]


def _fit(transform: Transform, picture: Image.Image) -> Image.Image:
  """Resizes without a random draw."""
  size, resample = transform.image_size, FILTERS[transform.interpolation]
  if picture.size == (size, size) and not transform.short_side:
    return picture
  if transform.resize == 'squash':
    return picture.resize((size, size), resample)
  short = transform.short_side or size
  width, height = picture.size
  if max(height, width) > _MAX_ASPECT * min(height, width):
    # Scaling the short side of a hair-thin picture would blow the long one up past any memory.
    # What the centre crop sees is kept.
    picture = _centre(picture, min(width, _MAX_ASPECT * height), min(height, _MAX_ASPECT * width))
    width, height = picture.size
  if width <= height:
    picture = picture.resize((short, int(short * height / width)), resample)
  else:
    picture = picture.resize((int(short * width / height), short), resample)
  return _centre(picture, size, size)


def _centre(picture: Image.Image, width: int, height: int) -> Image.Image:
  left, top = (picture.width - width) // 2, (picture.height - height) // 2
  return picture.crop((left, top, left + width, top + height))


def random_box(
  transform: Transform, width: int, height: int, rng: np.random.Generator
) -> tuple[int, int, int, int]:
  """Inception's crop: a random share of the area, aspect ratio in [3/4, 4/3].

  Returns: left, top, right, bottom; pixels of a picture of `width` x `height`.

  Source: Szegedy et al. 2015, arXiv 1409.4842, section 6, with the bounds as in torchvision.
  """
  lowest, highest = math.log(_RATIOS[0]), math.log(_RATIOS[1])
  for _ in range(10):
    scale, ratio, x, y = rng.random(4).tolist()
    area = width * height * (transform.min_scale + (1 - transform.min_scale) * scale)
    ratio = math.exp(lowest + (highest - lowest) * ratio)
    w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    if 0 < w <= width and 0 < h <= height:
      left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
      break
  else:  # no such crop fits: the largest one in the middle
    w = min(width, max(1, round(height * _RATIOS[1])))
    h = min(height, max(1, round(width / _RATIOS[0])))
    left, top = (width - w) // 2, (height - h) // 2
  return left, top, left + w, top + h
