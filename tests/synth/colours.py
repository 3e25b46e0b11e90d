"""Pictures of four colours, real ones with their masks, and an encoder that sees colours."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from align_jax.data.emoji.masks import encode_mask
from align_jax.data.record import Record
from align_jax.data.transforms import Transform
from align_jax.synth.annotation import rle
from align_jax.synth.rows import AnnotationRow, ImageRow

COLOURS = {
  'red': (220, 30, 30),
  'green': (30, 200, 40),
  'blue': (40, 60, 230),
  'pink': (230, 90, 160),
}
NAMES = tuple(COLOURS)


class ColourEncoder:
  """Embeds an image as its mean colour, a text as the colour that it names."""

  transform = Transform(image_size=8)
  bias = 1  # of all colours

  def embed_images(self, images: np.ndarray) -> np.ndarray:
    return unit(images.reshape(len(images), -1, 3).mean(axis=1) + self.bias)

  def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
    found = [next((COLOURS[n] for n in NAMES if n in text), (1, 1, 1)) for text in texts]
    return unit(np.asarray(found))


class Records:
  """A source in memory."""

  licence = ''

  def __init__(self, records: list[Record], spec: str = 'memory:'):
    self.records, self.spec, self.reads = records, spec, 0

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, index: int) -> Record:
    self.reads += 1
    return self.records[index]


def unit(x: Any) -> np.ndarray:
  x = np.asarray(x, np.float32)
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def picture(name: str, seed: int, background: int = 250) -> tuple[np.ndarray, np.ndarray]:
  """A square of about a colour on a grey background, and its mask."""
  rng = np.random.default_rng(seed)
  image = np.full((24, 24, 3), background, np.uint8)
  mask = np.zeros((24, 24), bool)
  x, y = rng.integers(1, 10, 2)
  mask[y : y + 12, x : x + 12] = True
  shade = np.asarray(COLOURS[name]) + rng.integers(-25, 25, (12, 12, 3))
  image[mask] = np.clip(shade, 0, 255).astype(np.uint8).reshape(-1, 3)
  return image, mask


def png(image: np.ndarray) -> bytes:
  file = io.BytesIO()
  Image.fromarray(image).save(file, 'PNG')
  return file.getvalue()


def real_source(each: int = 10, names: Sequence[str] = NAMES[:3]) -> Records:
  records = []
  for name in names:
    for i in range(each):
      image, mask = picture(name, 100 + i)
      y, x = (int(v.min()) for v in np.nonzero(mask))
      thing = {'label': name, 'boxes': [[x, y, x + 12, y + 12]]}
      truth = {'objects': [thing], 'masks': [encode_mask(mask)]}
      records.append(Record(f'{name}{i}', png(image), labels=(name,), truth=truth))
  return Records(records)


def image_row(i: int, category: str, failure: str = '') -> ImageRow:
  return ImageRow(
    f'g{i}', category, f'p{i}', f'one {category} thing', 'template', 'g', 'g 1', i, {}, failure
  )


def annotation(i: int, image: np.ndarray, mask: np.ndarray | None) -> AnnotationRow:
  height, width = image.shape[:2]
  if mask is None:
    return AnnotationRow(f'g{i}', width, height, failure='empty')
  return AnnotationRow(
    f'g{i}', width, height, float(mask.mean()), rle.box_of(mask), rle.encode(mask)
  )
