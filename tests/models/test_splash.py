"""The TPU kernel, interpreted: against the formula, and inside the step's `shard_map`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

from align_jax.models.attention import attend
from align_jax.models.splash import splash_attention
from tests.models.test_attention import qkv, reference


@pytest.mark.parametrize('size', [64, 72, 80])
def test_equals_the_formula_and_its_gradient(size):
  """150 tokens are padded to 256."""
  arrays = qkv(size, batch=1, length=150, keys=140, heads=1)
  out = splash_attention(*arrays, True)
  np.testing.assert_allclose(out, reference(*arrays), atol=1e-5)
  weight = jnp.asarray(np.random.default_rng(1).normal(size=out.shape), jnp.float32)
  got, want = (
    jax.grad(lambda *a, fn=fn: (fn(*a) * weight).sum(), argnums=(0, 1, 2))(*arrays)
    for fn in (lambda *a: splash_attention(*a, True), attend)
  )
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_same_gradients_inside_shard_map():
  """Of what differs by device and of a weight that all devices share."""
  arrays = qkv(64, batch=4, length=130, keys=130, heads=1)
  weight = jnp.asarray(np.random.default_rng(2).normal(size=64), jnp.float32)
  devices = np.array(jax.devices()[:4]).reshape(2, 2, 1)
  mesh = Mesh(devices, ('data', 'fsdp', 'tensor'), axis_types=(AxisType.Auto,) * 3)

  def loss(query, key, value, weight, attention):
    return jnp.sum(jnp.sin(attention(query * weight, key, value)))

  gradient = jax.grad(loss, argnums=(0, 1, 2, 3))
  rows, whole = PartitionSpec(('data', 'fsdp')), PartitionSpec()
  sharded = jax.shard_map(
    lambda *a: gradient(*a, lambda *x: splash_attention(*x, True)),
    mesh=mesh,
    in_specs=(rows, rows, rows, whole),
    out_specs=(rows, rows, rows, whole),
    axis_names={'data', 'fsdp'},
  )
  for a, b in zip(
    jax.jit(sharded)(*arrays, weight), gradient(*arrays, weight, attend), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=1e-4)
