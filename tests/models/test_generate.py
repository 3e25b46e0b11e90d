"""Tokens that are drawn: from which, how often, and the same ones for the same key."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.config import build
from align_jax.models.flat import Skeleton
from align_jax.models.generate import Prompt, choose, sample
from align_jax.models.multimodal import Multimodal, MultimodalConfig
from tests import tiny

SHARES = np.array([0.15, 0.5, 0.05, 0.3])
DRAWN = 4000


@pytest.mark.parametrize(
  ('temperature', 'top_p', 'wanted'),
  [
    (1.0, 1.0, SHARES),
    (0.5, 1.0, SHARES**2 / (SHARES**2).sum()),
    (1.0, 0.6, [0, 0.5 / 0.8, 0, 0.3 / 0.8]),  # 0.5 are too few, with the next it is enough
    (1.0, 0.9, [0.15 / 0.95, 0.5 / 0.95, 0, 0.3 / 0.95]),
    (0.5, 0.75, [0, 0.25 / 0.34, 0, 0.09 / 0.34]),  # the shares are those after the temperature
    (1.0, 1e-6, [0, 1, 0, 0]),
    (0.0, 0.5, [0, 1, 0, 0]),
  ],
)
def test_choices_are_as_frequent_as_they_are_likely(temperature, top_p, wanted):
  logits = jnp.tile(jnp.log(jnp.asarray(SHARES)), (DRAWN, 1))
  drawn = np.asarray(choose(logits, jax.random.key(0), temperature, top_p))
  shares = np.bincount(drawn, minlength=4) / DRAWN
  assert (shares[np.asarray(wanted) == 0] == 0).all()
  np.testing.assert_allclose(shares, wanted, atol=5 * np.sqrt(0.25 / DRAWN))


def test_a_key_draws_the_same_text_again_and_an_end_ends_it():
  config = build(MultimodalConfig, {**tiny.MULTIMODAL}, 'config.model')
  skeleton = Skeleton(lambda rngs: Multimodal(config, rngs))
  params = skeleton.init(jax.random.key(0))
  rng = np.random.default_rng(0)
  tokens = jnp.asarray(rng.integers(2, 300, (3, 5)), jnp.int32)
  prompt = Prompt(tokens, jnp.ones_like(tokens))

  @functools.partial(jax.jit, static_argnums=1)
  def written(key, end_id):
    model = skeleton.bind(params)
    return sample(model, prompt, key, most=8, end_id=end_id, pad_id=1, temperature=1.0, top_p=0.9)

  first = np.asarray(written(jax.random.key(1), -1))
  np.testing.assert_array_equal(np.asarray(written(jax.random.key(1), -1)), first)
  assert (np.asarray(written(jax.random.key(2), -1)) != first).any()
  end = int(first[0, 3])
  ended = np.asarray(written(jax.random.key(1), end))
  for row, whole in zip(ended, first, strict=True):
    at = np.flatnonzero(whole == end)
    last = at[0] + 1 if len(at) else len(whole)
    np.testing.assert_array_equal(row[:last], whole[:last])
    assert (row[last:] == 1).all()
