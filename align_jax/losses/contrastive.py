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

  Returns: nats per query; 0 when no query has a positive.
  Raises: ValueError if one of the groups is missing, or both are and the sizes differ.
  Source: van den Oord et al. 2018, arXiv 1807.03748; several positives as in Khosla et al. 2020
    (`L_out`), arXiv 2004.11362.
  """
  positive = _positives(query, key, query_group, key_group)
  return _cross_entropy(_logits(query, key, scale), positive)


def symmetric_info_nce(
  image: Float[Array, 'batch dim'],
  text: Float[Array, 'batch dim'],
  scale: Scale,
  image_group: Int[Array, 'batch'] | None = None,
  text_group: Int[Array, 'batch'] | None = None,
) -> Float[Array, '']:
  """The mean of both directions of `info_nce`, the loss of CLIP.

  `L = ( info_nce(image, text) + info_nce(text, image) ) / 2`, over one matrix of logits.

  Args:
    image, text: unit-norm embeddings; row i matches row i.
    scale: the inverse temperature.
    image_group, text_group: as in `info_nce`.

  Returns: nats per query, of either kind.
  Raises: ValueError if one of the groups is missing.
  Source: Radford et al. 2021, arXiv 2103.00020, figure 3.
  """
  logits = _logits(image, text, scale)
  positive = _positives(image, text, image_group, text_group)
  back = None if positive is None else positive.T
  return (_cross_entropy(logits, positive) + _cross_entropy(logits.T, back)) / 2


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
  Raises: ValueError if one of the groups is missing.
  Source: Zhai et al. 2023, arXiv 2303.15343, algorithm 1.
  """
  logits = _logits(image, text, scale) + jnp.asarray(bias, jnp.float32)
  positive = _positives(image, text, image_group, text_group)
  if positive is None:
    matched = jnp.sum(jnp.diagonal(logits))
  else:
    matched = jnp.sum(jnp.where(positive, logits, 0.0))
  return (jnp.sum(jax.nn.softplus(logits)) - matched) / image.shape[0]


def _logits(query: Array, key: Array, scale: Scale) -> Float[Array, 'queries keys']:
  query, key = query.astype(jnp.float32), key.astype(jnp.float32)
  return jnp.asarray(scale, jnp.float32) * (query @ key.T)


def _positives(
  query: Array, key: Array, query_group: Array | None, key_group: Array | None
) -> Bool[Array, 'queries keys'] | None:
  """Which keys a query matches; None: those on the diagonal."""
  if query_group is not None and key_group is not None:
    return query_group[:, None] == key_group[None, :]
  if query_group is not None or key_group is not None:
    raise ValueError('groups are compared with each other: give both or neither')
  if query.shape[0] != key.shape[0]:
    raise ValueError(
      f'{query.shape[0]} queries and {key.shape[0]} keys do not match row by row; give groups'
    )
  return None


def _cross_entropy(
  logits: Float[Array, 'queries keys'], positive: Bool[Array, 'queries keys'] | None
) -> Float[Array, '']:
  total = jax.nn.logsumexp(logits, axis=-1)
  if positive is None:
    return jnp.mean(total - jnp.diagonal(logits))
  count = jnp.sum(positive, axis=-1)
  matched = jnp.sum(jnp.where(positive, logits, 0.0), axis=-1) / jnp.maximum(1, count)
  each = jnp.where(count > 0, total - matched, 0.0)
  return jnp.sum(each) / jnp.maximum(1, jnp.sum(count > 0))
