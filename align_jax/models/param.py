"""A parameter: a float32 array whose every dimension has a logical axis name."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jax import Array

Init = Callable[..., Array]
Axes = tuple[str | None, ...]


def param(rngs: nnx.Rngs, init: Init, shape: tuple[int, ...], axes: Axes) -> nnx.Param:
  """Creates a parameter.

  Always float32, whatever the compute dtype: a bfloat16 parameter would lose small updates. The
  names stand under the key `axes` of our own: Flax's own key asks for a mesh at creation, and
  which mesh axis splits a parameter is decided elsewhere (`parallel.mesh`).

  Raises:
    ValueError: `axes` does not name every dimension.
  """
  if len(axes) != len(shape):
    raise ValueError(f'{len(shape)} dimensions, but axes {axes}')
  return nnx.Param(init(rngs.params(), shape, jnp.float32), axes=axes)
