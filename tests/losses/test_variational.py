import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from align_jax.losses.variational import free_bits, gaussian_kl, gaussian_nll


def numbers(seed, shape=(6, 3)):
  return np.random.default_rng(seed).normal(size=shape)


def kl64(mean, log_std, prior_mean, prior_log_std):
  """log σp/σ + (σ² + (μ - μp)²) / 2σp² - ½, in float64."""
  std, prior_std = np.exp(log_std), np.exp(prior_log_std)
  spread = (std**2 + (mean - prior_mean) ** 2) / (2 * prior_std**2)
  return prior_log_std - log_std + spread - 0.5


def test_kl_is_the_closed_form_in_float64():
  values = [numbers(i) for i in range(4)]
  got = gaussian_kl(*(jnp.asarray(v, jnp.float32) for v in values))
  np.testing.assert_allclose(got, kl64(*values), rtol=1e-5)
  standard = gaussian_kl(*(jnp.asarray(v, jnp.float32) for v in values[:2]))
  np.testing.assert_allclose(standard, kl64(*values[:2], 0.0, 0.0), rtol=1e-5)


def test_kl_is_the_integral_that_it_stands_for():
  mean, std, prior_mean, prior_std = 0.4, 0.7, -0.3, 1.3
  q, p = stats.norm(mean, std), stats.norm(prior_mean, prior_std)
  expected, _ = integrate.quad(lambda z: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), -8, 8)
  got = gaussian_kl(
    jnp.asarray(mean), jnp.log(jnp.asarray(std)), prior_mean, float(np.log(prior_std))
  )
  np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_kl_of_equals_is_zero_and_near_equality_exact():
  mean, log_std = (jnp.asarray(numbers(i), jnp.float32) for i in range(2))
  np.testing.assert_array_equal(gaussian_kl(mean, log_std, mean, log_std), 0)
  small = 1e-4  # exp(2r) - 1 - 2r in float32 would be 0 or 1.2e-7 here
  got = gaussian_kl(jnp.zeros(1), jnp.full(1, small))
  np.testing.assert_allclose(got, kl64(0.0, np.float64(small), 0.0, 0.0), rtol=1e-2)


def test_gradients_of_kl_match_the_closed_form():
  mean, log_std, prior_mean, prior_log_std = (numbers(i) for i in range(4))
  args = [jnp.asarray(v, jnp.float32) for v in (mean, log_std, prior_mean, prior_log_std)]
  by = jax.grad(lambda *a: jnp.sum(gaussian_kl(*a)), argnums=(0, 1, 2, 3))(*args)
  ratio = np.exp(2 * (log_std - prior_log_std))
  distance = (mean - prior_mean) / np.exp(2 * prior_log_std)
  np.testing.assert_allclose(by[0], distance, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(by[1], ratio - 1, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(by[2], -distance, rtol=1e-4, atol=1e-5)
  expected = 1 - ratio - (mean - prior_mean) * distance
  np.testing.assert_allclose(by[3], expected, rtol=1e-4, atol=1e-5)


def test_nll_is_that_of_scipy():
  image, mean = numbers(0, (3, 4, 4, 3)), numbers(1, (3, 4, 4, 3))
  got = gaussian_nll(jnp.asarray(image, jnp.float32), jnp.asarray(mean, jnp.float32), 0.2)
  expected = -stats.norm(mean, 0.2).logpdf(image).sum(axis=(1, 2, 3))
  np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_low_precision_is_computed_in_float32():
  half = jnp.full((2, 3), 0.1, jnp.bfloat16)
  assert gaussian_kl(half, half).dtype == jnp.float32
  assert gaussian_nll(half, half, 0.5).dtype == jnp.float32
  assert free_bits(half, 0.0).dtype == jnp.float32


def test_free_bits_are_of_the_mean_over_the_batch():
  kl = np.asarray([[0.0, 4.0, 0.3], [0.4, 2.0, 0.1]])
  np.testing.assert_allclose(free_bits(jnp.asarray(kl), 0.0), kl.sum() / 2, rtol=1e-6)
  # group means 0.2, 3.0, 0.2
  np.testing.assert_allclose(free_bits(jnp.asarray(kl), 0.5), 0.5 + 3.0 + 0.5, rtol=1e-6)
  counts = jnp.asarray([False, True])
  np.testing.assert_allclose(free_bits(jnp.asarray(kl), 0.5, counts), 0.5 + 2.0 + 0.5, rtol=1e-6)
  assert free_bits(jnp.asarray(kl), 0.0, jnp.zeros(2, bool)) == 0  # none counts: no 0 / 0
  slope = jax.grad(free_bits)(jnp.asarray(kl), 0.5)
  np.testing.assert_allclose(slope, [[0, 0.5, 0], [0, 0.5, 0]])


@pytest.mark.parametrize('std', [0.1, 1.0])
def test_the_bound_is_tight_where_the_posterior_is_exact(std):
  """One linear latent: x = z + noise. With the true posterior, the bound is -log p(x)."""
  x = 0.7
  variance = 1 / (1 + 1 / std**2)
  posterior = stats.norm(variance * x / std**2, np.sqrt(variance))
  kl = gaussian_kl(jnp.asarray(posterior.mean()), jnp.log(jnp.asarray(posterior.std())))
  # E_q of the reconstruction, by Gauss-Hermite quadrature: exact for a quadratic
  nodes, weights = np.polynomial.hermite_e.hermegauss(8)
  z = posterior.mean() + posterior.std() * nodes
  nll = gaussian_nll(jnp.full((8, 1), x), jnp.asarray(z, jnp.float32)[:, None], std)
  bound = np.sum(np.asarray(nll) * weights) / weights.sum() + kl
  np.testing.assert_allclose(bound, -stats.norm(0, np.sqrt(1 + std**2)).logpdf(x), rtol=1e-4)
