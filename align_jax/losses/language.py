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
    segment: which of the packed texts a token is of; 0 for padding. The first token of a text is
      not foretold by the one before it, which is another's last.
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
    `count` of them, `right` of those that are the likeliest token; `whole` is 1 where all of a row
    are. The loss of a batch is the sum of all `nll` by the sum of all `count`.
  """
  targets, learnt = next_tokens(tokens, segment, answer)
  logits = logits[:, :-1]
  nll = jnp.where(learnt, cross_entropy(logits, targets), 0.0)
  right = learnt & (jnp.argmax(logits, axis=-1) == targets)
  count, hits = (jnp.sum(x, axis=1, dtype=jnp.float32) for x in (learnt, right))
  return {
    'nll': jnp.sum(nll, axis=1),
    'count': count,
    'right': hits,
    'whole': ((hits == count) & (count > 0)).astype(jnp.float32),
  }
