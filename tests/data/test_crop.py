"""Cutting a box out of a picture: Pillow's result, with and without the quick library."""

import numpy as np
import pytest
from PIL import Image

from align_jax.data import crop


def picture(width: int, height: int) -> Image.Image:
  """Grain that no filter drives to black or white, where the two libraries' clipping differs."""
  pixels = np.random.default_rng(0).normal(128, 20, (height, width, 3))
  return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


@pytest.mark.parametrize('interpolation', ['bicubic', 'bilinear'])
@pytest.mark.parametrize(
  'box', [(0, 0, 200, 150), (31, 17, 190, 140), (31.5, 17.25, 60.0, 140.75), (3, 5, 9, 8)]
)
def test_a_box_is_cut_as_pillow_cuts_it(box, interpolation):
  source = picture(200, 150)
  want = np.asarray(source.resize((64, 64), crop.FILTERS[interpolation], box), np.int32)
  got = np.asarray(crop.cut(source, box, 64, interpolation), np.int32)
  assert got.shape == (64, 64, 3)
  assert np.abs(got - want).max() <= 2
  assert np.abs(got - want).mean() < 0.5


def test_pillow_stands_in_where_the_library_is_missing(monkeypatch):
  source, box = picture(90, 70), (10.5, 3, 80, 66)
  monkeypatch.setattr(crop, 'vectorised', None)
  want = source.resize((32, 32), Image.Resampling.BICUBIC, box)
  np.testing.assert_array_equal(np.asarray(crop.cut(source, box, 32, 'bicubic')), np.asarray(want))
