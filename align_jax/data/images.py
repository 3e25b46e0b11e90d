"""From encoded bytes to upright RGB pixels, with a size limit that is checked before decoding."""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

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
  if not _known_format(data):
    raise ImageError('format', f'not one of {", ".join(FORMATS)}')
  try:
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    width, height = image.size
    if width * height > max_pixels:
      raise ImageError('too_large', f'{width} x {height} pixels, at most {max_pixels} allowed')
    image.load()
    return _to_rgb(_upright(image))
  except (ImageError, MemoryError):
    raise
  except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
    raise ImageError('too_large', str(error)) from error
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
