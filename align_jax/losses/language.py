"""The language loss: how unlikely the tokens are that a model is to write."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int


def cross_entropy(
  logits: Float[Array, '*batch vocab'], targets: Int[Array, '*batch']
) -> Float[Array, '*batch']:
  """`log Σ exp(logits) - logits[target]`, nats, float32.

  Source: Bengio et al. 2003, JMLR 3, equation 1, as a softmax over the vocabulary.
  """
  logits = logits.astype(jnp.float32)
  right = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  return jax.nn.logsumexp(logits, axis=-1) - right


def next_tokens(
  tokens: Int[Array, 'batch length'],
  segment: Int[Array, 'batch length'],
  answer: Bool[Array, 'batch length'],
) -> tuple[Int[Array, 'batch places'], Bool[Array, 'batch places']]:
  """What each place but the last is to say next, and whether it is to be learnt.

  Args:
    tokens: of texts.
    segment: which of the packed texts a token is of, see `models.decoder.attention_mask`. The
      first token of a text is not foretold by the one before it, which is another's last.
    answer: the tokens to be learnt.
  """
  inside = segment[:, 1:] == segment[:, :-1]
  return tokens[:, 1:], answer[:, 1:] & inside & (segment[:, 1:] > 0)


def language_sums(
  logits: Float[Array, 'batch length vocab'],
  tokens: Int[Array, 'batch length'],
  segment: Int[Array, 'batch length'],
  answer: Bool[Array, 'batch length'],
) -> dict[str, Float[Array, 'batch']]:
  """The loss of each row in parts, so that rows of any number can be one batch.

  Args:
    logits: of the token after each.
    tokens, segment, answer: see `next_tokens`.

  Returns: float32 sums over a row's tokens to be learnt: `nll` of their negative log likelihoods,
    `count` of them, `right` of those that are the likeliest token. The loss of a batch is the sum
    of all `nll` by the sum of all `count`. And over its texts with tokens to be learnt: `mean_nll`
    of the means over their tokens, `texts` of them, `whole` of those that are right throughout.
  """
  targets, learnt = next_tokens(tokens, segment, answer)
  logits = logits[:, :-1]
  nll = jnp.where(learnt, cross_entropy(logits, targets), 0.0)
  right = learnt & (jnp.argmax(logits, axis=-1) == targets)
  count, hits = (jnp.sum(x, axis=1, dtype=jnp.float32) for x in (learnt, right))
  # of the text that a token is of; a text has so many tokens that each counts a share of it
  same = (segment[:, 1:, None] == segment[:, None, 1:]) & learnt[:, None, :]
  size = jnp.sum(same, axis=2, dtype=jnp.float32)
  wrong = jnp.any(same & ~right[:, None, :], axis=2)
  share = jnp.where(learnt, 1 / jnp.maximum(1.0, size), 0.0)
  return {
    'nll': jnp.sum(nll, axis=1),
    'count': count,
    'right': hits,
    'mean_nll': jnp.sum(nll * share, axis=1),
    'texts': jnp.sum(share, axis=1),
    'whole': jnp.sum(jnp.where(wrong, 0.0, share), axis=1),
  }
