"""What the table of masks counts, on a few pictures."""

import numpy as np
import pytest

from align_jax.synth.annotation.annotate import AnnotationConfig
from benchmarks import annotation
from benchmarks.annotation import Case, Options

pytest.importorskip('resvg_py')
TINY = Options(sizes='32', count=4, concepts=12)


def test_every_method_on_every_kind():
  got = annotation.run(TINY)
  table = got['by_kind_size_and_damage']
  assert list(table) == [f'{k}-32-{d}' for k in annotation.KINDS for d in annotation.DAMAGES]
  for row in table.values():
    assert row['images'] == 4
    for name in ('peer', 'matte', 'grabcut'):
      assert 0 <= row[name]['lowest_tenth'] <= row[name]['mean_iou'] <= 1
      assert row[name]['ms'] > 0 and len(row[name]['worst']) == 3
  assert got['mean_iou']['matte'] > 0.7


def test_scores_are_of_the_mask():
  mask = np.zeros((8, 8), bool)
  mask[2:6, 2:6] = True
  half = np.zeros((8, 8), bool)
  half[2:6, 2:4] = True
  items = [Case('a', np.zeros((8, 8, 3), np.uint8), mask)] * 2
  config = AnnotationConfig()
  assert annotation.score(lambda image: mask, config, items)['mean_iou'] == 1
  got = annotation.score(lambda image: half, config, items)
  assert got['mean_iou'] == 0.5 and got['under_half'] == 0 and got['worst'][0] == 'a 0.50'
  got = annotation.score(lambda image: ~(mask & False), config, items)
  assert got['no_mask'] == 1 and got['mean_iou'] == 0


def test_pictures_are_what_they_are_called():
  (case,) = annotation.cases('floor', 32, Options(count=1, concepts=12))
  assert not (case.image[0, 0] == case.image[-1, -1]).all()
  noisy = annotation.damaged(case.image, 'noise', 0)
  assert 8 < (noisy.astype(float) - case.image)[4:].std() < 12
  assert (annotation.damaged(case.image, 'jpeg', 0) != case.image).any()
  assert annotation.damaged(case.image, 'clean', 0) is case.image
