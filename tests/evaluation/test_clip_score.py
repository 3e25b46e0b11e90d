"""CLIPScore against its formula, worked out by hand."""

import numpy as np
import pytest

from align_jax.evaluation.clip_score import clip_score, ref_clip_score

IMAGE = np.asarray([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], np.float32)
CAPTION = np.asarray([[0.6, 0.8], [-0.6, 0.8], [0.0, 1.0]], np.float32)


def test_it_is_the_cosine_stretched_and_never_below_zero():
  np.testing.assert_allclose(clip_score(IMAGE, CAPTION), [1.5, 0, 2.5], rtol=1e-6)


def test_references_come_in_by_the_harmonic_mean_of_the_nearest():
  reference = np.asarray([[0.0, 1.0], [0.6, 0.8], [0.0, 1.0], [0.0, -1.0]], np.float32)
  got = ref_clip_score(IMAGE, CAPTION, reference, np.asarray([0, 0, 1, 2]))
  # the first: score 1.5, nearest reference 1; the second: score 0; the third: nearest below 0
  np.testing.assert_allclose(got, [2 * 1.5 / 2.5, 0, 0], rtol=1e-6)


def test_it_agrees_with_a_slow_version(unit):
  image, caption, reference = unit(20), unit(20, seed=1), unit(50, seed=2)
  owner = np.concatenate([np.arange(20), np.random.default_rng(0).integers(0, 20, 30)])
  got = ref_clip_score(image, caption, reference, owner)
  for i in range(20):
    score = 2.5 * max(0.0, float(image[i] @ caption[i]))
    near = max(0.0, *(float(caption[i] @ r) for r in reference[owner == i]))
    wanted = 0.0 if not score or not near else 2 / (1 / score + 1 / near)
    assert got[i] == pytest.approx(wanted, rel=1e-5)
