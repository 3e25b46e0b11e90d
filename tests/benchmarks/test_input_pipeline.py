"""Both sides make the same kind of batch of the same pictures."""

import numpy as np
import pytest
from PIL import Image

from align_jax.data.images import decode_image
from align_jax.data.transforms import Transform, apply, apply_to_bytes
from benchmarks import input_pipeline
from benchmarks.input_pipeline import Options
from benchmarks.photos import jpeg, photograph

pytest.importorskip('torch')
pytest.importorskip('webdataset')
SIZES = ('100x75', '200x150')
TINY = Options(
  sizes=','.join(SIZES), pictures=3, records=16, size=32, batch=4, batches=2, workers=0, rounds=1
)


def test_rates_and_shares():
  got = input_pipeline.run(TINY)
  assert tuple(got['by_size']) == SIZES
  for found in got['by_size'].values():
    for name in ('ours', 'peer'):
      assert found[name]['images_per_second'] > 0
      assert 0 <= found[name]['waiting_share_of_a_step'] <= 1
    assert found['ratio']['rounds'] == 1 and found['records'] == 16 and found['jpeg_bytes'] > 500


def test_both_sides_yield_the_same_shapes(tmp_path):
  input_pipeline.write_data(tmp_path, TINY, SIZES[0])
  ours = next(input_pipeline.our_batches(tmp_path, TINY))
  image, text = next(input_pipeline.peer_batches(tmp_path, TINY))
  assert ours['image'].shape == tuple(image.shape) == (4, 32, 32, 3)
  assert ours['image'].dtype == image.numpy().dtype == np.uint8
  assert ours['text'].shape == tuple(text.shape)
  assert set(np.unique(ours['text'])) <= set(range(400)) and int(text.max()) < 400


def test_photographs_are_reproducible_and_weigh_what_photographs_weigh():
  first, again = (jpeg(photograph(3)) for _ in range(2))
  assert first == again != jpeg(photograph(4))
  assert 40_000 < len(first) < 120_000  # 2 to 5 bits a pixel, as photographs of that quality


def test_the_peers_crop_is_torchvisions():
  from benchmarks.loader_torch import random_crop, resized_crop

  for _ in range(50):
    left, top, width, height = random_crop(100, 75, 0.08)
    assert left >= 0 and top >= 0 and left + width <= 100 and top + height <= 75
  picture = Image.fromarray(np.full((75, 100, 3), (10, 20, 30), np.uint8))
  assert (np.asarray(resized_crop(picture, (10, 5, 50, 40), 16)) == (10, 20, 30)).all()


def test_what_a_smaller_decoding_changes_is_small():
  """The figure that docs/benchmarks.md states, on the benchmark's own large pictures."""
  data = jpeg(photograph(0, 1200, 900))
  transform = Transform(224, 'train', min_scale=0.5)
  differences = []
  for seed in range(4):
    got = apply_to_bytes(transform, data, np.random.default_rng(seed))
    want = apply(transform, decode_image(data), np.random.default_rng(seed))
    differences.append(np.abs(got.astype(int) - want).mean())
  assert 0 < np.mean(differences) < 2.0  # levels of 255
