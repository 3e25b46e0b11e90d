"""The evidence lower bound of a variational autoencoder with Gaussians throughout.

For an image x, a caption c and a latent z,

  -log p(x | c) <= E_q[-log p(x | z, c)] + KL(q(z | x, c) || p(z | c)),

the reconstruction and the KL term. Everything is in nats and computed in float32.
Source: Kingma & Welling 2013, arXiv 1312.6114, equation 3; with a condition, Sohn et al. 2015
(CVAE, NeurIPS), equation 4.
"""

import math

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float


def gaussian_kl(
  mean: Float[Array, '*shape'],
  log_std: Float[Array, '*shape'],
  prior_mean: Float[Array, '*shape'] | float = 0.0,
  prior_log_std: Float[Array, '*shape'] | float = 0.0,
) -> Float[Array, '*shape']:
  """KL(N(mean, std²) || N(prior_mean, prior_std²)) of each number.

  Args:
    mean, log_std: of the posterior.
    prior_mean, prior_log_std: of the prior; by default it is the standard normal.

  Returns: nats, 0 or more.

  Source: Kingma & Welling 2013, arXiv 1312.6114, appendix B, there for the standard normal.
  """
  mean, log_std = mean.astype(jnp.float32), log_std.astype(jnp.float32)
  log_ratio = log_std - prior_log_std
  distance = (mean - prior_mean) * jnp.exp(-jnp.asarray(prior_log_std, jnp.float32))
  # expm1: near equality exp(2r) - 1 - 2r would be all rounding
  return 0.5 * (jnp.expm1(2 * log_ratio) - 2 * log_ratio + jnp.square(distance))


def gaussian_nll(
  image: Float[Array, 'batch *shape'], mean: Float[Array, 'batch *shape'], std: float
) -> Float[Array, 'batch']:
  """-log N(image; mean, std²) of each image, summed over every channel of every pixel.

  Args:
    image: in [-1, 1].
    mean: what the decoder says.
    std: of the pixels around it, in the units of the image.

  Returns: nats for each image.
  """
  error = (image.astype(jnp.float32) - mean.astype(jnp.float32)) / std
  constant = math.log(std) + 0.5 * math.log(2 * math.pi)
  return jnp.sum(0.5 * jnp.square(error) + constant, axis=tuple(range(1, error.ndim)))


def free_bits(
  kl: Float[Array, 'batch groups'], floor: float, counts: Bool[Array, 'batch'] | None = None
) -> Float[Array, '']:
  """The KL term, where no group of latents is pressed below `floor` nats.

  A group costs `floor` until it says more, on the average of the batch: there is nothing to win by
  telling nothing, which is where training else starts and stays (posterior collapse).

  Args:
    kl: nats of each group of each example.
    floor: nats for each group; 0 is the plain KL term.
    counts: which examples take part in the averages; None: all.

  Returns: Σ over groups of max(floor, mean over the batch), nats for each example.

  Source: Kingma et al. 2016, arXiv 1606.04934, equation 15.
  """
  kl = kl.astype(jnp.float32)
  counts = jnp.ones(len(kl), bool) if counts is None else counts
  total = jnp.sum(jnp.where(counts[:, None], kl, 0), axis=0)
  return jnp.sum(jnp.maximum(total / jnp.maximum(1, jnp.sum(counts)), floor))
