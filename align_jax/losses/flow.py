"""Rectified flow: straight lines from images to noise, and the velocity along them.

Convention, here and in `synth.sampler`: time 0 is the image, time 1 is pure noise,

  x_t = (1 - t) · image + t · noise,      velocity = dx_t/dt = noise - image,

so that sampling starts from noise at t = 1 and integrates the velocity down to t = 0.
Source: Liu et al. 2022, arXiv 2209.03003; Esser et al. 2024, arXiv 2403.03206, section 2.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

TimeDistribution = Literal['logit_normal', 'uniform']


def sample_time(
  key: Array, count: int, distribution: TimeDistribution, mean: float = 0.0, std: float = 1.0
) -> Float[Array, 'batch']:
  """Draws the times that a batch is trained at.

  Args:
    key: random key.
    count: how many.
    distribution: `logit_normal` puts most weight in the middle, where the velocity is hardest to
      tell; `uniform` on [0, 1).
    mean, std: of the normal variable under the logit; a positive mean favours noise. Unused by
      `uniform`.

  Returns: float32 times within [0, 1].

  Source: Esser et al. 2024, arXiv 2403.03206, section 3.1 (mean 0, std 1 do best there).
  """
  if distribution == 'uniform':
    return jax.random.uniform(key, (count,), jnp.float32)
  return jax.nn.sigmoid(mean + std * jax.random.normal(key, (count,), jnp.float32))


def interpolate(
  image: Float[Array, 'batch *shape'],
  noise: Float[Array, 'batch *shape'],
  time: Float[Array, 'batch'],
) -> Float[Array, 'batch *shape']:
  """Returns x_t, the point at `time` on the line from `image` (time 0) to `noise` (time 1)."""
  time = time.reshape(-1, *(1,) * (image.ndim - 1))
  return (1 - time) * image + time * noise


def flow_errors(
  velocity: Float[Array, 'batch *shape'],
  image: Float[Array, 'batch *shape'],
  noise: Float[Array, 'batch *shape'],
) -> Float[Array, 'batch']:
  """Mean squared error of the velocity of each image, over every channel of every pixel.

  Args:
    velocity: what the model says at `interpolate(image, noise, time)`.
    image: in [-1, 1].
    noise: standard normal.

  Returns: float32; a model that always says 0 stands near 1 + mean(image²). The loss is the mean.
  """
  error = velocity.astype(jnp.float32) - (noise - image).astype(jnp.float32)
  return jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))
