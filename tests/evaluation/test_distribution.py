import itertools

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial.distance

from align_jax.evaluation import distribution as dist


def naive_manifold(real, generated, k):
  real, generated = real.astype(np.float64), generated.astype(np.float64)
  inner = [np.sort(scipy.spatial.distance.cdist(x, x), axis=1)[:, k] for x in (real, generated)]
  cross = scipy.spatial.distance.cdist(real, generated)
  near = cross <= inner[0][:, None]
  return dist.Manifold(
    precision=near.any(axis=0).mean(),
    recall=(cross <= inner[1]).any(axis=1).mean(),
    density=near.sum() / (k * len(generated)),
    coverage=near.any(axis=1).mean(),
  )


def exact(mean, spread, rows, seed=0):
  """Points whose sample mean and covariance are these to the last digit."""
  dim = len(mean)
  x = np.random.default_rng(seed).normal(size=(rows, dim))
  x -= x.mean(axis=0)
  x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T).reshape(dim, dim))).T
  return x @ np.linalg.cholesky(spread).T + mean


def test_dispersion_equals_a_plain_loop(unit):
  x = 3 * unit(9)  # length does not matter
  cosines = 1 - scipy.spatial.distance.pdist(x.astype(np.float64), 'cosine')
  assert dist.dispersion(x) == pytest.approx(1 - cosines.mean())
  assert dist.dispersion(np.eye(5)) == 1
  assert dist.dispersion(np.repeat(x[:1], 4, axis=0)) == pytest.approx(0, abs=1e-12)
  assert dist.dispersion(np.asarray([[1.0, 0], [-1, 0]])) == 2
  with pytest.raises(ValueError, match='two rows'):
    dist.dispersion(x[:1])


def test_dispersion_of_each_category(unit):
  x, names = unit(10), ['b', 'a', 'b', 'b', 'a', 'alone', 'b', 'a', 'b', 'b']
  found = dist.category_dispersion(x, names)
  assert list(found) == ['a', 'b']
  for name in found:
    assert found[name] == pytest.approx(dist.dispersion(x[np.asarray(names) == name]))
  assert dist.category_dispersion(x[:0], []) == {}


@pytest.mark.parametrize('k', [1, 3, 5])
def test_manifold_equals_the_naive_one(k):
  rng = np.random.default_rng(k)
  real = rng.normal(size=(83, 6)).astype(np.float32)
  generated = (0.7 * rng.normal(size=(57, 6)) + 0.5).astype(np.float32)
  expected = naive_manifold(real, generated, k)
  for block in (dist.BLOCK, 7, 300):
    assert dist.manifold(real, generated, k, block=block) == expected
  assert 0 < expected.coverage < 1 and 0 < expected.recall < 1


def test_manifold_of_equal_distributions_in_closed_form():
  n, m, k = 900, 700, 5
  expected = 1 - np.prod([(n - i) / (m + n - i) for i in range(1, k + 1)])
  runs = []
  for seed in range(6):
    rng = np.random.default_rng(seed)
    runs.append(dist.manifold(rng.normal(size=(n, 4)), rng.normal(size=(m, 4)), k))
  assert np.mean([r.coverage for r in runs]) == pytest.approx(expected, abs=0.01)
  assert np.mean([r.density for r in runs]) == pytest.approx(1, abs=0.03)


def test_manifold_of_apart_and_of_collapsed_sets(unit):
  x = unit(40).astype(np.float64)
  assert dist.manifold(x, x + 9, 3) == dist.Manifold(0.0, 0.0, 0.0, 0.0)
  assert dist.manifold(x, x, 3).coverage == 1
  # one point again and again: all of it real, little of the real covered, nothing recalled
  collapsed = dist.manifold(x, np.repeat(x[:1], 40, axis=0), 3)
  assert collapsed.precision == 1 and collapsed.recall == 1 / 40
  assert collapsed.coverage < 0.5


def test_copies_lie_on_each_other(unit):
  x = np.repeat(unit(6, dim=96), 5, axis=0)  # radii of 0, up to rounding
  found = dist.manifold(x, x[::-1].copy(), 4)
  assert (found.precision, found.recall, found.coverage) == (1, 1, 1)


def test_manifold_needs_more_than_k(unit):
  with pytest.raises(ValueError, match='more than k = 5'):
    dist.manifold(unit(5), unit(50))


