"""InfoNCE and the sigmoid loss against float64 references, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.losses.contrastive import info_nce, sigmoid_loss, symmetric_info_nce
from tests.losses import reference

SHAPES = [(1, 1, 4), (5, 5, 3), (3, 7, 8), (8, 2, 16)]
SCALES = [1.0, 14.3, 100.0]


def _check(fn, expected, *args):
  """Values and gradients by every argument agree with the reference."""
  arrays = [jnp.asarray(a, jnp.float32) for a in args]
  value, got = jax.jit(jax.value_and_grad(fn, argnums=tuple(range(len(args)))))(*arrays)
  assert value.dtype == jnp.float32
  # the reference sees the same rounded inputs
  rounded = [np.asarray(a, np.float64) for a in arrays]
  np.testing.assert_allclose(value, expected(*rounded), rtol=1e-5, atol=1e-5)
  for mine, theirs in zip(got, reference.gradients(expected, *rounded), strict=True):
    np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-4 * max(1, np.abs(theirs).max()))


@pytest.mark.parametrize('scale', SCALES)
@pytest.mark.parametrize('batch', [1, 2, 6])
def test_info_nce_matches_row_by_row(batch, scale):
  rng = np.random.default_rng(batch)
  query, key = reference.unit(rng, batch, 5), reference.unit(rng, batch, 5)
  own = [[i] for i in range(batch)]
  _check(info_nce, lambda q, k, s: reference.info_nce(q, k, s, own), query, key, scale)
  if batch == 1:
    assert info_nce(jnp.asarray(query), jnp.asarray(key), scale) == 0


@pytest.mark.parametrize(('queries', 'keys', 'dim'), SHAPES)
def test_info_nce_takes_all_of_a_group_as_positives(queries, keys, dim):
  rng = np.random.default_rng(queries * keys)
  query, key = reference.unit(rng, queries, dim), reference.unit(rng, keys, dim)
  query_group, key_group = rng.integers(0, 3, queries), rng.integers(0, 3, keys)
  key_group[0] = query_group[0]
  positives = reference.matches(query_group, key_group)
  _check(
    lambda q, k, s: info_nce(q, k, s, jnp.asarray(query_group), jnp.asarray(key_group)),
    lambda q, k, s: reference.info_nce(q, k, s, positives),
    query,
    key,
    14.3,
  )


def test_info_nce_of_queries_without_positives_is_zero_with_zero_gradients():
  rng = np.random.default_rng(0)
  query, key = (jnp.asarray(reference.unit(rng, 3, 4)) for _ in range(2))
  groups = jnp.array([1, 2, 3]), jnp.array([4, 5, 6])
  value, gradient = jax.value_and_grad(info_nce)(query, key, 10.0, *groups)
  assert value == 0
  assert not gradient.any()


def test_distinct_groups_equal_no_groups():
  rng = np.random.default_rng(1)
  query, key = (jnp.asarray(reference.unit(rng, 6, 4)) for _ in range(2))
  group = jnp.arange(6) * 7
  for fn in (info_nce, symmetric_info_nce, lambda *a: sigmoid_loss(*a[:3], -2.0, *a[3:])):
    np.testing.assert_allclose(fn(query, key, 9.0, group, group), fn(query, key, 9.0), rtol=1e-6)


@pytest.mark.parametrize('grouped', [False, True])
@pytest.mark.parametrize('batch', [1, 4, 7])
def test_symmetric_is_the_mean_of_both_directions(batch, grouped):
  rng = np.random.default_rng(batch)
  image, text = reference.unit(rng, batch, 6), reference.unit(rng, batch, 6)
  groups = rng.integers(0, 3, (2, batch)) if grouped else np.arange(batch)[None].repeat(2, 0)
  there, back = reference.matches(*groups), reference.matches(*groups[::-1])
  jax_groups = tuple(jnp.asarray(g) for g in groups) if grouped else ()
  _check(
    lambda x, y, s: symmetric_info_nce(x, y, s, *jax_groups),
    lambda x, y, s: (reference.info_nce(x, y, s, there) + reference.info_nce(y, x, s, back)) / 2,
    image,
    text,
    14.3,
  )


@pytest.mark.parametrize('bias', [-10.0, -2.71, 0.0])
@pytest.mark.parametrize('batch', [1, 3, 8])
def test_sigmoid_equals_the_dense_form(batch, bias):
  rng = np.random.default_rng(batch)
  image, text = reference.unit(rng, batch, 6), reference.unit(rng, batch, 6)
  labels = 2 * np.eye(batch) - 1
  _check(
    sigmoid_loss,
    lambda x, y, s, b: reference.sigmoid(x, y, s, b, labels),
    image,
    text,
    10.0,
    bias,
  )


def test_sigmoid_takes_all_of_a_group_as_matches():
  rng = np.random.default_rng(3)
  image, text = reference.unit(rng, 6, 5), reference.unit(rng, 6, 5)
  groups = np.array([0, 0, 1, 2, 1, 3]), np.array([0, 1, 1, 2, 4, 3])
  labels = np.where(groups[0][:, None] == groups[1][None, :], 1, -1)
  _check(
    lambda x, y, s, b: sigmoid_loss(x, y, s, b, *(jnp.asarray(g) for g in groups)),
    lambda x, y, s, b: reference.sigmoid(x, y, s, b, labels),
    image,
    text,
    10.0,
    -3.0,
  )


def test_bfloat16_embeddings_are_computed_in_float32():
  rng = np.random.default_rng(4)
  image, text = (jnp.asarray(reference.unit(rng, 5, 8), jnp.bfloat16) for _ in range(2))
  wide = [x.astype(jnp.float32) for x in (image, text)]
  assert symmetric_info_nce(image, text, 100.0) == symmetric_info_nce(*wide, 100.0)
  assert sigmoid_loss(image, text, 100.0, -10.0) == sigmoid_loss(*wide, 100.0, -10.0)


def test_groups_come_in_pairs_and_rows_match():
  x = jnp.eye(3)
  with pytest.raises(ValueError, match='both or neither'):
    info_nce(x, x, 1.0, jnp.arange(3))
  with pytest.raises(ValueError, match='both or neither'):
    sigmoid_loss(x, x, 1.0, 0.0, None, jnp.arange(3))
  with pytest.raises(ValueError, match='3 queries and 2 keys'):
    info_nce(x, x[:2], 1.0)
