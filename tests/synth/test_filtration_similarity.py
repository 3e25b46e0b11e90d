"""Similarity to the real: against float64, on one device and split over eight."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.errors import UserError
from align_jax.parallel.mesh import MeshConfig, make_mesh
from align_jax.synth.filtration import similarity as lib
from align_jax.synth.filtration.similarity import (
  largest,
  mean_similarity,
  nearest_similarity,
  padded,
  row_cosines,
)

DIM = 12


def unit(seed: int, count: int, dim: int = DIM) -> np.ndarray:
  x = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def pool(n: int = 900, m: int = 700, categories: int = 7) -> tuple[np.ndarray, ...]:
  """Categories of very unlike sizes; the last one has no real, the first no generated images."""
  rng = np.random.default_rng(0)
  share = np.arange(1, categories + 1.0) ** 3
  category = rng.choice(categories, n, p=share / share.sum())
  real_category = rng.choice(categories - 1, m, p=share[:-1] / share[:-1].sum())
  category[category == 0] = 1
  return unit(1, n), category, unit(2, m), real_category


def reference(x, category, real, real_category, k: int = 0) -> np.ndarray:
  """All cosines in float64, one image after another."""
  out = np.full(len(x), np.nan)
  for i, (row, name) in enumerate(zip(x.astype(np.float64), category, strict=True)):
    cosines = np.sort(real[real_category == name].astype(np.float64) @ row)
    if len(cosines):
      out[i] = cosines[-k:].mean()
  return out


def all_devices():
  return make_mesh(MeshConfig(data=4, fsdp=2), jax.local_devices())


@pytest.mark.parametrize('sharded', [False, True])
def test_mean_equals_all_cosines_in_float64(sharded):
  data = pool()
  mesh = all_devices() if sharded else None
  found = mean_similarity(*data, mesh=mesh, rows=512)
  want = reference(*data)
  assert np.isnan(want).any() and found.dtype == np.float32
  np.testing.assert_allclose(found, want, atol=2e-7)


@pytest.mark.parametrize(
  ('k', 'rows', 'columns', 'sharded'),
  [(10, 4096, 8192, False), (10, 128, 64, False), (3, 512, 128, True), (1, 64, 32, False)],
)
def test_nearest_equals_all_cosines_in_float64(k, rows, columns, sharded):
  data = pool()
  mesh = all_devices() if sharded else None
  found = nearest_similarity(*data, k, mesh=mesh, rows=rows, columns=columns)
  np.testing.assert_allclose(found, reference(*data, k), atol=2e-7)


def test_nearest_goes_over_tiles_within_a_block():
  x, real = unit(1, 1500), unit(2, 300)
  zeros = np.zeros(1500, np.int64), np.zeros(300, np.int64)
  found = nearest_similarity(x, zeros[0], real, zeros[1], 5)
  np.testing.assert_allclose(found, reference(x, zeros[0], real, zeros[1], 5), atol=2e-7)


def test_more_neighbours_than_there_are_is_the_mean():
  data = pool(200, 60)
  np.testing.assert_allclose(
    nearest_similarity(*data, 100), mean_similarity(*data), atol=3e-7, equal_nan=True
  )


def test_the_mean_of_unit_vectors_is_not_made_a_unit_vector():
  real = np.asarray([[1, 0], [0, 1]], np.float32)
  found = mean_similarity(real, np.zeros(2, int), real, np.zeros(2, int))
  np.testing.assert_allclose(found, [0.5, 0.5])


@pytest.mark.parametrize('k', [0, 4])
def test_one_bad_embedding_is_alone(k):
  x, category, real, real_category = pool(300, 200)
  search = lambda x: (  # noqa: E731
    nearest_similarity(x, category, real, real_category, k)
    if k
    else mean_similarity(x, category, real, real_category)
  )
  clean = search(x)
  for value in (np.nan, np.inf):
    broken = x.copy()
    broken[17, 3] = value
    found = search(broken)
    assert np.isnan(found[17])
    np.testing.assert_array_equal(np.delete(found, 17), np.delete(clean, 17))


def test_nothing_to_compare():
  x, category = unit(0, 5), np.zeros(5, int)
  none = unit(0, 0), np.zeros(0, int)
  assert np.isnan(mean_similarity(x, category, *none)).all()
  assert np.isnan(nearest_similarity(x, category, *none, 3)).all()
  assert mean_similarity(*none, x, category).shape == (0,)
  assert nearest_similarity(*none, x, category, 3).shape == (0,)


def test_bad_input_is_named():
  x, category = unit(0, 5), np.zeros(5, int)
  with pytest.raises(UserError, match='12 dimensions beside real ones or texts of 8'):
    mean_similarity(x, category, unit(0, 5, 8), category)
  with pytest.raises(UserError, match='real embeddings that are not finite'):
    nearest_similarity(x, category, x * np.nan, category, 2)
  with pytest.raises(UserError, match='nearest_k: 0'):
    nearest_similarity(x, category, x, category, 0)


def test_row_cosines():
  x, texts = unit(1, 300), unit(2, 4)
  which = np.arange(300) % 4
  want = np.einsum('ij,ij->i', x.astype(np.float64), texts[which])
  np.testing.assert_allclose(row_cosines(x, texts, which, rows=128), want, atol=2e-7)


@pytest.mark.parametrize('shape', [(5, 7, 10), (4, 4096, 10), (3, 1024, 1), (3, 96, 10)])
def test_largest_is_a_sort(shape):
  n, m, k = shape
  values = np.random.default_rng(0).integers(-40, 40, (n, m)).astype(np.float32)  # many are equal
  values[0, 2:] = -np.inf
  found = np.sort(np.asarray(largest(jnp.asarray(values), k)), axis=1)
  np.testing.assert_array_equal(found, np.sort(values, axis=1)[:, -k:])


def test_few_sizes_are_compiled():
  sizes = {padded(count, 32) for count in range(1, 8193)}
  assert len(sizes) < 40
  for count in range(1, 8193):
    assert count <= padded(count, 32) <= max(64, 1.5 * count)


def test_memory_is_bounded_by_the_block():
  n, m = 40_000, 3000
  x, real = unit(1, n), unit(2, m)
  labels = np.zeros(n, np.int32), np.zeros(m, np.int32)
  nearest_similarity(x, labels[0], real, labels[1], 5, rows=1024, columns=1024)
  tracemalloc.start()
  nearest_similarity(x, labels[0], real, labels[1], 5, rows=1024, columns=1024)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  # on the host: what is returned, the order of rows, the 5 best of each, checks; no copy of x or
  # of the cosines (480 MB)
  assert peak < n * 4 * 60
  shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)  # noqa: E731
  index = lambda *s: jax.ShapeDtypeStruct(s, jnp.int32)  # noqa: E731
  temporary = []
  for rows in (1024, 4096):
    search = lib._search(None, 5).lower(  # type: ignore[attr-defined]
      shape(rows, DIM), index(rows), shape(1024, DIM), index(1024), False
    )
    temporary.append(search.compile().memory_analysis().temp_size_in_bytes)
  # on the device: the cosines of a tile, however many rows
  assert temporary[1] < 2 * temporary[0] < 2 * 4 * 512 * 1024 * 4
