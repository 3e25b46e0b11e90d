"""The benchmark of the filters on a small pool, with an encoder of pixels."""

from collections.abc import Sequence

import numpy as np
import pytest

from align_jax.data.transforms import Transform
from align_jax.errors import UserError
from benchmarks.filtration import Options, measure_views, run


class PixelEncoder:
  """Pixels at 8 × 8; a text is a direction of its own."""

  transform = Transform(image_size=32)

  def embed_images(self, images: np.ndarray) -> np.ndarray:
    x = images.reshape(-1, 8, 4, 8, 4, 3).mean(axis=(2, 4)).reshape(len(images), -1) - 120
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)

  def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
    x = np.stack([np.random.default_rng(len(text)).standard_normal(192) for text in texts])
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def test_figures_of_all_views(tmp_path):
  pytest.importorskip('resvg_py')
  options = Options(count=30, references=60, seeds=2, pictures=str(tmp_path / 'grid.png'))
  got = measure_views(options, PixelEncoder(), tmp_path)
  assert set(got['views']) == {'divergen', 'black', 'blurred', 'whole'}
  for view in got['views'].values():
    assert 0 <= view['filters']['all']['recall']['mean'] <= 1
    assert set(view['auc']) == {'mean', 'nearest', 'text'}
    assert view['filters']['duplicate']['recall']['std'] >= 0
  assert (tmp_path / 'grid.png').read_bytes().startswith(b'\x89PNG')


def test_bad_options():
  with pytest.raises(UserError, match='--seeds=0'):
    run(Options(seeds=0))