def test_frechet_of_gaussians_in_closed_form():
  a, b = np.diag([1.0, 4.0, 0.25]), np.diag([9.0, 1.0, 0.25])
  x, y = exact([0, 0, 0], a, 60), exact([1, 0, 2], b, 50, seed=1)
  assert dist.frechet_distance(x, y) == pytest.approx(5 + (1 - 3) ** 2 + (2 - 1) ** 2)
  assert dist.frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
  one = dist.frechet_distance(exact([2.0], np.eye(1), 20), exact([0.0], 9 * np.eye(1), 30))
  assert one == pytest.approx(2**2 + (3 - 1) ** 2)


def test_frechet_equals_the_matrix_root_of_scipy():
  rng = np.random.default_rng(0)
  x = (rng.normal(size=(200, 7)) @ rng.normal(size=(7, 7))).astype(np.float32)
  y = (rng.normal(size=(150, 7)) @ rng.normal(size=(7, 7)) + 1).astype(np.float32)
  s, t = (np.cov(z.astype(np.float64).T) for z in (x, y))
  means = x.astype(np.float64).mean(axis=0) - y.astype(np.float64).mean(axis=0)
  expected = means @ means + np.trace(s + t - 2 * scipy.linalg.sqrtm(s @ t).real)
  assert dist.frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_frechet_of_few_rows_is_finite_and_too_large(unit):
  few = dist.frechet_distance(unit(20, dim=64), unit(20, dim=64, seed=1))
  many = dist.frechet_distance(unit(2000, dim=64), unit(2000, dim=64, seed=1))
  assert 0 < many < few / 5  # both of one distribution: truly 0


def test_kernel_distance_equals_a_plain_loop(unit):
  x, y = unit(9), unit(6, seed=1)

  def mean(a, b, same):
    pairs = [(i, j) for i in range(len(a)) for j in range(len(b)) if not (same and i == j)]
    return np.mean([(a[i].astype(np.float64) @ b[j] + 1) ** 3 for i, j in pairs])

  expected = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
  for block in (dist.BLOCK, 7):
    assert dist.kernel_distance(x, y, block=block) == pytest.approx(expected, abs=1e-9)
  twice = [np.repeat(np.asarray([p]), 4, axis=0) for p in ([1.0, 0.0], [0.0, 1.0])]
  assert dist.kernel_distance(*twice) == pytest.approx(8 + 8 - 2 * 1)


def test_kernel_distance_has_no_bias():
  # of two distributions on three points each, every sample of two rows, equally likely
  p, q = np.eye(3), np.asarray([[1.0, 0, 0], [0.6, 0.8, 0], [0, 0.6, 0.8]])
  gram = [(a @ b.T + 1) ** 3 for a, b in ((p, p), (q, q), (p, q))]
  truth = gram[0].mean() + gram[1].mean() - 2 * gram[2].mean()
  drawn = list(itertools.product(range(3), repeat=2))
  found = [dist.kernel_distance(p[list(i)], q[list(j)]) for i in drawn for j in drawn]
  assert np.mean(found) == pytest.approx(truth)
  assert min(found) < 0  # and so a single one may be below 0


def test_compare_measures_all_and_notes_small_samples(unit):
  real, generated = unit(100, dim=8), unit(90, dim=8, seed=1)
  found = dist.compare(real, generated, 3)
  assert (found.real_count, found.generated_count) == (100, 90)
  assert found.dispersion == dist.dispersion(generated)
  assert found.manifold == dist.manifold(real, generated, 3)
  assert found.frechet == dist.frechet_distance(real, generated)
  assert found.kernel == dist.kernel_distance(real, generated)
  assert found.notes == ()
  few = dist.compare(real, generated[:8], 3)
  assert 'rank 7 at most' in few.notes[0]
  assert 'fewer than ten a dimension' in dist.compare(real[:40], generated, 3).notes[0]


def test_compare_of_next_to_nothing(unit):
  found = dist.compare(unit(50), unit(1, seed=1), 3)
  assert found.manifold is found.frechet is found.kernel is found.dispersion is None
  assert len(found.notes) == 2
  with pytest.raises(ValueError, match='generated embeddings are not finite'):
    dist.compare(unit(9), np.full((9, 8), np.nan, np.float32))
