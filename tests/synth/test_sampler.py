import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.data.tokenizer import train_tokenizer
from align_jax.errors import UserError
from align_jax.models.dit import Dit, DitConfig
from align_jax.models.flat import Skeleton
from align_jax.synth.sampler import guided_velocity, integrate, make_sampler

CAPTIONS = ['a red apple', 'fish', 'two green frogs']
CONFIG = DitConfig(
  image_size=8,
  patch=4,
  width=16,
  depth=1,
  heads=2,
  mlp_dim=16,
  text_depth=1,
  vocab_size=300,
  length=8,
)


@pytest.fixture(scope='module')
def tokenizer():
  return train_tokenizer(CAPTIONS, 300)


@pytest.fixture(scope='module')
def skeleton():
  return Skeleton(lambda rngs: Dit(CONFIG, rngs))


@pytest.fixture(scope='module')
def params(skeleton):
  """Random weights, those that start at zero as well: every input matters."""
  rng = np.random.default_rng(0)
  shapes = skeleton.shapes.items()
  return {n: jnp.asarray(rng.normal(0, 0.3, s.shape), jnp.float32) for n, s in shapes}


def build(skeleton, params, tokenizer, **changes):
  settings = {'steps': 3, 'guidance': 2.0, 'method': 'euler', 'length': 8, 'image_size': 8}
  return make_sampler(skeleton, params, tokenizer, **{**settings, **changes})


@pytest.fixture(scope='module')
def sampler(skeleton, params, tokenizer):
  return build(skeleton, params, tokenizer)


MEAN = np.array([1.0, -0.5])
COVARIANCE = np.array([[0.5, 0.3], [0.3, 0.4]])


def gaussian_velocity(x, time):
  """The exact velocity for data from N(MEAN, COVARIANCE): E[noise - data | x_t = x]."""
  mean, covariance = jnp.asarray(MEAN), jnp.asarray(COVARIANCE)
  of_x = (1 - time) ** 2 * covariance + time**2 * jnp.eye(2)
  with_x = time * jnp.eye(2) - (1 - time) * covariance
  gain = with_x @ jnp.linalg.inv(of_x)
  return (x - (1 - time) * mean) @ gain.T - mean


def moments_error(steps, method):
  noise = jax.random.normal(jax.random.key(0), (20_000, 2))
  # exactly white, so that what is left is the solver's error and not the sample's
  noise = noise - noise.mean(0)
  noise = noise @ jnp.linalg.inv(jnp.linalg.cholesky(jnp.cov(noise.T))).T
  x = np.asarray(jax.jit(lambda n: integrate(gaussian_velocity, n, steps, method))(noise))
  return np.abs(x.mean(0) - MEAN).max(), np.abs(np.cov(x.T) - COVARIANCE).max()


def test_euler_reproduces_mean_and_covariance_of_a_gaussian():
  mean, covariance = moments_error(200, 'euler')
  assert mean < 1e-4 and covariance < 0.01


def test_heun_needs_fewer_steps_and_errors_shrink_with_them():
  assert moments_error(20, 'heun')[1] < 0.25 * moments_error(40, 'euler')[1]
  errors = [moments_error(steps, 'euler')[1] for steps in (10, 20, 40)]
  assert errors[0] > 1.7 * errors[1] > 1.7**2 * errors[2]


@pytest.mark.parametrize('method', ['euler', 'heun'])
def test_a_straight_flow_is_exact_in_one_step(method):
  target = jnp.asarray([[0.3, -2.0]])
  noise = jnp.asarray([[1.5, 0.5]])
  got = integrate(lambda x, time: noise - target, noise, 1, method)
  np.testing.assert_allclose(got, target, atol=1e-6)


