"""Schedules and updates against closed forms and NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.errors import UserError
from align_jax.train.optimizer import Group, OptimizerConfig, learning_rate, make_optimizer


def test_cosine_rises_then_falls_to_the_final_scale():
  rate = learning_rate(
    OptimizerConfig(lr=2.0, schedule='cosine', warmup_steps=10, final_lr_scale=0.1), 110
  )
  assert float(rate(0)) == 0.0
  assert float(rate(5)) == pytest.approx(1.0)
  assert float(rate(10)) == pytest.approx(2.0)
  assert float(rate(60)) == pytest.approx(2.0 * (0.9 * 0.5 + 0.1))
  assert float(rate(110)) == pytest.approx(0.2)


def test_rsqrt_falls_as_the_inverse_root():
  rate = learning_rate(OptimizerConfig(lr=1.0, schedule='rsqrt', warmup_steps=100), 10_000)
  assert float(rate(100)) == pytest.approx(1.0)
  assert float(rate(100 + 300)) == pytest.approx(0.5)


def test_a_warmup_as_long_as_the_run_is_refused():
  with pytest.raises(UserError, match='warmup_steps'):
    learning_rate(OptimizerConfig(warmup_steps=10), 10)


def _adamw_reference(param, grads, lr, decay, b1=0.9, b2=0.98, eps=1e-8):
  param = np.asarray(param, np.float64)
  mean = variance = np.zeros_like(param)
  for t, grad in enumerate(grads, start=1):
    grad = np.asarray(grad, np.float64)
    mean = b1 * mean + (1 - b1) * grad
    variance = b2 * variance + (1 - b2) * grad**2
    step = (mean / (1 - b1**t)) / (np.sqrt(variance / (1 - b2**t)) + eps)
    param = param - lr * (step + decay * param)
  return param


def test_groups_scale_the_rate_and_vectors_are_not_decayed():
  rng = np.random.default_rng(0)
  params = {
    'image/kernel': jnp.asarray(rng.normal(size=(3, 4)), jnp.float32),
    'image/bias': jnp.asarray(rng.normal(size=4), jnp.float32),
    'text/kernel': jnp.asarray(rng.normal(size=(3, 4)), jnp.float32),
  }
  config = OptimizerConfig(
    lr=0.1,
    schedule='constant',
    weight_decay=0.2,
    clip_norm=0.0,
    groups=(Group('^text/', lr_scale=0.5, weight_decay=0.0),),
  )
  optimizer = make_optimizer(config, 10, axes_of(params))
  grads = [
    {k: jnp.asarray(rng.normal(size=p.shape), jnp.float32) for k, p in params.items()}
    for _ in range(3)
  ]
  state, new = optimizer.init(params), params
  for grad in grads:
    updates, state = optimizer.update(grad, state, new)
    new = jax.tree.map(jnp.add, new, updates)
  expected = {'image/kernel': (0.1, 0.2), 'image/bias': (0.1, 0.0), 'text/kernel': (0.05, 0.0)}
  for name, (lr, decay) in expected.items():
    reference = _adamw_reference(params[name], [g[name] for g in grads], lr, decay)
    np.testing.assert_allclose(new[name], reference, rtol=1e-5, atol=1e-6)


def axes_of(params):
  return {name: ('embed', 'mlp')[: p.ndim] for name, p in params.items()}


def test_the_vectors_of_stacked_blocks_are_not_decayed():
  params = {'blocks/bias': jnp.ones((3, 2)), 'blocks/kernel': jnp.ones((3, 2, 2))}
  axes = {'blocks/bias': ('layers', 'mlp'), 'blocks/kernel': ('layers', 'embed', 'mlp')}
  optimizer = make_optimizer(OptimizerConfig(weight_decay=0.1), 10, axes)
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = optimizer.update(zeros, optimizer.init(params), params)
  assert not np.any(updates['blocks/bias'])
  assert np.all(updates['blocks/kernel'])


def test_accumulation_equals_the_mean_gradient():
  params = {'kernel': jnp.ones((2, 2))}
  grads = [jnp.full((2, 2), v) for v in (1.0, 3.0)]
  config = OptimizerConfig(lr=0.1, schedule='constant', clip_norm=0.0)
  one = make_optimizer(config, 10, axes_of(params))
  updates, _ = one.update({'kernel': jnp.full((2, 2), 2.0)}, one.init(params), params)
  two = make_optimizer(OptimizerConfig(**{**vars(config), 'accumulate': 2}), 20, axes_of(params))
  state = two.init(params)
  first, state = two.update({'kernel': grads[0]}, state, params)
  second, state = two.update({'kernel': grads[1]}, state, params)
  assert not np.any(first['kernel'])
  np.testing.assert_allclose(second['kernel'], updates['kernel'], rtol=1e-6)


@pytest.mark.parametrize('match', ['^nothing', '('])
def test_a_group_that_matches_nothing_or_is_broken_is_named(match):
  with pytest.raises(UserError, match=r'groups\[0\]\.match'):
    make_optimizer(OptimizerConfig(groups=(Group(match),)), 10, {'kernel': ('embed', 'mlp')})
