"""Attention behind one function, so that a backend can be chosen in one place."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Bool, Float

from align_jax.models.splash import splash_attention

KEPT = 'attention'  # the name, for rematerialisation, of what of attention is dear to compute again

Backend = Literal['plain', 'splash', 'cudnn']

# Shorter sequences have logits that fit a TPU's fast memory, and splash would pad much of them.
_LONG = 512


def backend_of(platform: str) -> Backend:
  """The backend for a JAX platform: `tpu`, `gpu` (`cuda`), or any other."""
  if platform == 'tpu':
    return 'splash'
  return 'cudnn' if platform in ('gpu', 'cuda') else 'plain'


def attend(
  query: Float[Array, 'batch length heads size'],
  key: Float[Array, 'batch keys groups size'],
  value: Float[Array, 'batch keys groups size'],
  mask: Bool[Array, '#batch 1 #length keys'] | None = None,
  backend: Backend = 'plain',
) -> Float[Array, 'batch length heads size']:
  """Returns softmax(q k / √size) v for every head; the softmax is computed in float32.

  Args:
    query, key, value: any head size; several query heads may share a head of keys and values.
    mask: True where a query may look. Every query needs a key it may look at.
    backend: `plain` holds all logits; `splash` (TPU, long sequences without a mask) and `cudnn`
      (16-bit numbers) do not. What a backend cannot do or is no better at, `plain` does.

  Source: Vaswani et al. 2017, arXiv 1706.03762, equation 1; without holding the logits, Dao et al.
    2022, arXiv 2205.14135; shared keys and values, Ainslie et al. 2023, arXiv 2305.13245.
  """
  heads, groups = query.shape[2], key.shape[2]
  if backend == 'splash' and mask is None and min(query.shape[1], key.shape[1]) >= _LONG:
    key, value = (jnp.repeat(x, heads // groups, axis=2) for x in (key, value))
    return checkpoint_name(splash_attention(query, key, value), KEPT)
  if backend == 'cudnn' and _fits_cudnn(query):
    return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation='cudnn')
  # heads before tokens, said here: left to choose, XLA's CPU backend puts size before tokens and
  # takes a quarter longer
  query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
  batch, _, length, size = query.shape
  # all that share keys in one product
  query = (query * size**-0.5).reshape(batch, groups, -1, size)
  # float32 out of the product itself: a bfloat16 logit of 20 is right to 0.06 only
  logits = jnp.einsum('bhld,bhkd->bhlk', query, key, preferred_element_type=jnp.float32)
  logits = logits.reshape(batch, heads, length, -1)
  if mask is not None:
    logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
  weights = _softmax(logits, query.dtype).reshape(batch, groups, -1, key.shape[2])
  out = jnp.einsum('bhlk,bhkd->bhld', weights, value).reshape(batch, heads, length, size)
  return checkpoint_name(jnp.swapaxes(out, 1, 2), KEPT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _softmax(
  logits: Float[Array, 'batch heads length keys'], dtype: jnp.dtype
) -> Float[Array, 'batch heads length keys']:
  """Softmax of float32 logits, in `dtype`; its backward pass needs no more than that result.

  JAX's own keeps the float32 weights beside the rounded ones: three times the memory in bfloat16.
  """
  return jax.nn.softmax(logits, axis=-1).astype(dtype)


def _softmax_forward(logits: Array, dtype: jnp.dtype) -> tuple[Array, Array]:
  weights = checkpoint_name(_softmax(logits, dtype), KEPT)
  return weights, weights


def _softmax_backward(dtype: jnp.dtype, weights: Array, gradient: Array) -> tuple[Array]:
  del dtype
  weights, gradient = weights.astype(jnp.float32), gradient.astype(jnp.float32)
  mean = jnp.sum(weights * gradient, axis=-1, keepdims=True)
  return (weights * (gradient - mean),)


_softmax.defvjp(_softmax_forward, _softmax_backward)


def _fits_cudnn(query: Array) -> bool:
  size = query.shape[-1]
  return query.dtype in (jnp.bfloat16, jnp.float16) and size % 8 == 0 and size <= 128
