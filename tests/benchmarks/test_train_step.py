"""Both sides train the same model: equal parameters, equal losses step for step."""

import dataclasses

import numpy as np
import pytest

from align_jax.errors import UserError
from benchmarks import train_step
from benchmarks.train_step import Options

pytest.importorskip('torch')
TINY = Options(
  model='Ti/16', batch=4, rounds=1, image_size=32, text_length=8, vocab_size=40, depth=1
)


def test_both_sides_compute_the_same():
  got = train_step.run(TINY)
  assert got['parameters'] == got['peer_parameters']
  ours, peer = got['ours'], got['peer']
  # weights, loss, gradients, clipping and AdamW: a difference in any of them shows in the next loss
  np.testing.assert_allclose(ours['first_losses'], peer['first_losses'], rtol=1e-4)
  assert ours['first_losses'][0] != ours['first_losses'][2]
  for side in (ours, peer):
    assert side['images_per_second_per_chip'] > 0 and side['gflops_per_second'] > 0
  assert ours['peak_bytes'] > 0
  assert got['batch'] == 4 and got['ratio']['rounds'] == 1
  assert got['flops_per_step'] > 0 and 'forward' in got['flops_formula']


def test_bfloat16_runs():
  got = train_step.run(dataclasses.replace(TINY, dtype='bfloat16'))
  np.testing.assert_allclose(got['ours']['first_losses'], got['peer']['first_losses'], rtol=0.02)


def test_a_wrong_size_is_named():
  with pytest.raises(UserError, match='--model'):
    train_step.run(dataclasses.replace(TINY, model='XXL/16'))
