"""Both sides draw the same images by the same transformer."""

import dataclasses

import numpy as np
import pytest

from align_jax.errors import UserError
from align_jax.models.dit import Dit
from align_jax.models.flat import Skeleton
from benchmarks import flow_sampler
from benchmarks.flow_sampler import Options

pytest.importorskip('torch')
pytest.importorskip('diffusers')
TINY = Options(model='Ti', size=8, images=2, steps=3, rounds=1, depth=2)


def test_both_sides_draw_the_same_images():
  got = flow_sampler.run(TINY)
  assert got['difference_of_images']['largest'] <= 1
  # the peer asks for the time's features once a block and once more at the end, ours once
  assert 0.9 < got['flops_ratio'] < 1.1
  for side in (got['ours'], got['peer']):
    assert side['images_per_second'] > 0 and side['gflops_per_second'] > 0
  assert got['ratio']['rounds'] == 1 and got['ratio']['target'] == 1.0


def test_the_comparison_sees_class_and_weights():
  config = flow_sampler.model_config(TINY)
  skeleton = Skeleton(lambda rngs: Dit(config, rngs))
  params = flow_sampler.random_params(skeleton)
  noise = np.random.default_rng(0).standard_normal((2, 8, 8, 3), np.float32)
  peer = flow_sampler.Peer(TINY, skeleton, params)
  base = peer(np.array([0, 1]), noise).astype(int)
  assert np.mean((base == 0) | (base == 255)) < 0.5
  assert np.abs(peer(np.array([1, 1]), noise) - base)[0].mean() > 5
  changed = {**params, 'blocks/layer/mlp/up/kernel': -params['blocks/layer/mlp/up/kernel']}
  other = flow_sampler.Peer(TINY, skeleton, changed)(np.array([0, 1]), noise)
  assert np.abs(other - base).mean() > 5


def test_more_than_the_peer_can_is_said():
  got = flow_sampler.run(dataclasses.replace(TINY, cross=1, length=4))
  assert got['cross_attention'] and got['difference_of_images'] is None
  assert got['flops_ratio'] > 1


def test_wrong_options_are_named():
  with pytest.raises(UserError, match='--model'):
    flow_sampler.run(dataclasses.replace(TINY, model='XXL'))
  with pytest.raises(UserError, match='--dtype'):
    flow_sampler.run(dataclasses.replace(TINY, dtype='float8'))
