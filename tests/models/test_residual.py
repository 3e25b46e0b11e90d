"""The fork of a residual stream: the plain gradient, and sums that are stored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from align_jax.models.layers import Block, BlockConfig
from align_jax.models.residual import fork
from align_jax.models.stack import Stack

pytestmark = pytest.mark.usefixtures('optimised')


def _chain(x, kernels, split):
  for kernel in kernels:
    x, y = split(x)
    x = x + jnp.tanh(y) @ kernel
  return jnp.sum(x * x)


def _given(depth: int):
  keys = jax.random.split(jax.random.key(0), depth + 1)
  return jax.random.normal(keys[0], (6, 8)), [
    0.3 * jax.random.normal(key, (8, 8)) for key in keys[1:]
  ]


def test_the_gradient_is_that_of_plain_sums():
  x, kernels = _given(5)
  ours = jax.jit(jax.grad(lambda *given: _chain(*given, fork), argnums=(0, 1)))(x, kernels)
  plain = jax.jit(jax.grad(lambda *given: _chain(*given, lambda x: (x, x)), argnums=(0, 1)))(
    x, kernels
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, plain)


def test_a_cpu_adds_every_gradient_up_once():
  config = BlockConfig(width=32, heads=2, mlp_dim=64, activation='gelu', eps=1e-6, dtype='float32')

  def sums(depth: int) -> int:
    graphdef, params = nnx.split(Stack(lambda r: Block(config, None, r), depth, nnx.Rngs(0)))
    grad = jax.jit(jax.grad(lambda params, x: jnp.sum(nnx.merge(graphdef, params)(x) ** 2)))
    return grad.lower(params, jnp.ones((4, 20, 32))).compile().as_text().count(' add(')

  # without the fork they grow with the square of the depth
  assert sums(6) - sums(4) == sums(4) - sums(2)


def test_other_platforms_take_the_plain_sum():
  exported = jax.export.export(
    jax.jit(jax.grad(lambda x: _chain(x, _given(2)[1], fork))), platforms=('tpu',)
  )(jax.ShapeDtypeStruct((6, 8), jnp.float32))
  assert 'inlineable' not in exported.mlir_module()