def test_guidance_extrapolates_from_no_text_to_the_text(skeleton, params):
  images = jax.random.normal(jax.random.key(3), (2, 8, 8, 3))
  text = jnp.asarray([[1, 5, 6, 2, 0, 0, 0, 0], [1, 9, 2, 0, 0, 0, 0, 0]])

  @jax.jit
  def velocities():
    model = skeleton.bind(params)
    time = jnp.full(2, 0.6)
    with_text, without = model(images, time, text), model(images, time, jnp.zeros_like(text))
    return (
      with_text,
      without,
      [guided_velocity(model, text, g)(images, jnp.float32(0.6)) for g in (0.0, 1.0, 3.0)],
    )

  with_text, without, (zero, one, three) = velocities()
  assert np.abs(with_text - without).max() > 1e-2
  np.testing.assert_allclose(zero, without, atol=1e-4)
  np.testing.assert_allclose(one, with_text, atol=1e-4)
  np.testing.assert_allclose(three, without + 3 * (with_text - without), atol=1e-3)


def test_an_image_does_not_depend_on_its_batch(sampler):
  whole = sampler(CAPTIONS, [4, 5, 6], seed=1)
  assert whole.shape == (3, 8, 8, 3) and whole.dtype == np.uint8
  turned = sampler(CAPTIONS[::-1], [6, 5, 4], seed=1)
  np.testing.assert_array_equal(whole, turned[::-1])
  # another batch size is another program, which may round another way
  alone = sampler(CAPTIONS[1:2], [5], seed=1)
  np.testing.assert_allclose(alone[0].astype(int), whole[1].astype(int), atol=1)


def test_seed_index_and_caption_decide_an_image(sampler):
  first = sampler(CAPTIONS, [0, 1, 2], seed=0)
  np.testing.assert_array_equal(first, sampler(CAPTIONS, [0, 1, 2], seed=0))
  for other in (
    sampler(CAPTIONS, [0, 1, 2], seed=1),
    sampler(CAPTIONS, [7, 8, 9], seed=0),
    sampler(['fish', *CAPTIONS[:2]], [0, 1, 2], seed=0),
  ):
    assert (first != other).any(axis=(1, 2, 3)).all()


def test_settings_name_the_weights(skeleton, params, tokenizer, sampler):
  changed = {**params, 'out/bias': params['out/bias'] + 1e-3}
  other = build(skeleton, changed, tokenizer)
  assert sampler.settings['steps'] == 3 and sampler.settings['guidance'] == 2.0
  assert other.settings['weights'] != sampler.settings['weights']
  assert build(skeleton, dict(params), tokenizer).settings == sampler.settings


def test_numbers_that_are_not_finite_name_the_prompt(skeleton, params, tokenizer):
  rows = [set(row) for row in tokenizer.encode(CAPTIONS, 8).tolist()]
  own = max(rows[1] - rows[0] - rows[2])  # a token of the second caption alone
  token = params['text/token'].at[own].set(np.nan)
  sampler = build(skeleton, {**params, 'text/token': token}, tokenizer)
  with pytest.raises(UserError, match="image 11, prompt 'fish'"):
    sampler(CAPTIONS, [10, 11, 12], seed=0)


@pytest.mark.parametrize(
  ('changes', 'named'),
  [
    ({'steps': 0}, 'steps'),
    ({'guidance': -1.0}, 'guidance'),
    ({'guidance': float('nan')}, 'guidance'),
    ({'image_size': 16}, 'image size 16'),
    ({'length': 9}, '9 text tokens'),
  ],
)
def test_bad_settings_are_named(skeleton, params, tokenizer, changes, named):
  with pytest.raises(UserError, match=named):
    build(skeleton, params, tokenizer, **changes)


def test_a_foreign_tokenizer_is_refused(skeleton, params, tokenizer):
  with pytest.raises(UserError, match='pads with 7'):
    build(skeleton, params, dataclasses.replace(tokenizer, pad_id=7))
  with pytest.raises(UserError, match='999 tokens'):
    build(skeleton, params, dataclasses.replace(tokenizer, vocab_size=999))
