"""The smallest model and objective that training accepts, so that its tests need no method."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx


@dataclasses.dataclass(frozen=True)
class ToyConfig:
  width: int = 8


class Toy(nnx.Module):
  """A linear map with a frozen shift."""

  def __init__(self, config: ToyConfig, rngs: nnx.Rngs):
    shape = (config.width, 2 * config.width)
    self.kernel = nnx.Param(jax.random.normal(rngs.params(), shape), axes=('embed', 'mlp'))
    self.scale = nnx.Param(jnp.ones(shape[1]), axes=('mlp',))
    self.shift = nnx.Param(jax.random.normal(rngs.params(), shape[1:]), axes=('mlp',))

  def __call__(self, x):
    return x @ self.kernel[...] * self.scale[...] + self.shift[...]


@dataclasses.dataclass(frozen=True)
class ToyObjective:
  ModelConfig: ClassVar[type] = ToyConfig
  batch_coupled: ClassVar[bool] = False
  texts: ClassVar[tuple[str, ...]] = ('plain',)
  generated_only: ClassVar[bool] = False
  needs_partner: ClassVar[bool] = False

  def create_model(self, config, rngs):
    return Toy(config, rngs)

  def trainable(self, name):
    return name != 'shift'

  def prepare(self, batch, key):
    return {**batch, 'noise': 0.01 * jax.random.normal(key, batch['x'].shape)}

  def embed(self, model, batch):
    return {'error': model(batch['x'] + batch['noise']) - batch['y']}

  def loss(self, model, outputs, batch, losses):
    error = outputs['error']
    return jnp.mean(error**2), {'largest': jnp.max(jnp.abs(error))}

  def flops(self, config):
    return 3 * 2 * 2 * config.width**2


def toy_batch(seed, size=16, width=8):
  keys = jax.random.split(jax.random.key(seed))
  return {
    'x': jax.random.normal(keys[0], (size, width)),
    'y': jax.random.normal(keys[1], (size, 2 * width)),
  }
