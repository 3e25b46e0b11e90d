"""One box of a picture, made square: what a training picture costs beside its decoding."""

from PIL import Image

from align_jax.data.images import Box

try:
  import cykooz_resizer as vectorised
except ModuleNotFoundError:  # it has no wheel for Linux on aarch64
  vectorised = None

FILTERS = {'bicubic': Image.Resampling.BICUBIC, 'bilinear': Image.Resampling.BILINEAR}


def cut(picture: Image.Image, box: Box, size: int, interpolation: str) -> Image.Image:
  """Cuts a box out of an RGB picture and resizes it, antialiased, to `size` pixels square.

  By `cykooz_resizer`, whose vector instructions take a fifth of Pillow's time. Both add up the same
  weighted pixels, those around the box included where the filter reaches; Pillow goes along rows
  first, the other along columns, and what is rounded and clipped between differs by a level of 255,
  more where a steep edge is clipped to black or white.

  Args:
    picture: RGB.
    box: left, top, right, bottom in pixels; fractions are allowed.
    size: of the result's sides.
    interpolation: a key of `FILTERS`.
  """
  if vectorised is None:
    return picture.resize((size, size), FILTERS[interpolation], box)
  left, top, right, bottom = box
  kind = vectorised.FilterType.catmull_rom  # Pillow's bicubic: Keys' with a = -1/2
  if interpolation == 'bilinear':
    kind = vectorised.FilterType.bilinear
  options = vectorised.ResizeOptions(
    resize_alg=vectorised.ResizeAlg.convolution(kind),
    crop_box=vectorised.CropBox(left, top, right - left, bottom - top),
  )
  out = Image.new('RGB', (size, size))
  vectorised.Resizer().resize_pil(picture, out, options)  # one each: threads do not share it
  return out
