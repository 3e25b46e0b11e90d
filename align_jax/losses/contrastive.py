"""Contrastive losses over a batch of unit-norm embeddings. Pure functions, float32 inside."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

Scale = Float[Array, ''] | float


def info_nce(
  query: Float[Array, 'queries dim'],
  key: Float[Array, 'keys dim'],
  scale: Scale,
  query_group: Int[Array, 'queries'] | None = None,
  key_group: Int[Array, 'keys'] | None = None,
) -> Float[Array, '']:
  """One-way InfoNCE: every query picks its key among all keys.

  `L = -mean_i  1/|P(i)| Σ_{j ∈ P(i)}  log softmax_j( scale · q_i·k_j )`

  Args:
    query, key: unit-norm embeddings.
    scale: the inverse temperature.
    query_group, key_group: keys of the query's group are its positives, `P(i)`, and the target is
      uniform over them. Without groups row i of one matches row i of the other. A query without a
      positive is left out of the mean.

  Returns: nats per query.
  Source: van den Oord et al. 2018, arXiv 1807.03748; several positives as in Khosla et al. 2020
    (`L_out`), arXiv 2004.11362.
  """
  logits = _logits(query, key, scale)
  log_p = jax.nn.log_softmax(logits, axis=-1)
  if query_group is None or key_group is None:
    return -jnp.mean(jnp.diagonal(log_p))
  positive = query_group[:, None] == key_group[None, :]
  return -_mean_over_positives(log_p, positive)


def symmetric_info_nce(
  image: Float[Array, 'batch dim'],
  text: Float[Array, 'batch dim'],
  scale: Scale,
  image_group: Int[Array, 'batch'] | None = None,
  text_group: Int[Array, 'batch'] | None = None,
) -> Float[Array, '']:
  """The mean of both directions of `info_nce`, the loss of CLIP.

  Source: Radford et al. 2021, arXiv 2103.00020, figure 3.
  """
  forward = info_nce(image, text, scale, image_group, text_group)
  return (forward + info_nce(text, image, scale, text_group, image_group)) / 2


def sigmoid_loss(
  image: Float[Array, 'batch dim'],
  text: Float[Array, 'batch dim'],
  scale: Scale,
  bias: Scale,
  image_group: Int[Array, 'batch'] | None = None,
  text_group: Int[Array, 'batch'] | None = None,
) -> Float[Array, '']:
  """Pairwise sigmoid loss over every image-text pair of the batch.

  `L = -1/n Σ_i Σ_j log σ( z_ij (scale · x_i·y_j + bias) )`, with `z_ij` 1 for a match, else -1.

  Since `-log σ(x) = softplus(x) - x`, the loss is the sum of `softplus` over all pairs less the
  logits of the matches: no matrix of labels is built.

  Args:
    image, text: unit-norm embeddings; row i matches row i.
    scale, bias: of the logits.
    image_group, text_group: rows of equal group match as well.

  Returns: nats per image.
  Source: Zhai et al. 2023, arXiv 2303.15343, algorithm 1.
  """
  logits = _logits(image, text, scale) + jnp.asarray(bias, jnp.float32)
  total = jnp.sum(jax.nn.softplus(logits))
  if image_group is None or text_group is None:
    matched = jnp.sum(jnp.diagonal(logits))
  else:
    matched = jnp.sum(jnp.where(image_group[:, None] == text_group[None, :], logits, 0.0))
  return (total - matched) / image.shape[0]


def _logits(query: Array, key: Array, scale: Scale) -> Float[Array, 'queries keys']:
  query, key = query.astype(jnp.float32), key.astype(jnp.float32)
  return jnp.asarray(scale, jnp.float32) * (query @ key.T)


def _mean_over_positives(
  log_p: Float[Array, 'queries keys'], positive: Bool[Array, 'queries keys']
) -> Float[Array, '']:
  count = jnp.sum(positive, axis=-1)
  each = jnp.sum(jnp.where(positive, log_p, 0.0), axis=-1) / jnp.maximum(1, count)
  return jnp.sum(each) / jnp.maximum(1, jnp.sum(count > 0))
