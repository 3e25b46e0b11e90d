"""The losses of `losses/contrastive.py` and `losses/alignment.py`, one block of logits at a time.

Value and gradient are those of the plain losses; with a batch of n rows on d devices no device ever
holds more than `(n / d) × (n / d)` logits, or `rows × (n / d)` (see `Ring`). Embeddings, groups and
masks are global arrays, split over the ring along their rows. Reverse mode only.
"""

from typing import Literal

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from align_jax.parallel.ring_blocks import Marks, Sums
from align_jax.parallel.ring_sums import Ring, pair_sums

__all__ = ['Ring', 'alignment_loss', 'info_nce', 'sigmoid_loss', 'symmetric_info_nce']

Scale = Float[Array, ''] | float


def info_nce(
  ring: Ring,
  query: Float[Array, 'queries dim'],
  key: Float[Array, 'keys dim'],
  scale: Scale,
  query_group: Int[Array, 'queries'] | None = None,
  key_group: Int[Array, 'keys'] | None = None,
) -> Float[Array, '']:
  """`losses.contrastive.info_nce` round a ring.

  Args:
    ring: the devices that share the rows.
    query, key: unit-norm embeddings; with groups there may be more keys than queries.
    scale: the inverse temperature.
    query_group, key_group: keys of the query's group are its positives.

  Returns: nats per query; 0 when no query has a positive.
  Raises: ValueError as the plain loss does, or if the ring does not divide the rows.
  """
  marks = _marks(ring, query, key, query_group, key_group)
  rows, _ = pair_sums(ring, 'softmax', False, query, key, _float32(scale), None, marks)
  return _cross_entropy(rows)


def symmetric_info_nce(
  ring: Ring,
  image: Float[Array, 'batch dim'],
  text: Float[Array, 'batch dim'],
  scale: Scale,
  image_group: Int[Array, 'batch'] | None = None,
  text_group: Int[Array, 'batch'] | None = None,
) -> Float[Array, '']:
  """`losses.contrastive.symmetric_info_nce` round a ring; each block serves both directions.

  Args:
    ring: the devices that share the rows.
    image, text: unit-norm embeddings; row i matches row i.
    scale: the inverse temperature.
    image_group, text_group: as in `info_nce`.

  Returns: nats per query, of either kind.
  Raises: ValueError as the plain loss does, or if the ring does not divide the rows.
  """
  marks = _marks(ring, image, text, image_group, text_group)
  rows, columns = pair_sums(ring, 'softmax', True, image, text, _float32(scale), None, marks)
  assert columns is not None
  return (_cross_entropy(rows) + _cross_entropy(columns)) / 2


def sigmoid_loss(
  ring: Ring,
  image: Float[Array, 'batch dim'],
  text: Float[Array, 'batch dim'],
  scale: Scale,
  bias: Scale,
  image_group: Int[Array, 'batch'] | None = None,
  text_group: Int[Array, 'batch'] | None = None,
) -> Float[Array, '']:
  """`losses.contrastive.sigmoid_loss` round a ring.

  Args:
    ring: the devices that share the rows.
    image, text: unit-norm embeddings; row i matches row i.
    scale, bias: of the logits.
    image_group, text_group: rows of equal group match as well.

  Returns: nats per image.
  Raises: ValueError as the plain loss does, or if the ring does not divide the rows.
  """
  marks = _marks(ring, image, text, image_group, text_group)
  rows, _ = pair_sums(ring, 'sigmoid', False, image, text, _float32(scale), _float32(bias), marks)
  return jnp.sum(rows.total - rows.matched) / image.shape[0]


def alignment_loss(
  ring: Ring,
  generated: Float[Array, 'batch dim'],
  real: Float[Array, 'batch dim'],
  has_partner: Bool[Array, 'batch'],
  *,
  temperature: Scale = 0.07,
  form: Literal['one_way', 'symmetric', 'sigmoid'] = 'one_way',
  group: Int[Array, 'batch'] | None = None,
  bias: Scale | None = None,
) -> Float[Array, '']:
  """`losses.alignment.alignment_loss` round a ring.

  Args:
    ring: the devices that share the rows.
    generated, real: unit-norm embeddings; row i of one is the partner of row i of the other.
    has_partner: rows without a partner count neither as queries nor as negatives.
    temperature: τ; a learned one is `1 / scale`.
    form: as in the plain loss.
    group: other rows of the same group are no negatives.
    bias: of the sigmoid form; None: `-log(n - 1)` for n rows with a partner.

  Returns: nats per generated image with a partner; 0 when there is none.
  Raises: ValueError if the sizes differ or the ring does not divide them.
  """
  own, _ = _marks(ring, generated, real, None, None)
  marks = Marks(own.match, has_partner, group)
  total = jnp.maximum(1, jnp.sum(has_partner))
  offset = None
  if form == 'sigmoid':
    offset = -jnp.log(jnp.maximum(1.0, total - 1.0)) if bias is None else _float32(bias)
  rows, columns = pair_sums(
    ring,
    'sigmoid' if form == 'sigmoid' else 'softmax',
    form == 'symmetric',
    generated,
    real,
    1 / _float32(temperature),
    offset,
    (marks, marks),
  )
  losses = rows.total - rows.matched
  if columns is not None:
    losses = (losses + columns.total - columns.matched) / 2
  return jnp.sum(jnp.where(has_partner, losses, 0.0)) / total


def _marks(
  ring: Ring, query: Array, key: Array, query_group: Array | None, key_group: Array | None
) -> tuple[Marks, Marks]:
  """Which pairs match: those of equal group, or of equal row."""
  for rows in (query.shape[0], key.shape[0]):
    if rows % ring.ways:
      axes = ' and '.join(ring.axes)
      raise ValueError(f'{rows} rows do not split over the {ring.ways} devices of {axes}')
  if query_group is not None and key_group is not None:
    return Marks(query_group), Marks(key_group)
  if query_group is not None or key_group is not None:
    raise ValueError('groups are compared with each other: give both or neither')
  if query.shape[0] != key.shape[0]:
    raise ValueError(
      f'{query.shape[0]} queries and {key.shape[0]} keys do not match row by row; give groups'
    )
  own = Marks(jnp.arange(query.shape[0]))
  return own, own


def _cross_entropy(sums: Sums) -> Float[Array, '']:
  """The mean over the rows that have a positive."""
  each = sums.total - sums.matched / jnp.maximum(1, sums.positives)
  return jnp.sum(jnp.where(sums.positives > 0, each, 0.0)) / jnp.maximum(
    1, jnp.sum(sums.positives > 0)
  )


def _float32(x: Scale) -> Float[Array, '']:
  return jnp.asarray(x, jnp.float32)
