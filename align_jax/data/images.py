"""From encoded bytes to upright RGB pixels, with a size limit that is checked before decoding."""

import contextlib
import io
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

# left, top, right, bottom, in pixels; of a picture made smaller also between them
Box = tuple[int | float, int | float, int | float, int | float]

FORMATS = ('PNG', 'JPEG', 'WEBP')
MAX_PIXELS = 50_000_000
# where Pillow keeps an orientation; asking it costs more than decoding a small picture
_ORIENTATION_KEYS = {'exif', 'Raw profile type exif', 'xmp', 'XML:com.adobe.xmp'}


class ImageError(ValueError):
  """Bytes that give no picture. `reason` is `corrupt`, `too_large` or `format`."""

  def __init__(self, reason: str, detail: str):
    super().__init__(f'{reason}: {detail}')
    self.reason = reason


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, 'height width 3']:
  """Decodes a PNG, JPEG or WebP to pixels, see `decode_picture`; they may be read-only."""
  return np.asarray(decode_picture(data, max_pixels))


def decode_picture(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
  """Decodes a PNG, JPEG or WebP to an upright RGB picture.

  The EXIF orientation is applied, transparency is laid on white; palette, CMYK, greyscale and
  16-bit pictures become 8-bit RGB. Of an animation the first frame is taken. Colour profiles are
  ignored.

  Args:
    data: the encoded bytes.
    max_pixels: width × height allowed, read from the header before any pixel is decoded.

  Raises:
    ImageError: `format` (none of the three formats), `too_large`, `corrupt` (truncated or damaged).
  """
  with _reasons():
    return convert_picture(_open(data, max_pixels))


def decode_part(
  data: bytes, choose: Callable[[int, int], Box], size: int, max_pixels: int = MAX_PIXELS
) -> tuple[Image.Image, Box]:
  """Decodes a picture of which one box is to become `size` pixels square, no finer than needed.

  A JPEG is made of frequencies, from which a decoder can make a picture of a half, a quarter or an
  eighth of the size for less than the whole. It does so here where the box still has `size` pixels
  on both sides. What the box then becomes is nearly what it would have become of the whole picture:
  see tests/data/test_images.py for how nearly.

  Args:
    data: the encoded bytes.
    choose: is told the picture's upright width and height; returns (left, top, right, bottom).
    size: side of the result, pixels.
    max_pixels: as in `decode_picture`.

  Returns: the picture as `decode_picture` gives it, or smaller, and where the box is in it.
  Raises: ImageError as `decode_picture` does.
  """
  with _reasons():
    image = _open(data, max_pixels)
    # only what needs no turning: then the file's own axes are the picture's
    if image.format != 'JPEG' or not _ORIENTATION_KEYS.isdisjoint(image.info):
      picture = convert_picture(image)
      return picture, choose(*picture.size)
    width, height = image.size
    box = choose(width, height)
    finer = int(min(box[2] - box[0], box[3] - box[1])) // size
    drafted = None
    if finer >= 2:
      factor = max(f for f in (2, 4, 8) if f <= finer)
      drafted = image.draft(None, (max(1, width // factor), max(1, height // factor)))
    picture = convert_picture(image)
    factor = round(width / drafted[1][2]) if drafted else 1
    left, top, right, bottom = (side / factor for side in box)
    return picture, (left, top, right, bottom)


def convert_picture(image: Image.Image) -> Image.Image:
  """Makes an upright RGB picture of an opened one, as `decode_picture` does.

  Raises:
    ImageError: `corrupt`, where its pixels were still to be decoded.
  """
  with _reasons():
    image.load()
    return _to_rgb(_upright(image))


def _open(data: bytes, max_pixels: int) -> Image.Image:
  """Reads the header."""
  if not _known_format(data):
    raise ImageError('format', f'not one of {", ".join(FORMATS)}')
  image = Image.open(io.BytesIO(data), formats=FORMATS)
  width, height = image.size
  if width * height > max_pixels:
    raise ImageError('too_large', f'{width} x {height} pixels, at most {max_pixels} allowed')
  return image


@contextlib.contextmanager
def _reasons() -> Iterator[None]:
  """Turns whatever a decoder raises into an ImageError."""
  try:
    yield
  except (ImageError, MemoryError):
    raise
  except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
    raise ImageError('too_large', str(error)) from error
  except UnidentifiedImageError as error:  # its text names an address in memory
    raise ImageError('corrupt', 'no header that can be read') from error
  except Exception as error:  # damaged bytes make decoders raise nearly anything
    raise ImageError('corrupt', f'{type(error).__name__}: {error}') from error


def _known_format(data: bytes) -> bool:
  return (
    data.startswith((b'\x89PNG\r\n\x1a\n', b'\xff\xd8\xff'))
    or (data[:4] == b'RIFF' and data[8:12] == b'WEBP')
    or not data  # nothing at all is a damaged record, not a foreign format
  )


def _upright(image: Image.Image) -> Image.Image:
  if _ORIENTATION_KEYS.isdisjoint(image.info):
    return image
  try:
    return ImageOps.exif_transpose(image)
  except Exception:  # a broken EXIF block is no reason to lose the picture
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
  if image.mode.startswith('I'):  # 16-bit greyscale; Pillow's own conversion may clip it to white
    grey = (np.asarray(image).astype(np.uint32) + 128) // 257
    return Image.fromarray(grey.astype(np.uint8)).convert('RGB')
  if image.has_transparency_data:
    white = Image.new('RGBA', image.size, 'white')
    return Image.alpha_composite(white, image.convert('RGBA')).convert('RGB')
  return image if image.mode == 'RGB' else image.convert('RGB')
