"""The step: what learns, what stays, and the same losses on every mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.models.flat import Skeleton
from align_jax.parallel.mesh import MeshConfig, make_mesh, put_batch
from align_jax.train.optimizer import OptimizerConfig, make_optimizer
from align_jax.train.state import create_state
from align_jax.train.step import make_train_step
from tests.train.toy import ToyConfig, ToyObjective, toy_batch


def _setup(mesh, *, ema=0.0, given=None):
  objective = ToyObjective()
  skeleton = Skeleton(functools.partial(objective.create_model, ToyConfig()))
  learn = {n: axes for n, axes in skeleton.axes.items() if objective.trainable(n)}
  optimizer = make_optimizer(OptimizerConfig(lr=0.05), 20, learn)
  rules = MeshConfig().rules
  state = create_state(
    skeleton,
    objective,
    optimizer,
    key=jax.random.key(0),
    mesh=mesh,
    rules=rules,
    ema=ema > 0,
    given=given,
  )
  step = make_train_step(skeleton, objective, optimizer, mesh=mesh, rules=rules, ema=ema)
  return state, step


def _losses(config, devices, steps=20):
  mesh = make_mesh(config, jax.devices()[:devices])
  state, step = _setup(mesh)
  losses = []
  for i in range(steps):
    batch = {k: np.asarray(v) for k, v in toy_batch(i).items()}
    state, metrics = step(state, put_batch(batch, mesh))
    losses.append(float(metrics['loss']))
  return losses, state


@pytest.mark.parametrize(
  ('shape', 'devices'), [((2, 1, 1), 2), ((8, 1, 1), 8), ((2, 4, 1), 8), ((2, 2, 2), 8)]
)
def test_sharded_losses_equal_unsharded(shape, devices):
  reference, _ = _losses(MeshConfig(1, 1, 1), 1)
  losses, state = _losses(MeshConfig(*shape), devices)
  np.testing.assert_allclose(losses, reference, rtol=1e-5)
  if shape == (2, 2, 2):
    kernel = state.learn['kernel']
    assert kernel.addressable_shards[0].data.shape == (4, 8)
    moments = [x for x in jax.tree.leaves(state.optimizer) if x.shape == kernel.shape]
    assert moments
    assert all(m.sharding == kernel.sharding for m in moments)


def test_frozen_parameters_stay_bit_for_bit():
  mesh = make_mesh(MeshConfig(), jax.devices()[:1])
  state, step = _setup(mesh)
  before = np.array(state.frozen['shift'])
  kernel = np.array(state.learn['kernel'])
  for i in range(3):
    state, _ = step(state, toy_batch(i))
  assert np.array_equal(before, state.frozen['shift'])
  assert not np.array_equal(kernel, state.learn['kernel'])


def test_the_moving_average_follows_its_formula():
  mesh = make_mesh(MeshConfig(), jax.devices()[:1])
  state, step = _setup(mesh, ema=0.5)
  average = np.array(state.learn['kernel'], np.float64)
  for i in range(4):
    state, _ = step(state, toy_batch(i))
    decay = min(0.5, (1 + i) / (10 + i))
    average = decay * average + (1 - decay) * np.array(state.learn['kernel'], np.float64)
  np.testing.assert_allclose(state.average['kernel'], average, rtol=1e-5)
  assert np.array_equal(state.averaged_params['kernel'], state.average['kernel'])


def test_given_weights_are_taken_and_the_rest_starts_fresh():
  mesh = make_mesh(MeshConfig(), jax.devices()[:1])
  given = {'kernel': np.full((8, 16), 2.0, np.float32)}
  state, _ = _setup(mesh, given=given)
  fresh, _ = _setup(mesh)
  assert np.array_equal(state.learn['kernel'], given['kernel'])
  assert np.array_equal(state.frozen['shift'], fresh.frozen['shift'])


def test_one_program_serves_all_seeds():
  mesh = make_mesh(MeshConfig(), jax.devices()[:1])
  state, step = _setup(mesh)
  text = step.lower(state, toy_batch(0)).as_text()
  assert jnp.issubdtype(state.key.dtype, jnp.unsignedinteger)
  assert 'dense<' not in text.split('threefry')[0] or 'key' not in text
