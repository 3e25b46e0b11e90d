"""One block of the ring's logits: what the losses keep of it, and its gradient. No mesh here."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

# what a row keeps of its logits: their logsumexp, or the sum of their softplus
Kind = Literal['softmax', 'sigmoid']


class Marks(NamedTuple):
  """Which pairs match and which count; one entry for each row. Matches always count.

  Attributes:
    match: a query and a key of equal `match` are a positive.
    partner: other pairs count only if both rows have a partner; None: all of them count.
    group: of those, only pairs of different groups count; None: all of them. Read with `partner`.
  """

  match: Int[Array, 'rows']
  partner: Bool[Array, 'rows'] | None = None
  group: Int[Array, 'rows'] | None = None


class Sums(NamedTuple):
  """What a row of logits comes to.

  Attributes:
    total: over the entries that count, their logsumexp, or the sum of their softplus.
    matched: the sum of the positives.
    positives: how many there are.
  """

  total: Float[Array, 'rows']
  matched: Float[Array, 'rows']
  positives: Int[Array, 'rows']


class Running(NamedTuple):
  """The sums of a row of which a part has been seen.

  Attributes:
    peak: the largest entry that counts, -inf before the first one; 0 for sums of softplus.
    total: the sum over the entries that count, divided by exp(peak).
    matched, positives: as in `Sums`.
  """

  peak: Float[Array, 'rows']
  total: Float[Array, 'rows']
  matched: Float[Array, 'rows']
  positives: Int[Array, 'rows']


class Pull(NamedTuple):
  """What the gradient of a block needs to know of a row.

  Attributes:
    total: as in `Sums`, of the whole row.
    by_total, by_matched: the gradient of the loss by the row's `total` and `matched`.
  """

  total: Float[Array, 'rows']
  by_total: Float[Array, 'rows']
  by_matched: Float[Array, 'rows']


def block_logits(
  query: Float[Array, 'queries dim'],
  key: Float[Array, 'keys dim'],
  scale: Float[Array, ''],
  bias: Float[Array, ''] | None,
  marks: tuple[Marks, Marks],
) -> tuple[Float[Array, 'queries keys'], Bool[Array, 'queries keys']]:
  """The logits of a block and which of them are positives.

  Returns: the logits, -inf where a pair does not count; True where a pair is a match.
  """
  logits = scale * (query @ key.T)
  if bias is not None:
    logits += bias
  mine, theirs = marks
  positive = mine.match[:, None] == theirs.match[None, :]
  if mine.partner is not None and theirs.partner is not None:
    counts = mine.partner[:, None] & theirs.partner[None, :]
    if mine.group is not None and theirs.group is not None:
      counts &= mine.group[:, None] != theirs.group[None, :]
    logits = jnp.where(positive | counts, logits, -jnp.inf)
  return logits, positive


def nothing(kind: Kind, rows: int) -> Running:
  """The sums before the first entry."""
  peak = jnp.full(rows, -jnp.inf if kind == 'softmax' else 0.0, jnp.float32)
  zeros = jnp.zeros(rows, jnp.float32)
  return Running(peak, zeros, zeros, jnp.zeros(rows, jnp.int32))


def block_sums(
  kind: Kind, logits: Float[Array, 'queries keys'], positive: Bool[Array, 'queries keys'], axis: int
) -> Running:
  """The sums along `axis` of one block."""
  if kind == 'softmax':
    peak = jnp.max(logits, axis=axis)
    total = jnp.sum(jnp.exp(logits - jnp.expand_dims(_finite(peak), axis)), axis=axis)
  else:
    total = jnp.sum(jax.nn.softplus(logits), axis=axis)
    peak = jnp.zeros_like(total)
  matched = jnp.sum(jnp.where(positive, logits, 0.0), axis=axis)
  return Running(peak, total, matched, jnp.sum(positive, axis=axis, dtype=jnp.int32))


def merge(a: Running, b: Running) -> Running:
  """The sums over the entries of both.

  Source: Milakov & Gimelshein 2018, arXiv 1805.02867, equation 4.
  """
  peak = jnp.maximum(a.peak, b.peak)
  zero = _finite(peak)
  total = a.total * jnp.exp(a.peak - zero) + b.total * jnp.exp(b.peak - zero)
  return Running(peak, total, a.matched + b.matched, a.positives + b.positives)


def finish(kind: Kind, sums: Running) -> Sums:
  """The sums of a row that has been seen whole."""
  total = _finite(sums.peak) + jnp.log(sums.total) if kind == 'softmax' else sums.total
  return Sums(total, sums.matched, sums.positives)


def block_gradient(
  kind: Kind,
  logits: Float[Array, 'queries keys'],
  positive: Bool[Array, 'queries keys'],
  rows: Pull,
  columns: Pull | None,
) -> Float[Array, 'queries keys']:
  """The gradient of the loss by the logits of a block; 0 where a pair does not count."""
  gradient = _gradient_along(kind, logits, positive, rows, 1)
  if columns is not None:
    gradient += _gradient_along(kind, logits, positive, columns, 0)
  return gradient


def _gradient_along(kind: Kind, logits: Array, positive: Array, pull: Pull, axis: int) -> Array:
  total, by_total, by_matched = (jnp.expand_dims(x, axis) for x in pull)
  softmax = kind == 'softmax'
  share = jnp.exp(logits - _finite(total)) if softmax else jax.nn.sigmoid(logits)
  return by_total * share + jnp.where(positive, by_matched, 0.0)


def _finite(x: Array) -> Array:
  """`x`, but 0 for the logsumexp of nothing: -inf less -inf would be no number."""
  return jnp.where(x == -jnp.inf, 0.0, x)
