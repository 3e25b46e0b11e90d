"""What images are compared with: references, views, and thresholds from real images."""

import numpy as np
import pytest

from align_jax.data.emoji.masks import encode_mask
from align_jax.data.record import Record
from align_jax.data.transforms import Transform
from align_jax.errors import UserError
from align_jax.synth.annotation import rle
from align_jax.synth.filtration.references import (
  ReferenceConfig,
  instances,
  make_references,
)
from align_jax.synth.filtration.thresholds import (
  Cuts,
  ThresholdConfig,
  calibrated_cuts,
  held_out_similarity,
  quantile_cuts,
)
from align_jax.synth.filtration.views import show
from tests.synth.colours import NAMES, ColourEncoder, picture, png, real_source, unit


def test_quantile_keeps_the_share_and_ties():
  config = ThresholdConfig('quantile', drop=0.3)
  cuts = quantile_cuts(config, [i / 10 for i in range(10)] + [None], ['a'] * 11)
  assert cuts.own == {'a': 0.3} and cuts.of('b') == (0.3, 'threshold of all categories')
  assert quantile_cuts(config, [0.5] * 10, ['a'] * 10).own == {'a': 0.5}  # drops none
  assert quantile_cuts(config, [], []) == Cuts(None, falls_back=True)


def test_calibration_keeps_its_share_of_held_out_real_images():
  rng = np.random.default_rng(0)
  x = unit(rng.standard_normal((230, 6)) + np.repeat(np.eye(6)[:3] * 3, [120, 105, 5], axis=0))
  category = np.repeat([0, 1, 2], [120, 105, 5])
  names = [f'c{c}' for c in category]
  seen = unit(x + 0.5 * rng.standard_normal(x.shape))  # the same in another view
  for k in (0, 4):
    found = held_out_similarity(seen, x, category, k)
    for i in (0, 130, 228):
      others = (category == category[i]) & (np.arange(230) != i)
      cosines = np.sort(x[others].astype(np.float64) @ seen[i])
      assert found[i] == pytest.approx(cosines[-k:].mean(), abs=1e-6)
    cuts = calibrated_cuts(ThresholdConfig('calibrated', keep=0.9, at_least=8), found, names)
    assert set(cuts.own) == {'c0', 'c1'} and cuts.of('c2')[0] == cuts.pooled
    for c, count in ((0, 120), (1, 105)):
      kept = (found[category == c] >= cuts.own[f'c{c}']).sum()
      assert kept == count - int(0.1 * count)
  alone = held_out_similarity(seen[:1], x[:1], category[:1])
  assert np.isnan(alone).all()


def test_references_are_made_once(tmp_path):
  path = tmp_path / 'r.safetensors'
  source, encoder = real_source(), ColourEncoder()
  arguments = (ReferenceConfig(limit=4), NAMES, source, encoder, 'colours', path)
  first = make_references(*arguments)
  assert first.counts == {'red': 4, 'green': 4, 'blue': 4, 'pink': 0}
  reads = source.reads
  again = make_references(*arguments)
  assert source.reads == reads and again.key == first.key and again.categories == NAMES
  np.testing.assert_array_equal(again.embeddings, first.embeddings)
  data = bytearray(path.read_bytes())
  data[-3] ^= 1  # of an array: the header is intact
  path.write_bytes(bytes(data))
  mended = make_references(*arguments)
  np.testing.assert_array_equal(mended.texts, first.texts)
  np.testing.assert_array_equal(mended.embeddings, first.embeddings)
  path.write_bytes(b'nothing')
  assert make_references(*arguments).key == first.key
  other = make_references(ReferenceConfig(limit=5), *arguments[1:])
  assert other.key != first.key and other.counts['red'] == 5
  more = make_references(*arguments[:4], 'more records', path)
  assert more.key != first.key
  encoder.bias = 40  # the same encoder after more training: its texts are as they were
  trained = make_references(*arguments)
  assert np.array_equal(trained.texts, first.texts)
  assert not np.array_equal(trained.embeddings, first.embeddings)
  assert [p.name for p in tmp_path.iterdir()] == ['r.safetensors']
  assert first.neighbour('pink') == 'red'


def test_references_leave_out_what_is_no_use(tmp_path):
  source = real_source(2)
  image, mask = picture('red', 0)
  tiny = {'objects': [{'label': 'red', 'boxes': [[0, 0, 3, 3]]}], 'masks': [encode_mask(mask)]}
  source.records += [
    Record('broken', b'\x89PNG\r\n\x1a\n', labels=('red',)),
    Record('tiny', png(image), labels=('red',), truth=tiny),
    Record('whole', png(image), labels=('pink',)),
    Record('other', b'', labels=('unheard of',)),
  ]
  found = make_references(
    ReferenceConfig(), NAMES, source, ColourEncoder(), 'c', tmp_path / 'r.safetensors'
  )
  assert found.counts == {'red': 2, 'green': 2, 'blue': 2, 'pink': 1}
  assert found.notes == ('1 images that cannot be read left out', '1 small instances left out')
  with pytest.raises(UserError, match='no category'):
    make_references(ReferenceConfig(), [], source, ColourEncoder(), 'c', tmp_path / 'x')


def test_instances_of_what_the_engine_wrote():
  image, mask = picture('red', 0)
  truth = {'annotation': {'rle': rle.encode(mask), 'box': rle.box_of(mask), 'size': [24, 24]}}
  ((label, found, box),) = instances(Record('a', png(image), labels=('red',), truth=truth))
  assert label == 'red' and box == rle.box_of(mask)
  np.testing.assert_array_equal(found, mask)


def test_views():
  transform = Transform(image_size=16)
  image, _ = picture('green', 0)
  mask = np.zeros((24, 24), bool)
  mask[4:6, 2:22] = True  # long: nothing of it may be cropped away
  black = show('black', transform, image, mask)
  assert black.shape == (16, 16, 3) and not black[:5].any() and not black[-5:].any()
  assert black[7:9].any(axis=(1, 2)).any()
  blurred = show('blurred', transform, image, mask)
  assert blurred[0].any()
  np.testing.assert_array_equal(
    show('whole', transform, image, mask), show('black', transform, image, mask & False)
  )
