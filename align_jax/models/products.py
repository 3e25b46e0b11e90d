"""The matrix product of the linear layers, with a weights' gradient that suits a CPU."""

import jax
from jax import Array
from jaxtyping import Float


def product(x: Float[Array, 'rows in'], kernel: Float[Array, 'in out']) -> Float[Array, 'rows out']:
  """`x @ kernel`. Reverse mode only.

  The gradient of the kernel is `xᵀ g`. XLA's CPU backend has a quick product and a slow one, and
  takes the slow one where both sides are summed over their first axis; there the narrower side is
  turned over first, which costs little of what the quick one saves (a fifth). Other platforms take
  the plain product.
  """
  x, kernel = _alike(x, kernel)
  return _product(x, kernel)


@jax.custom_vjp
def _product(x: Array, kernel: Array) -> Array:
  return x @ kernel


def _product_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
  return x @ kernel, (x, kernel)


def _product_backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
  x, kernel = kept
  by_kernel = jax.lax.platform_dependent(x, gradient, cpu=_turned, default=_plain)
  return gradient @ kernel.T, by_kernel


_product.defvjp(_product_forward, _product_backward)


def _plain(x: Array, gradient: Array) -> Array:
  return x.T @ gradient


def _turned(x: Array, gradient: Array) -> Array:
  # the barriers keep the compiler from folding the transposes back into the product
  if x.shape[1] <= gradient.shape[1]:
    return jax.lax.optimization_barrier(x.T) @ gradient
  return jax.lax.optimization_barrier(jax.lax.optimization_barrier(gradient.T) @ x).T


def _alike(x: Array, kernel: Array) -> tuple[Array, Array]:
  """Lets both differ over the same devices inside `jax.shard_map`.

  The gradient of a kernel that all devices hold alike is then summed where this is undone.
  """
  axes = _varying(x) | _varying(kernel)

  def differing(value: Array) -> Array:
    missing = tuple(axes - _varying(value))
    return jax.lax.pcast(value, missing, to='varying') if missing else value

  return differing(x), differing(kernel)


def _varying(value: Array) -> frozenset[str]:
  """The mesh axes along which a value may differ, inside `jax.shard_map`."""
  return frozenset(jax.typeof(value).mat.varying)  # type: ignore[attr-defined]
