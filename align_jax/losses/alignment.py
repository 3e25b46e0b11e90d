"""The GMAIL alignment loss: generated images find their real partners."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from align_jax.losses.contrastive import Scale


def alignment_loss(
  generated: Float[Array, 'batch dim'],
  real: Float[Array, 'batch dim'],
  has_partner: Bool[Array, 'batch'],
  *,
  temperature: Scale = 0.07,
  form: Literal['one_way', 'symmetric', 'sigmoid'] = 'one_way',
  group: Int[Array, 'batch'] | None = None,
  bias: Scale | None = None,
) -> Float[Array, '']:
  """Pulls every generated image to its real partner, away from the batch's other real images.

  `one_way`, the paper's equation 1:
  `L = -mean_i log softmax_j( cos(f_g(x_g^i), f_r(x_r^j)) / τ )`; `symmetric` averages it with the
  other direction; `sigmoid` takes every pair as a yes-no question (`contrastive.sigmoid_loss` with
  scale 1 / τ).

  Args:
    generated, real: unit-norm embeddings; row i of one is the partner of row i of the other.
    has_partner: rows without a partner count neither as queries nor as negatives.
    temperature: τ, 0.07 in the paper; a learned one is `1 / scale`.
    form: see above.
    group: other rows of the same group (the same caption, say) are no negatives. The sources do
      not speak of them; without this, two scenes of one caption would be pushed apart.
    bias: of the sigmoid form; None: `-log(n - 1)` for n rows with a partner, the log-odds that a
      pair picked at random is a match.

  Returns: nats per generated image with a partner; 0 when there is none.
  Source: GMAIL, arXiv 2602.15368, equation 1.
  """
  generated, real = generated.astype(jnp.float32), real.astype(jnp.float32)
  logits = generated @ real.T / jnp.asarray(temperature, jnp.float32)
  size = logits.shape[0]
  own = jnp.eye(size, dtype=bool)
  counts = has_partner[None, :] & has_partner[:, None]
  if group is not None:
    counts &= own | (group[:, None] != group[None, :])
  total = jnp.maximum(1, jnp.sum(has_partner))
  if form == 'sigmoid':
    if bias is None:
      bias = -jnp.log(jnp.maximum(1.0, total - 1.0))
    logits = logits + jnp.asarray(bias, jnp.float32)
    pairs = jnp.sum(jnp.where(counts, jax.nn.softplus(logits), 0.0))
    matched = jnp.sum(jnp.where(has_partner, jnp.diagonal(logits), 0.0))
    return (pairs - matched) / total
  # rows without a partner keep their own entry, or their softmax would be over nothing
  masked = jnp.where(counts | own, logits, -jnp.inf)
  directions = [_cross_entropy(masked, axis) for axis in ((1,) if form == 'one_way' else (1, 0))]
  losses = sum(directions) / len(directions)
  return jnp.sum(jnp.where(has_partner, losses, 0.0)) / total


def _cross_entropy(logits: Float[Array, 'batch batch'], axis: int) -> Float[Array, 'batch']:
  """Of the diagonal, among the entries along `axis`."""
  return jax.nn.logsumexp(logits, axis=axis) - jnp.diagonal(logits)
