"""The product of the linear layers has the plain product's value and gradients, on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from align_jax.models.products import product
from align_jax.parallel.mesh import MeshConfig, make_mesh

pytestmark = pytest.mark.usefixtures('optimised')


def gradients(f, x, kernel, weights):
  return jax.grad(lambda x, kernel: jnp.sum(f(x, kernel) * weights), argnums=(0, 1))(x, kernel)


# wider than long and the other way round: the CPU's gradient turns over the narrower side
@pytest.mark.parametrize('size', [(4, 6), (6, 4), (5, 5), (1, 3)])
def test_gradients(size):
  rng = np.random.default_rng(0)
  x, kernel, weights = (
    jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((7, size[0]), size, (7, size[1]))
  )
  np.testing.assert_array_equal(product(x, kernel), x @ kernel)
  expected = gradients(lambda x, kernel: x @ kernel, x, kernel, weights)
  for got, want in zip(gradients(product, x, kernel, weights), expected, strict=True):
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_kernel_that_all_devices_hold_gets_the_summed_gradient():
  mesh = make_mesh(MeshConfig(), jax.devices()[:4])
  rng = np.random.default_rng(0)
  x, kernel = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((8, 3), (3, 5)))
  rows, whole = PartitionSpec('data'), PartitionSpec()
  mapped = jax.shard_map(product, mesh=mesh, in_specs=(rows, whole), out_specs=rows)
  weights = jnp.arange(40.0).reshape(8, 5)
  expected = gradients(lambda x, kernel: x @ kernel, x, kernel, weights)
  got = jax.jit(lambda x, kernel: gradients(mapped, x, kernel, weights))(x, kernel)
  for mine, want in zip(got, expected, strict=True):
    np.testing.assert_allclose(mine, want, atol=1e-4)


def test_only_the_cpu_turns_the_gradient_over():
  x, kernel = jnp.ones((7, 4)), jnp.ones((4, 6))
  step = jax.jit(lambda x, kernel: gradients(product, x, kernel, jnp.ones((7, 6))))
  cpu = step.trace(x, kernel).lower(lowering_platforms=('cpu',)).as_text()
  tpu = step.trace(x, kernel).lower(lowering_platforms=('tpu',)).as_text()
  assert 'optimization_barrier' in cpu and 'optimization_barrier' not in tpu
