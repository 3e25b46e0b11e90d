"""Attention behind one function, so that a backend can be chosen in one place."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float


def attend(
  query: Float[Array, 'batch length heads size'],
  key: Float[Array, 'batch keys heads size'],
  value: Float[Array, 'batch keys heads size'],
  mask: Bool[Array, '#batch 1 #length keys'] | None = None,
) -> Float[Array, 'batch length heads size']:
  """Returns softmax(q k / √size) v for every head; the softmax is computed in float32.

  Args:
    query, key, value: any head size.
    mask: True where a query may look. Every query needs a key it may look at.

  Source: Vaswani et al. 2017, arXiv 1706.03762, equation 1.
  """
  scale = query.shape[-1] ** -0.5
  # float32 out of the product itself: a bfloat16 logit of 20 is right to 0.06 only
  logits = jnp.einsum('blhd,bkhd->bhlk', query * scale, key, preferred_element_type=jnp.float32)
  if mask is not None:
    logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
  weights = jax.nn.softmax(logits, axis=-1).astype(query.dtype)
  return jnp.einsum('bhlk,bkhd->blhd', weights, value)
