"""A small world for evaluation: flat coloured images, and an encoder that sees colours."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from align_jax.data.record import Record
from align_jax.data.transforms import Transform
from align_jax.evaluation.features import Features

COLOURS = {
  'red': (220, 40, 40),
  'green': (40, 200, 60),
  'blue': (40, 60, 220),
  'yellow': (230, 220, 40),
  'purple': (150, 40, 190),
  'white': (240, 240, 240),
}


class ListSource:
  """Records from a list."""

  def __init__(self, records, spec='list:', licence='CC0'):
    self.records, self.spec, self.licence = records, spec, licence

  def __len__(self):
    return len(self.records)

  def __getitem__(self, index):
    return self.records[index]


@dataclasses.dataclass
class ColourEncoder:
  """Embeds the mean colour; generated images are shifted by `shift` unless read as real.

  `calls` records every (modality, projection) that images were read by, and every text.
  """

  shift: float = 0.5
  transform: Transform = dataclasses.field(default_factory=lambda: Transform(8))

  def __post_init__(self):
    self.calls, self.texts = [], []

  def embed_images(self, images, modality='real', projection=None):
    self.calls.append((modality, projection))
    colour = images.astype(np.float32).mean(axis=(1, 2)) - 128
    off = self.shift * 128 if modality == 'generated' else 0
    return _unit(np.concatenate([colour, np.full((len(images), 1), off)], axis=1))

  def embed_texts(self, texts):
    self.texts.extend(texts)
    rows = []
    for text in texts:
      named = [COLOURS[word] for word in text.split() if word in COLOURS]
      rows.append([*(np.mean(named or [(129, 128, 128)], axis=0) - 128), 0])
    return _unit(np.asarray(rows, np.float32))


def _unit(x):
  return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def picture(colour, seed=0, size=8):
  noise = np.random.default_rng(seed).integers(-30, 31, (size, size, 3))
  pixels = np.clip(np.asarray(COLOURS[colour]) + noise, 0, 255).astype(np.uint8)
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, format='PNG')
  return buffer.getvalue()


@pytest.fixture
def world():
  """Returns (test, generated): real images of every colour, and generated partners of them."""
  names = list(COLOURS) * 4
  real = [
    Record(id=f'r{i}', image=picture(c, i), captions=(f'a {c} square',), labels=(c,))
    for i, c in enumerate(names)
  ]
  generated = [
    Record(
      id=f'g{i}',
      image=picture(c, 100 + i),
      captions=(f'a {c} square',),
      labels=(c,),
      modality='generated',
      pair_id=f'r{i}',
      prompt=f'a {c} square',
    )
    for i, c in enumerate(names)
  ]
  return ListSource(real, 'list:real'), ListSource(generated, 'list:generated')


@pytest.fixture
def encoder():
  return ColourEncoder()


@pytest.fixture
def list_source():
  return ListSource


@pytest.fixture
def unit():
  """Returns a function that draws unit vectors `[rows, dim]`."""

  def draw(rows, dim=8, seed=0):
    return _unit(np.random.default_rng(seed).normal(size=(rows, dim)))

  return draw


@pytest.fixture
def make_features():
  """Returns a function from arrays to Features with plain names."""

  def make(image, text=None, owner=None, texts=None, labels=None, modality='real', pairs=None):
    n = len(image)
    text = np.zeros((0, image.shape[1]), np.float32) if text is None else text
    return Features(
      ids=[f'{modality[0]}{i}' for i in range(n)],
      image=image,
      texts=texts or [f'text {i}' for i in range(len(text))],
      text=text,
      text_owner=np.arange(len(text)) if owner is None else np.asarray(owner, np.int64),
      labels=labels or [()] * n,
      modality=[modality] * n,
      pair_ids=pairs or [''] * n,
    )

  return make
