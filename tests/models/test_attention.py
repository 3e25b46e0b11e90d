"""Attention against float64 NumPy, for every head size in use."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.models.attention import attend, backend_of


def qkv(size, dtype='float32', batch=2, length=5, keys=7, heads=3):
  rng = np.random.default_rng(size)
  shapes = [(batch, n, heads, size) for n in (length, keys, keys)]
  return [jnp.asarray(rng.normal(size=s), dtype) for s in shapes]


def reference(query, key, value, mask=None):
  query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
  logits = np.einsum('blhd,bkhd->bhlk', query, key) / np.sqrt(query.shape[-1])
  if mask is not None:
    logits = np.where(np.asarray(mask), logits, -np.inf)
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  return np.einsum('bhlk,bkhd->blhd', weights, value)


@pytest.mark.parametrize(('dtype', 'tolerance'), [('float32', 1e-5), ('bfloat16', 4e-2)])
@pytest.mark.parametrize('size', [64, 72, 80])
def test_equals_the_formula(size, dtype, tolerance):
  arrays = qkv(size, dtype)
  out = attend(*arrays)
  assert out.dtype == dtype
  np.testing.assert_allclose(np.asarray(out, np.float64), reference(*arrays), atol=tolerance)


@pytest.mark.parametrize('shape', [(1, 1, 1, 7), (2, 1, 1, 7), (1, 1, 5, 7), (2, 1, 5, 7)])
def test_masks_broadcast(shape):
  arrays = qkv(72)
  mask = np.random.default_rng(0).random(shape) < 0.5
  mask[..., 0] = True
  out = attend(*arrays, jnp.asarray(mask))
  np.testing.assert_allclose(out, reference(*arrays, mask), atol=1e-5)


def test_masked_keys_get_no_gradient():
  query, key, value = qkv(64)
  mask = (jnp.arange(7) < 4)[None, None, None]
  gradients = jax.grad(lambda *a: attend(*a, mask).sum(), argnums=(1, 2))(query, key, value)
  for gradient in gradients:
    assert gradient[:, :4].any()
    assert not gradient[:, 4:].any()


def test_bfloat16_logits_are_not_rounded():
  # keys 0 and 1 differ by less than bfloat16 tells apart at a logit of 64
  query = jnp.zeros((1, 1, 1, 64), jnp.bfloat16).at[..., 0].set(64.0).at[..., 1].set(1.0)
  key = jnp.zeros((1, 2, 1, 64), jnp.bfloat16).at[:, :, :, 0].set(8.0).at[:, 1, :, 1].set(1.0)
  value = jnp.zeros((1, 2, 1, 64), jnp.bfloat16).at[:, 1].set(1.0)
  np.testing.assert_allclose(
    np.float32(attend(query, key, value)), 1 / (1 + np.exp(-1 / 8)), atol=2e-3
  )


def test_a_backend_that_cannot_leaves_it_to_plain():
  short, mask = qkv(72), jnp.ones((1, 1, 1, 7), bool)
  np.testing.assert_array_equal(attend(*short, backend='splash'), attend(*short))
  np.testing.assert_array_equal(attend(*short, mask, 'cudnn'), attend(*short, mask))
  assert [backend_of(p) for p in ('tpu', 'gpu', 'cuda', 'cpu')] == [
    'splash',
    'cudnn',
    'cudnn',
    'plain',
  ]


def test_gradients_are_those_of_the_formula():
  arrays = qkv(64)
  weight = jnp.asarray(np.random.default_rng(1).normal(size=arrays[0].shape), jnp.float32)

  def plain(query, key, value):
    logits = jnp.einsum('blhd,bkhd->bhlk', query, key) / 8
    return jnp.einsum('bhlk,bkhd->blhd', jax.nn.softmax(logits), value)

  got, want = (
    jax.grad(lambda *a, fn=fn: (fn(*a) * weight).sum(), argnums=(0, 1, 2))(*arrays)
    for fn in (attend, plain)
  )
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
