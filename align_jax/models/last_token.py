"""The embedding of a generative model: what it is about to say."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from align_jax.models.adapter import Gate
from align_jax.models.multimodal import Multimodal


def last_hidden(
  model: Multimodal,
  tokens: Int[Array, 'batch length'],
  segment: Int[Array, 'batch length'],
  images: Array | None = None,
  gate: Gate = None,
  image_gate: Gate = None,
) -> Float[Array, 'batch width']:
  """The last token's hidden state, after the last norm, as a unit vector; no head.

  Args:
    model: bound to parameters.
    tokens: prompts, padded on the left.
    segment, images, gate, image_gate: see `Multimodal.__call__`.

  Returns: float32.

  Source: SaHa, arXiv 2508.00955, section 3.1.
  """
  hidden = model(tokens, segment, images, gate=gate, image_gate=image_gate, last=True)
  x = hidden[:, -1].astype(jnp.float32)
  return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6)
