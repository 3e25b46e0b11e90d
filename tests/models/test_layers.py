"""Norms, activations and linear layers against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import erf

from align_jax.models.layers import LayerNorm, Linear, activate
from align_jax.models.param import param


@pytest.mark.parametrize('eps', [1e-6, 1e-5])
def test_layer_norm(eps):
  x = np.random.default_rng(0).normal(3.0, 0.01, (4, 5, 16))
  norm = LayerNorm(16, eps, nnx.Rngs(0))
  norm.scale[...], norm.bias[...] = jnp.linspace(1, 2, 16), jnp.linspace(-1, 1, 16)
  unit = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
  expected = unit * np.linspace(1, 2, 16) + np.linspace(-1, 1, 16)
  np.testing.assert_allclose(norm(jnp.asarray(x, jnp.float32)), expected, atol=1e-3)
  assert norm(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16


def test_layer_norm_of_bfloat16_is_computed_in_float32():
  x = jnp.asarray(np.random.default_rng(0).normal(50.0, 1.0, (2, 64)), jnp.bfloat16)
  norm = LayerNorm(64, 1e-6, nnx.Rngs(0))
  assert (norm(x) == norm(x.astype(jnp.float32)).astype(jnp.bfloat16)).all()


def test_activations():
  x = np.linspace(-5, 5, 101)
  expected = {
    'quick_gelu': x / (1 + np.exp(-1.702 * x)),
    'gelu': x * (1 + erf(x / np.sqrt(2))) / 2,
    'gelu_tanh': x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
  }
  for kind, y in expected.items():
    np.testing.assert_allclose(activate(kind)(jnp.asarray(x, jnp.float32)), y, atol=1e-5)


@pytest.mark.parametrize('kind', ['quick_gelu', 'gelu', 'gelu_tanh'])
def test_activations_have_the_slope_of_their_formula(kind):
  plain = {
    'quick_gelu': lambda x: x * jax.nn.sigmoid(1.702 * x),
    'gelu': lambda x: jax.nn.gelu(x, approximate=False),
    'gelu_tanh': lambda x: jax.nn.gelu(x, approximate=True),
  }[kind]
  x = jnp.asarray([*np.linspace(-6, 6, 101), -100.0, 100.0], jnp.float32)
  ours, theirs = (jax.grad(lambda x, f=f: jnp.sum(f(x)))(x) for f in (activate(kind), plain))
  np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_linear_computes_in_the_dtype_of_its_input():
  linear = Linear((4, 6), ('embed', 'mlp'), nnx.Rngs(0))
  assert linear(jnp.ones((2, 3, 4), jnp.bfloat16)).dtype == jnp.bfloat16
  assert linear.kernel[...].dtype == linear.bias[...].dtype == jnp.float32
  assert Linear((4, 6), ('embed', 'mlp'), nnx.Rngs(0), bias=False).bias is None


def test_axes_name_every_dimension():
  with pytest.raises(ValueError, match='2 dimensions'):
    param(nnx.Rngs(0), nnx.initializers.zeros, (2, 3), ('embed',))
