"""The smallest models that have every part, made and run in few compiled programs.

Compiling every single operation by itself would take most of the tests' time.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from align_jax.models.adapter import LoraConfig
from align_jax.models.dual_encoder import DualEncoder, DualEncoderConfig
from align_jax.models.flat import Params, Skeleton, params_of
from align_jax.models.text import TextConfig
from align_jax.models.vit import VitConfig

VIT = VitConfig(16, 8, width=16, depth=1, heads=2, mlp_dim=24)
TEXT = TextConfig(40, 6, width=16, depth=1, heads=2, mlp_dim=24)
LORA = LoraConfig(rank=2, alpha=4.0)
DUAL = DualEncoderConfig(VIT, TEXT, dim=8, lora=LORA, projection='dual', init_bias=-10.0)


@functools.cache
def _made(cls: type[nnx.Module], *configs: Any) -> tuple[Skeleton, Params]:
  skeleton = Skeleton(lambda rngs: cls(*configs, rngs))
  # not under jit: single operations are compiled once for all models, a whole init for each
  return skeleton, skeleton.init(jax.random.key(0))


def make(cls: type[nnx.Module], *configs: Any, changed: Params | None = None) -> Any:
  """A new model of its own; `changed` replaces some of the parameters it is created with."""
  skeleton, params = _made(cls, *configs)
  return skeleton.bind({**params, **(changed or {})})


def dual(changed: Params | None = None, **changes: Any) -> DualEncoder:
  return make(DualEncoder, dataclasses.replace(DUAL, **changes), changed=changed)


def perturbed(model: nnx.Module, *parts: str) -> Params:
  """The parameters that have one of `parts` in their name, with noise."""
  rng = np.random.default_rng(1)
  out = {
    name: np.asarray(value) + 0.2 * rng.normal(size=value.shape).astype(np.float32)
    for name, value in params_of(model).items()
    if set(parts) & set(name.split('/'))
  }
  assert out
  return out


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _call(graph: Any, method: str, static: tuple, params: Any, *args: jax.Array) -> jax.Array:
  return getattr(nnx.merge(graph, params), method)(*args, **dict(static))


def call(model: nnx.Module, method: str, *args: jax.Array, **static: Any) -> jax.Array:
  """`model.method(*args, **static)`, compiled."""
  graph, params = nnx.split(model)
  return _call(graph, method, tuple(sorted(static.items())), params, *args)


def grad(model: nnx.Module, method: str, *args: jax.Array, **static: Any) -> Params:
  """Gradients by name, of the mean square of the method's output less 1."""
  graph, params = nnx.split(model)

  def loss(params: Any) -> jax.Array:
    out = _call(graph, method, tuple(sorted(static.items())), params, *args)
    return jnp.mean((out.astype(jnp.float32) - 1) ** 2)

  return params_of(nnx.merge(graph, jax.jit(jax.grad(loss))(params)))


def images(count: int = 3, size: int = 16) -> jax.Array:
  rng = np.random.default_rng(0)
  return jnp.asarray(rng.integers(0, 256, (count, size, size, 3), np.uint8))
