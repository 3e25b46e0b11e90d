"""Made-up photographs: JPEGs that cost a decoder what real ones of that size cost."""

import io

import numpy as np
from PIL import Image, ImageDraw

_OCTAVES = (3, 6, 12, 25, 50, 100, 200)
_GRAIN = 5.0  # standard deviation of the sensor's noise, of 255


def photograph(seed: int, width: int = 500, height: int = 375) -> Image.Image:
  """A picture with the spectrum of a photograph (amplitude falls as 1/frequency), objects with
  sharp edges, and grain."""
  rng = np.random.default_rng(seed)
  base = np.zeros((height, width, 3), np.float32)
  for cells in _OCTAVES:
    shape = (max(2, round(cells * height / width)), cells)
    # neighbouring channels of a photograph are alike
    grey, colour = rng.normal(size=(*shape, 1)), 0.35 * rng.normal(size=(*shape, 3))
    layer = (grey + colour).astype(np.float32)
    for channel in range(3):
      small = Image.fromarray(layer[..., channel])
      base[..., channel] += np.asarray(small.resize((width, height), 3)) * (60.0 * 3 / cells) ** 0.9
  base += rng.uniform(70, 180, 3)
  picture = Image.fromarray(np.clip(base, 0, 255).astype(np.uint8))
  draw = ImageDraw.Draw(picture)
  for _ in range(6):
    x, y = rng.integers(0, width), rng.integers(0, height)
    w, h = rng.integers(width // 20, width // 3), rng.integers(height // 20, height // 3)
    colour = tuple(int(c) for c in rng.integers(0, 256, 3))
    box = (int(x), int(y), int(x + w), int(y + h))
    (draw.ellipse if rng.random() < 0.6 else draw.rectangle)(box, fill=colour)
  noisy = np.asarray(picture) + rng.normal(0, _GRAIN, (height, width, 1)).astype(np.float32)
  return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def jpeg(picture: Image.Image, quality: int = 90) -> bytes:
  """Encodes as cameras do: chroma at half the resolution."""
  out = io.BytesIO()
  picture.save(out, 'JPEG', quality=quality, subsampling='4:2:0')
  return out.getvalue()
