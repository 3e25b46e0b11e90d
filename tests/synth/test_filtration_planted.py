"""Planted flaws: each filter finds its own, and the figures are what they say."""

import io
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from align_jax.data.emoji.masks import encode_mask
from align_jax.data.record import Record
from align_jax.data.transforms import Transform
from align_jax.errors import UserError
from align_jax.evaluation.pictures import Picture, Row
from align_jax.evaluation.report import make_environment
from align_jax.synth.annotation import rle
from align_jax.synth.filtration import planted
from align_jax.synth.filtration.config import FiltrationConfig
from align_jax.synth.filtration.pictures import draw_grid, reason_rows
from align_jax.synth.filtration.planted import FLAWS, measure, plant
from align_jax.synth.filtration.references import ReferenceConfig, make_references
from align_jax.synth.rows import DecisionRow

COLOURS = {'red': (220, 30, 30), 'green': (30, 200, 40), 'blue': (40, 60, 230)}
NAMES = tuple(COLOURS)


class PixelEncoder:
  """An image is its pixels at 4 × 4, centred; a text the colour that it names, everywhere."""

  transform = Transform(image_size=16)

  def embed_images(self, images: np.ndarray) -> np.ndarray:
    return self._unit(images.reshape(-1, 4, 4, 4, 4, 3).mean(axis=(2, 4)))

  def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
    found = [next(COLOURS[n] for n in NAMES if n in text) for text in texts]
    return self._unit(np.broadcast_to(np.asarray(found)[:, None, None], (len(texts), 4, 4, 3)))

  def _unit(self, x: np.ndarray) -> np.ndarray:
    x = x.reshape(len(x), -1).astype(np.float32) - 110
    return x / np.linalg.norm(x, axis=1, keepdims=True)


class Records(list):
  spec, licence = 'memory:', ''


def png(image: np.ndarray) -> bytes:
  file = io.BytesIO()
  Image.fromarray(image).save(file, 'PNG')
  return file.getvalue()


def source(count: int, seed: int, names: Sequence[str] = NAMES) -> Records:
  """A disc, dark above and of its colour below, on a light background."""
  rng = np.random.default_rng(seed)
  out = Records()
  for i in range(count):
    name = names[i % len(names)]
    image = np.full((32, 32, 3), rng.integers(170, 250, 3), np.uint8)
    radius, (cy, cx) = int(rng.integers(7, 11)), rng.integers(12, 20, 2)
    y, x = np.mgrid[:32, :32]
    mask = (y - cy) ** 2 + (x - cx) ** 2 < radius**2
    image[mask] = np.clip(np.asarray(COLOURS[name]) + rng.integers(-20, 20, 3), 0, 255)
    image[mask & (y < cy)] //= 4
    left, top, width, height = rle.box_of(mask)
    thing = {'label': name, 'boxes': [[left, top, left + width, top + height]]}
    truth = {'objects': [thing], 'masks': [encode_mask(mask)]}
    out.append(Record(f'{seed}-{i}', png(image), labels=(name,), truth=truth))
  return out


def test_a_pool_has_what_was_planted():
  data = source(120, 0)
  pool = plant(data, NAMES, count=100, share=0.1, seed=3)
  assert [pool.flaws.count(flaw) for flaw in ('', *FLAWS)] == [50, 10, 10, 10, 10, 10]
  assert len({image.id for image in pool.images}) == 100
  again = plant(data, NAMES, count=100, share=0.1, seed=3)
  assert again.images == pool.images and again.annotations == pool.annotations
  np.testing.assert_array_equal(np.stack(again.pictures), np.stack(pool.pictures))
  other = plant(data, NAMES, count=100, share=0.1, seed=4)
  assert (np.stack(other.pictures) != np.stack(pool.pictures)).any()
  empty = [row for row, flaw in zip(pool.annotations, pool.flaws, strict=True) if flaw == 'empty']
  assert {row.failure for row in empty} == {'', 'empty'}


def test_each_filter_finds_its_own(tmp_path):
  encoder, references = PixelEncoder(), ReferenceConfig(templates=('{}',))
  real = make_references(references, NAMES, source(90, 1), encoder, 'p', tmp_path / 'r.safetensors')
  pool = plant(source(200, 0), NAMES, count=150, share=0.1, seed=0)
  found = measure(pool, FiltrationConfig(references=references), encoder, real)
  assert set(found.filters) == {'similarity', 'text', 'mask', 'duplicate', 'all'}
  assert found.filters['duplicate'].recall == 1
  # where there is a mask of nothing, the picture is blank
  assert found.filters['mask'].precision == found.filters['mask'].recall == 1
  assert found.filters['similarity'].precision > 0.75
  assert found.filters['similarity'].good_dropped < 0.15
  # parts in wrong places leave the mean colour, all that the text says, as it was
  assert found.auc['mean']['scrambled'] > found.auc['text']['scrambled']
  assert found.auc['mean']['wrong_class'] > 0.95 and found.auc['text']['wrong_class'] > 0.9
  whole = found.filters['all']
  dropped = [not row.kept for row in found.decisions]
  bad = [flaw != '' for flaw in pool.flaws]
  hits = sum(d and b for d, b in zip(dropped, bad, strict=True))
  assert whole.precision == hits / sum(dropped) and whole.recall == hits / sum(bad)


def test_auc_is_the_share_of_pairs():
  rng = np.random.default_rng(0)
  good, bad = rng.integers(3, 12, 40).astype(np.float32), rng.integers(0, 9, 25).astype(np.float32)
  pairs = good[:, None] - bad
  want = np.mean((pairs > 0) + 0.5 * (pairs == 0))
  assert planted._auc(good, bad) == pytest.approx(want)


def test_too_few_images_are_named():
  with pytest.raises(UserError, match='too few for a pool'):
    plant(source(3, 0), NAMES)
  with pytest.raises(UserError, match='1 categories'):
    plant(source(60, 0, ('red',)), ('red',))


def test_pictures_of_kept_and_dropped_by_reason():
  rows = [
    DecisionRow('a', True),
    DecisionRow('b', False, ('similarity 0.2 < 0.6', 'area 0 < 0.1')),
    DecisionRow('c', False, ('similarity 0.3 < 0.6',)),
    DecisionRow('d', False, ('blank 0 < 2',)),
    DecisionRow('e', False, ('not_finite',)),
  ]
  images = {name: png(np.full((8, 8, 3), 40 * i, np.uint8)) for i, name in enumerate('abcd')}
  images['d'] = b'broken'
  found = reason_rows(rows, images.get, lambda id_: f'<b>{id_}</b>', each=5)
  assert [row.title for row in found] == [
    'kept (1)',
    'similarity (2)',
    'blank (1)',
    'not_finite (1)',
  ]
  assert found[1].pictures[0].caption == '<b>b</b> · similarity 0.2 < 0.6'
  assert found[0].pictures[0].png.startswith(b'\x89PNG')
  assert found[2].pictures[0].png == found[3].pictures[0].png == b''
  page = make_environment().from_string('{{ row.pictures[0].caption }}').render(row=found[1])
  assert page == '&lt;b&gt;b&lt;/b&gt; · similarity 0.2 &lt; 0.6'
  grid = Image.open(io.BytesIO(draw_grid(found)))
  assert grid.width > 2 * 96 and grid.height > 4 * 96
  assert Image.open(io.BytesIO(draw_grid([Row('名', (Picture(b''),))]))).height > 96
  assert reason_rows([], images.get) == () and draw_grid(()).startswith(b'\x89PNG')
