"""Adapters: nothing at first, scaled, gated per example, and absent from the real track."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from align_jax.errors import UserError
from align_jax.models.adapter import Adapter, LoraConfig
from align_jax.models.layers import Linear

AXES = ('embed', 'mlp')


def _adapter(rank, alpha=4.0):
  adapter = Adapter(LoraConfig(rank=rank, alpha=alpha), (6, 5), AXES, nnx.Rngs(0))
  rng = np.random.default_rng(0)
  learned = adapter.delta if rank == 'full' else adapter.b
  assert not learned[...].any()
  learned[...] = jnp.asarray(rng.normal(size=learned.shape), jnp.float32)
  return adapter


@pytest.mark.parametrize('rank', [1, 4, 'full'])
def test_update_is_the_scaled_product(rank):
  adapter = _adapter(rank, alpha=8.0)
  x = np.random.default_rng(1).normal(size=(3, 2, 6)).astype(np.float32)
  gate = np.array([1.0, 0.0, 0.5], np.float32)
  if rank == 'full':
    matrix = np.asarray(adapter.delta[...])
  else:
    matrix = 8.0 / rank * np.asarray(adapter.a[...]) @ np.asarray(adapter.b[...])
  expected = gate[:, None, None] * (x @ matrix)
  out = adapter(jnp.asarray(x), jnp.asarray(gate))
  np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
  assert not out[1].any()


@pytest.mark.parametrize('rank', [2, 'full'])
def test_linear_with_an_untrained_adapter_is_the_plain_one_and_learns(rank):
  linear = Linear((6, 5), AXES, nnx.Rngs(0), lora=LoraConfig(rank=rank))
  x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 6)), jnp.float32)
  gate = jnp.ones(3)
  assert (linear(x) == linear(x, gate)).all()
  gradients = nnx.grad(lambda m: jnp.sum(m(x, gate) ** 2))(linear)
  learned = gradients['lora']['delta' if rank == 'full' else 'b']
  assert learned[...].any()


def test_without_a_gate_no_adapter_is_compiled():
  plain = Linear((6, 5), AXES, nnx.Rngs(0))
  adapted = Linear((6, 5), AXES, nnx.Rngs(0), lora=LoraConfig())
  x = jnp.ones((3, 6))

  def products(linear, *gate):
    return str(jax.make_jaxpr(lambda x: linear(x, *gate))(x)).count('dot_general')

  assert products(plain) == products(adapted) == products(plain, jnp.ones(3)) == 1
  assert products(adapted, jnp.ones(3)) == 3


def test_bad_configs():
  with pytest.raises(UserError, match=r'lora\.rank: 0'):
    LoraConfig(rank=0)
  with pytest.raises(UserError, match=r'lora\.layers: empty'):
    LoraConfig(layers=())
