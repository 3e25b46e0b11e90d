"""The smallest models that have every part."""

import dataclasses
from typing import Any

import jax
import numpy as np
from flax import nnx

from align_jax.models.adapter import LoraConfig
from align_jax.models.dual_encoder import DualEncoder, DualEncoderConfig
from align_jax.models.flat import params_of
from align_jax.models.text import TextConfig
from align_jax.models.vit import VitConfig

VIT = VitConfig(16, 8, width=16, depth=2, heads=2, mlp_dim=24)
TEXT = TextConfig(40, 6, width=16, depth=1, heads=2, mlp_dim=24)
LORA = LoraConfig(rank=2, alpha=4.0)
DUAL = DualEncoderConfig(VIT, TEXT, dim=8, lora=LORA, projection='dual', init_bias=-10.0)


def dual(**changes: Any) -> DualEncoder:
  return DualEncoder(dataclasses.replace(DUAL, **changes), nnx.Rngs(0))


def images(count: int = 3, size: int = 16, seed: int = 0) -> jax.Array:
  rng = np.random.default_rng(seed)
  return jax.numpy.asarray(rng.integers(0, 256, (count, size, size, 3)), 'uint8')


def perturb(model: nnx.Module, part: str, seed: int = 1) -> None:
  """Adds noise to every parameter whose name has `part`."""
  rng = np.random.default_rng(seed)
  found = False
  for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
    if part in '/'.join(map(str, path)).split('/'):
      # the state's variables are copies: the model's own is reached by its path
      own: Any = model
      for key in path:
        own = own[key] if isinstance(key, int) else getattr(own, key)
      own[...] = own[...] + 0.1 * rng.normal(size=variable.shape).astype('float32')
      found = True
  assert found, sorted(params_of(model))
