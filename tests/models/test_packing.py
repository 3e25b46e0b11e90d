"""Several texts in one row, and prefixes: what tokens see of each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from align_jax.models.decoder import SHARED
from tests import tiny

DECODER = tiny.MULTIMODAL['decoder']
IMAGE = tiny.MULTIMODAL['image_id']


@functools.cache
def made():
  skeleton = tiny.method(tiny.CAPTION, tiny.MULTIMODAL)[1]
  rng = np.random.default_rng(0)
  return skeleton, {
    n: rng.normal(0, 0.3, s.shape).astype(np.float32) + n.endswith('scale')
    for n, s in skeleton.shapes.items()
  }


@jax.jit
def hidden(tokens, segment, images, prefix=None):
  skeleton, params = made()
  params = {name: jnp.asarray(value) for name, value in params.items()}
  return skeleton.bind(params)(tokens, segment, images, prefix=prefix)


def text(rng, before, after):
  return np.concatenate([rng.integers(3, 300, before), [IMAGE] * 16, rng.integers(3, 300, after)])


def test_packed_texts_have_the_hidden_states_that_they_have_alone():
  rng = np.random.default_rng(1)
  texts = [text(rng, 2, 5), text(rng, 4, 1), rng.integers(3, 300, 6)]
  images = rng.integers(0, 256, (1, 2, 32, 32, 3)).astype(np.uint8)
  length = sum(map(len, texts)) + 4
  tokens, segment = np.zeros((1, length), np.int32), np.zeros((1, length), np.int32)
  starts = np.cumsum([0, *map(len, texts)])
  for i, (start, own) in enumerate(zip(starts, texts, strict=False)):
    tokens[0, start : start + len(own)], segment[0, start : start + len(own)] = own, i + 1
  packed = np.asarray(hidden(tokens, segment, images))
  for i, (start, own) in enumerate(zip(starts, texts, strict=False)):
    row, ones = own[None].astype(np.int32), np.ones((1, len(own)), np.int32)
    alone = hidden(row, ones, images[:, i : i + 1] if i < 2 else None)
    np.testing.assert_allclose(packed[:, start : start + len(own)], alone, atol=2e-5)


def test_texts_that_share_their_beginning_have_the_hidden_states_that_they_have_alone():
  rng = np.random.default_rng(4)
  shared = text(rng, 2, 1)
  rests = [rng.integers(3, 300, size) for size in (5, 1, 7)]
  images = rng.integers(0, 256, (1, 1, 32, 32, 3)).astype(np.uint8)
  blind = rng.integers(3, 300, 6)  # comes first and shares nothing
  row = np.concatenate([blind, shared, *rests, [0, 0]])[None].astype(np.int32)
  numbers = [1] * 6 + [SHARED] * len(shared)
  numbers += [i + 2 for i, rest in enumerate(rests) for _ in rest]
  together = np.asarray(hidden(row, np.array([[*numbers, 0, 0]], np.int32), images))
  own = blind[None].astype(np.int32)
  np.testing.assert_allclose(together[:, :6], hidden(own, np.ones_like(own), None), atol=2e-5)
  together, start = together[:, 6:], len(shared)
  for rest in rests:
    own = np.concatenate([shared, rest])[None].astype(np.int32)
    alone = np.asarray(hidden(own, np.ones_like(own), images))
    np.testing.assert_allclose(together[:, : len(shared)], alone[:, : len(shared)], atol=2e-5)
    got = together[:, start : start + len(rest)]
    np.testing.assert_allclose(got, alone[:, len(shared) :], atol=2e-5)
    start += len(rest)


def test_tokens_of_a_prefix_see_each_other_and_nothing_after_it():
  rng = np.random.default_rng(2)
  tokens = np.stack([text(rng, 3, 6)] * 2).astype(np.int32)
  segment = np.ones_like(tokens)
  images = np.repeat(rng.integers(0, 256, (1, 1, 32, 32, 3)).astype(np.uint8), 2, axis=0)
  prefix = np.arange(tokens.shape[1]) < 21
  prefix = np.stack([prefix, prefix])
  tokens[1, 20] = 7  # the last of the prefix
  tokens[1, 24] = 7  # and one after it
  plain = np.asarray(hidden(tokens, segment, images))
  seen = np.asarray(hidden(tokens, segment, images, prefix))
  np.testing.assert_array_equal(plain[0, :20], plain[1, :20])
  assert (np.abs(seen[0, :20] - seen[1, :20]).max(axis=1) > 1e-4).all()
  # what comes after sees back alone
  tokens[1, 20] = tokens[0, 20]
  seen = np.asarray(hidden(tokens, segment, images, prefix))
  np.testing.assert_allclose(seen[0, :24], seen[1, :24], atol=1e-6)
  assert (np.abs(seen[0, 24:] - seen[1, 24:]).max(axis=1) > 1e-4).all()
  # an empty prefix changes nothing
  none = np.zeros_like(prefix)
  np.testing.assert_array_equal(
    hidden(tokens, segment, images, none), hidden(tokens, segment, images)
  )


def test_a_prefix_stays_within_its_text():
  rng = np.random.default_rng(3)
  both = rng.integers(3, 300, (1, 10)).astype(np.int32)
  segment = np.repeat([[1, 2]], 5, axis=1).astype(np.int32)
  prefix = np.ones((1, 10), bool)
  packed = np.asarray(hidden(both, segment, None, prefix))
  alone = hidden(both[:, 5:], segment[:, 5:], None, prefix[:, 5:])
  np.testing.assert_allclose(packed[:, 5:], alone, atol=2e-5)
