"""The GMAIL alignment loss against a float64 reference, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.losses.alignment import alignment_loss
from align_jax.losses.contrastive import info_nce, sigmoid_loss, symmetric_info_nce
from tests.losses import reference

FORMS = ['one_way', 'symmetric', 'sigmoid']
MASKS = [[True] * 5, [True, False, True, True, False], [False, False, True, False, False]]


def _pair(batch=5, dim=4, seed=0):
  rng = np.random.default_rng(seed)
  pair = (reference.unit(rng, batch, dim) for _ in range(2))
  return [np.asarray(x, np.float32).astype(np.float64) for x in pair]


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('group', [None, [3, 3, 3, 8, 8]])
@pytest.mark.parametrize('paired', MASKS)
def test_values_and_gradients(form, group, paired):
  generated, real = _pair(seed=sum(paired))
  tau = 0.125
  groups = None if group is None else jnp.asarray(group)

  def mine(g, r, t):
    return alignment_loss(g, r, jnp.asarray(paired), temperature=t, form=form, group=groups)

  def theirs(g, r, t):
    return reference.alignment(g, r, paired, t, form, group)

  args = [jnp.asarray(a, jnp.float32) for a in (generated, real, tau)]
  value, got = jax.jit(jax.value_and_grad(mine, argnums=(0, 1, 2)))(*args)
  np.testing.assert_allclose(value, theirs(generated, real, tau), rtol=1e-5, atol=1e-6)
  for a, b in zip(got, reference.gradients(theirs, generated, real, tau), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * max(1, np.abs(b).max()))
  # rows without a partner are neither pushed nor pulled
  out = ~np.asarray(paired)
  assert not np.asarray(got[0])[out].any()
  assert not np.asarray(got[1])[out].any()


@pytest.mark.parametrize('form', FORMS)
def test_no_partner_in_the_batch_is_zero_with_finite_gradients(form):
  generated, real = (jnp.asarray(x, jnp.float32) for x in _pair())
  none = jnp.zeros(5, bool)

  def fn(g, r, t):
    return alignment_loss(g, r, none, temperature=t, form=form)

  value, gradients = jax.jit(jax.value_and_grad(fn, argnums=(0, 1, 2)))(generated, real, 0.07)
  assert value == 0
  assert all(np.all(np.asarray(g) == 0) for g in gradients)


@pytest.mark.parametrize('form', FORMS)
def test_rows_without_a_partner_change_nothing(form):
  generated, real = (jnp.asarray(x, jnp.float32) for x in _pair(8))
  paired = jnp.arange(8) < 5
  whole = alignment_loss(generated, real, paired, form=form)
  # even when what fills such a row is no picture at all
  filled = real.at[5:].set(0.0)
  assert whole == alignment_loss(generated, filled, paired, form=form)
  cut = alignment_loss(generated[:5], real[:5], paired[:5], form=form)
  np.testing.assert_allclose(whole, cut, rtol=1e-6)


def test_full_batch_without_groups_is_the_plain_loss():
  generated, real = (jnp.asarray(x, jnp.float32) for x in _pair())
  paired = jnp.ones(5, bool)
  plain = {
    'one_way': info_nce(generated, real, 1 / 0.07),
    'symmetric': symmetric_info_nce(generated, real, 1 / 0.07),
    'sigmoid': sigmoid_loss(generated, real, 1 / 0.07, -3.0),
  }
  for form, value in plain.items():
    got = alignment_loss(generated, real, paired, form=form, bias=-3.0)
    np.testing.assert_allclose(got, value, rtol=1e-5)


def test_a_duplicate_of_the_partner_is_no_negative():
  generated, real = (jnp.asarray(x, jnp.float32) for x in _pair(4))
  twice = [jnp.concatenate([x, x]) for x in (generated, real)]
  paired, group = jnp.ones(8, bool), jnp.tile(jnp.arange(4), 2)
  once = alignment_loss(generated, real, jnp.ones(4, bool))
  # masked: the own partner against two copies of each of the three others
  logits = generated @ real.T / 0.07
  own = jnp.diagonal(logits)
  others = jnp.where(jnp.eye(4, dtype=bool), -jnp.inf, logits)
  rivals = jax.nn.logsumexp(others, axis=1) + jnp.log(2.0)
  expected = jnp.mean(jnp.logaddexp(own, rivals) - own)
  masked = alignment_loss(*twice, paired, group=group)
  np.testing.assert_allclose(masked, expected, rtol=1e-5)
  assert once < masked < alignment_loss(*twice, paired)
