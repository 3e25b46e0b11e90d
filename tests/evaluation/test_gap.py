import numpy as np
import pytest

from align_jax.evaluation import gap


def names(n):
  return [f'pair {i}' for i in range(n)]


def test_equal_modalities_have_no_gap(unit):
  x = unit(40)
  assert gap.centroid_distance(x, x) == 0
  np.testing.assert_allclose(gap.paired_cosines(x, x), 1, rtol=1e-6)
  assert gap.separability_auc(x, x, names(40), names(40)) == 0.5


def test_a_shift_is_seen(unit):
  x = np.concatenate([unit(60), np.zeros((60, 1), np.float32)], axis=1)
  y = x + np.float32([0] * 8 + [0.5])
  assert gap.centroid_distance(x, y) == pytest.approx(0.5)
  assert gap.separability_auc(x, y, names(60), names(60)) == 1


def test_pairs_stay_in_one_fold(unit):
  # Every pair has its own corner of a wide space. Were a partner left in the train folds, the
  # probe would learn 'this content is real' and call its twin real too: an AUC near 0.
  x = np.eye(40, dtype=np.float32)
  auc = gap.separability_auc(x, x, names(40), names(40))
  apart = gap.separability_auc(x, x, names(40), [f'other {i}' for i in range(40)])
  assert auc == 0.5
  assert apart < 0.4


def test_unpaired_cosine_equals_a_plain_loop(unit):
  real, generated = unit(7), unit(7, seed=1)
  partner = np.asarray([0, 0, 1, 2, 2, 2, 3])
  real = real[partner]
  total = [
    real[i].astype(np.float64) @ generated[j]
    for i in range(7)
    for j in range(7)
    if partner[i] != partner[j]
  ]
  assert gap.unpaired_cosine(real, generated, partner) == pytest.approx(np.mean(total))
  with pytest.raises(ValueError, match='two different partners'):
    gap.unpaired_cosine(real, generated, np.zeros(7, np.int64))


def test_alignment_and_uniformity_in_closed_form(unit):
  x, y = unit(5), unit(5, seed=1)
  cosine = gap.paired_cosines(x, y)
  assert gap.alignment(x, y) == pytest.approx(np.mean(2 - 2 * cosine), rel=1e-5)
  assert gap.alignment(x, x) == 0
  assert gap.uniformity(np.repeat(x[:1], 9, axis=0)) == pytest.approx(0, abs=1e-6)
  assert gap.uniformity(np.eye(6, dtype=np.float32)) == pytest.approx(-4)  # all at distance √2


def test_uniformity_in_blocks_equals_all_at_once(unit):
  x = unit(50)
  distance = ((x[:, None].astype(np.float64) - x[None]) ** 2).sum(-1)
  expected = np.log(np.exp(-2 * distance)[~np.eye(50, dtype=bool)].mean())
  assert gap.uniformity(x, block=7) == pytest.approx(expected)


def test_too_few_pairs(unit):
  with pytest.raises(ValueError, match='two pairs'):
    gap.separability_auc(unit(1), unit(1), names(1), names(1))
