"""The language loss against float64 NumPy and PyTorch; what of a text is learnt."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.losses.language import cross_entropy, language_sums, next_tokens

TOKENS = jnp.array([[4, 1, 5, 6, 2, 0, 0], [3, 7, 2, 3, 8, 9, 2]])
SEGMENT = jnp.array([[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 2, 2, 2, 2]])
ANSWER = jnp.array([[0, 0, 0, 1, 1, 0, 0], [0, 1, 1, 1, 0, 1, 1]], bool)


def logits(seed=0, dtype=jnp.float32):
  return 3 * jax.random.normal(jax.random.key(seed), (2, 7, 11), dtype)


def loss(x):
  sums = language_sums(x, TOKENS, SEGMENT, ANSWER)
  return jnp.sum(sums['nll']) / jnp.sum(sums['count'])


def test_what_is_learnt():
  targets, learnt = next_tokens(TOKENS, SEGMENT, ANSWER)
  assert [row[own].tolist() for row, own in zip(targets, np.asarray(learnt), strict=True)] == [
    [6, 2],
    [7, 2, 9, 2],  # not the first token of the second text, though it is marked
  ]


def test_sums_and_gradient_match_float64_numpy():
  x = logits()
  x64 = np.asarray(x, np.float64)
  log_p = x64 - np.log(np.exp(x64).sum(-1, keepdims=True))
  wanted, gradient = np.zeros(2), np.zeros_like(x64)
  places = {0: [(2, 6), (3, 2)], 1: [(0, 7), (1, 2), (4, 9), (5, 2)]}
  for row, pairs in places.items():
    for place, token in pairs:
      wanted[row] -= log_p[row, place, token]
      gradient[row, place] += np.exp(log_p[row, place])
      gradient[row, place, token] -= 1
  sums = language_sums(x, TOKENS, SEGMENT, ANSWER)
  np.testing.assert_allclose(sums['nll'], wanted, rtol=1e-6)
  np.testing.assert_array_equal(sums['count'], [2, 4])
  means = [wanted[0] / 2, -sum(log_p[1, p, t] for p, t in places[1][:2]) / 2]
  means[1] -= sum(log_p[1, p, t] for p, t in places[1][2:]) / 2
  np.testing.assert_allclose(sums['mean_nll'], means, rtol=1e-6)
  best = x64.argmax(-1)
  right = [sum(best[row, p] == t for p, t in pairs) for row, pairs in places.items()]
  np.testing.assert_array_equal(sums['right'], right)
  np.testing.assert_allclose(jax.grad(loss)(x), gradient / 6, atol=1e-7)


def test_it_is_the_loss_of_pytorch():
  torch = pytest.importorskip('torch')
  x = logits(1)
  targets = np.array(jnp.where(ANSWER & (SEGMENT > 0), TOKENS, -100))
  targets[1, 3] = -100  # another text begins
  theirs = torch.nn.functional.cross_entropy(
    torch.tensor(np.asarray(x)[:, :-1]).reshape(-1, 11),
    torch.tensor(targets[:, 1:], dtype=torch.long).reshape(-1),
  )
  np.testing.assert_allclose(loss(x), theirs.item(), rtol=1e-6)


def test_whole_answers_are_right_only_if_all_tokens_are():
  x = np.zeros((2, 7, 11), np.float32)
  targets, _ = next_tokens(TOKENS, SEGMENT, ANSWER)
  np.put_along_axis(x[:, :-1], np.asarray(targets)[..., None], 9.0, axis=-1)
  # two texts are packed into the second row
  sums = language_sums(jnp.asarray(x), TOKENS, SEGMENT, ANSWER)
  assert (sums['whole'].tolist(), sums['texts'].tolist()) == ([1, 2], [1, 2])
  x[1, 4] = 0
  x = jnp.asarray(x)
  sums = language_sums(x, TOKENS, SEGMENT, ANSWER)
  assert (sums['whole'].tolist(), sums['texts'].tolist()) == ([1, 1], [1, 2])
  sums = language_sums(x, TOKENS, SEGMENT, ANSWER & False)
  assert (sums['whole'].tolist(), sums['texts'].tolist()) == ([0, 0], [0, 0])


def test_large_logits_and_few_bits():
  x = jnp.asarray([[1e4, -1e4, 0.0]])
  np.testing.assert_allclose(cross_entropy(x, jnp.asarray([1])), [2e4])
  assert cross_entropy(logits(2, jnp.bfloat16), jnp.asarray(TOKENS)).dtype == jnp.float32
