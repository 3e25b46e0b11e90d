import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.losses.flow import flow_errors, interpolate, sample_time


def _loss(velocity, image, noise):
  return jnp.mean(flow_errors(velocity, image, noise))


def test_interpolate_runs_from_the_image_to_noise():
  image = jax.random.normal(jax.random.key(0), (3, 4, 4, 3))
  noise = jax.random.normal(jax.random.key(1), image.shape)
  np.testing.assert_array_equal(interpolate(image, noise, jnp.zeros(3)), image)
  np.testing.assert_array_equal(interpolate(image, noise, jnp.ones(3)), noise)
  time = np.array([0.1, 0.5, 0.8])
  expected = (1 - time)[:, None, None, None] * np.asarray(image, np.float64)
  expected += time[:, None, None, None] * np.asarray(noise, np.float64)
  got = interpolate(image, noise, jnp.asarray(time, jnp.float32))
  np.testing.assert_allclose(got, expected, atol=1e-6)


def test_target_is_the_derivative_of_the_line():
  image = jax.random.normal(jax.random.key(0), (2, 5))
  noise = jax.random.normal(jax.random.key(1), (2, 5))
  _, derivative = jax.jvp(
    lambda t: interpolate(image, noise, t), (jnp.full(2, 0.3),), (jnp.ones(2),)
  )
  np.testing.assert_allclose(_loss(derivative, image, noise), 0, atol=1e-12)


def test_loss_and_gradient_match_float64_numpy():
  keys = jax.random.split(jax.random.key(2), 3)
  velocity, image, noise = (jax.random.normal(k, (4, 6, 6, 3)) for k in keys)
  v, x, n = (np.asarray(a, np.float64) for a in (velocity, image, noise))
  loss, gradient = jax.value_and_grad(_loss)(velocity, image, noise)
  np.testing.assert_allclose(loss, np.mean((v - (n - x)) ** 2), rtol=1e-6)
  np.testing.assert_allclose(gradient, 2 * (v - (n - x)) / v.size, atol=1e-8)


def test_loss_is_computed_in_float32():
  loss = _loss(jnp.full((2, 3), 0.1, jnp.bfloat16), jnp.zeros((2, 3)), jnp.ones((2, 3)))
  assert loss.dtype == jnp.float32


def test_the_best_velocity_of_gaussian_data_is_the_known_one():
  # for x ~ N(m, s²), E[noise - x | x_t] is linear in x_t; least squares must find that line
  mean, std, time = 0.7, 0.4, 0.35
  keys = jax.random.split(jax.random.key(3), 2)
  image = mean + std * jax.random.normal(keys[0], (200_000, 1))
  noise = jax.random.normal(keys[1], image.shape)
  x_t = interpolate(image, noise, jnp.full(len(image), time))
  variance = (1 - time) ** 2 * std**2 + time**2
  slope = (time - (1 - time) * std**2) / variance

  def best(x):
    return slope * (x - (1 - time) * mean) - mean

  fitted = np.polyfit(np.asarray(x_t[:, 0]), np.asarray((noise - image)[:, 0]), 1)
  np.testing.assert_allclose(fitted, [slope, best(0.0)], atol=0.02)
  # what is left is the variance that x_t cannot explain
  floor = 1 + std**2 - (time - (1 - time) * std**2) ** 2 / variance
  np.testing.assert_allclose(_loss(best(x_t), image, noise), floor, rtol=0.02)


@pytest.mark.parametrize(('mean', 'std'), [(0.0, 1.0), (0.5, 0.6)])
def test_logit_normal_times_have_the_moments_asked_for(mean, std):
  time = np.asarray(sample_time(jax.random.key(0), 50_000, 'logit_normal', mean, std))
  assert time.dtype == np.float32
  assert time.min() > 0 and time.max() < 1
  logit = np.log(time / (1 - time))
  np.testing.assert_allclose([logit.mean(), logit.std()], [mean, std], atol=0.02)


def test_uniform_times_fill_the_interval_evenly():
  time = np.asarray(sample_time(jax.random.key(0), 50_000, 'uniform'))
  counts, _ = np.histogram(time, bins=10, range=(0, 1))
  np.testing.assert_allclose(counts / len(time), 0.1, atol=0.01)
