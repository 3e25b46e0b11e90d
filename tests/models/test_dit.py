import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from align_jax.errors import UserError
from align_jax.models.dit import Dit, DitConfig, unpatchify
from align_jax.models.flat import Skeleton
from align_jax.models.vit import patchify
from align_jax.objectives.flow import Flow
from align_jax.train.objective import batch_loss

TINY = DitConfig(
  image_size=8,
  patch=4,
  width=16,
  depth=2,
  heads=2,
  mlp_dim=32,
  text_depth=1,
  vocab_size=20,
  length=6,
)


@pytest.fixture(scope='module')
def awake():
  return make_awake(TINY)


def make_awake(config):
  """Returns `(images, time, text) -> velocity` of a model in which every input matters.

  Its parameters are random, those that start at zero as well.
  """
  skeleton = Skeleton(lambda rngs: Dit(config, rngs))
  params = random_params(skeleton)
  return jax.jit(lambda *args: skeleton.bind(params)(*args))


def random_params(skeleton):
  rng = np.random.default_rng(0)
  out = {}
  for name, shape in skeleton.shapes.items():
    scale = shape.shape[0] ** -0.5 if shape.ndim > 1 else 0.5
    out[name] = jnp.asarray(rng.normal(0, scale, shape.shape), jnp.float32)
  return out


@pytest.fixture(scope='module')
def fresh():
  """Parameters as training finds them."""
  return jax.jit(Skeleton(lambda rngs: Dit(TINY, rngs)).init)(jax.random.key(0))


def inputs(batch=3, size=8):
  images = jax.random.normal(jax.random.key(2), (batch, size, size, 3))
  time = jnp.linspace(0.2, 0.9, batch)
  text = jnp.asarray([[1, 5, 6, 2, 0, 0], [1, 7, 2, 0, 0, 0], [1, 8, 9, 10, 11, 2]])[:batch]
  return images, time, text


def test_a_fresh_model_says_nothing(fresh):
  images, time, text = inputs()

  def velocity(config):
    skeleton = Skeleton(lambda rngs: Dit(config, rngs))
    return jax.jit(lambda p: skeleton.bind(p)(images, time, text))(fresh)

  assert not np.any(velocity(dataclasses.replace(TINY, predict='velocity')))
  # the image is told as grey (0), so the velocity points from there to x_t
  got = velocity(TINY)
  np.testing.assert_allclose(got, images / time[:, None, None, None], rtol=1e-6)


def test_padding_is_not_looked_at(awake):
  images, time, text = inputs()
  shorter = text[:, :4]  # what is cut off is padding in the first two
  np.testing.assert_allclose(
    awake(images, time, text)[:2], awake(images, time, shorter)[:2], rtol=1e-5, atol=1e-5
  )


def test_text_time_word_order_and_image_matter(awake):
  images, time, text = inputs()
  base = np.asarray(awake(images, time, text))
  swapped = text.at[0, 1:3].set(jnp.asarray([6, 5]))
  assert np.abs(awake(images, time, swapped) - base)[0].max() > 1e-4
  np.testing.assert_allclose(awake(images, time, swapped)[1:], base[1:], atol=1e-5)
  assert np.abs(awake(images, time, jnp.zeros_like(text)) - base).max(axis=(1, 2, 3)).min() > 1e-4
  velocity = make_awake(dataclasses.replace(TINY, predict='velocity'))
  moved = velocity(images, time * 0.5, text) - velocity(images, time, text)
  assert np.abs(moved).max() > 1e-3


def test_no_text_and_time_zero_give_finite_numbers_and_gradients(awake):
  images, _, text = inputs()

  @jax.jit
  @jax.value_and_grad
  def loss(images):
    return jnp.sum(awake(images, jnp.zeros(3), jnp.zeros_like(text)) ** 2)

  value, gradient = loss(images)
  assert np.isfinite(value) and np.isfinite(gradient).all()


def test_unpatchify_inverts_patchify():
  images = jax.random.normal(jax.random.key(0), (2, 12, 12, 3))
  for patch in (2, 3, 4, 6, 12):
    np.testing.assert_array_equal(unpatchify(patchify(images, patch), patch), images)


def test_parameters_are_float32_with_an_axis_name_for_every_dimension():
  config = dataclasses.replace(TINY, dtype='bfloat16')
  skeleton = Skeleton(lambda rngs: Dit(config, rngs))
  for name, shape in skeleton.shapes.items():
    assert shape.dtype == jnp.float32, name
    assert len(skeleton.axes[name]) == len(shape.shape), name
    assert all(skeleton.axes[name]), name


def test_bfloat16_is_near_float32(awake):
  half = make_awake(dataclasses.replace(TINY, dtype='bfloat16'))
  images, time, text = inputs()
  got = half(images, time, text)
  assert got.dtype == jnp.float32
  full = np.asarray(awake(images, time, text))
  assert np.abs(got - full).max() < 0.05 * np.abs(full).max()


def test_flops_match_the_matrix_products_that_xla_counts():
  config = DitConfig(depth=2, length=12)
  skeleton = Skeleton(lambda rngs: Dit(config, rngs))
  shapes = (
    jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32),
    jax.ShapeDtypeStruct((1,), jnp.float32),
    jax.ShapeDtypeStruct((1, 12), jnp.int32),
  )
  lowered = jax.jit(lambda p, *args: skeleton.bind(p)(*args)).lower(skeleton.shapes, *shapes)
  counted = lowered.compile().cost_analysis()['flops']
  assert config.flops <= counted <= 1.15 * config.flops  # the rest is element-wise


@pytest.mark.parametrize(
  ('changes', 'named'),
  [
    ({'patch': 3}, 'patch'),
    ({'heads': 3}, 'heads'),
    ({'width': 18, 'heads': 2}, 'width'),
    ({'pad_id': 20}, 'pad_id'),
  ],
)
def test_bad_config_is_named(changes, named):
  with pytest.raises(UserError, match=named):
    dataclasses.replace(TINY, **changes)


def test_wrong_image_size_is_named(awake):
  _, time, text = inputs()
  with pytest.raises(UserError, match='8 px'):
    awake(jnp.zeros((3, 12, 12, 3)), time, text)


def test_the_objective_learns_colours_from_words(fresh):
  objective = Flow(time_mean=1.5)  # near noise, where words are of most use
  skeleton = Skeleton(lambda rngs: objective.create_model(TINY, rngs))
  words = jnp.asarray([[1, 5, 2, 0, 0, 0], [1, 6, 2, 0, 0, 0]])
  colours = jnp.asarray([[230, 30, 30], [30, 30, 230]], jnp.uint8)
  which = jnp.arange(32) % 2
  image = jnp.broadcast_to(colours[which][:, None, None], (32, 8, 8, 3))
  batch = {'image': image, 'text': words[which]}
  optimizer = optax.adam(3e-3)

  @jax.jit
  def step(params, moments, key):
    def loss_of(params):
      return batch_loss(objective, skeleton.bind(params), batch, key)[0]

    loss, grads = jax.value_and_grad(loss_of)(params)
    updates, moments = optimizer.update(grads, moments)
    return optax.apply_updates(params, updates), moments, loss

  params = fresh
  moments = optimizer.init(params)
  losses = []
  for i in range(120):
    params, moments, loss = step(params, moments, jax.random.key(i))
    losses.append(float(loss))
  assert np.mean(losses[-20:]) < 0.5 * np.mean(losses[:5])
  # at pure noise only the text can tell the colour
  noise = jax.random.normal(jax.random.key(5), (2, 8, 8, 3))
  velocity = jax.jit(lambda p: skeleton.bind(p)(noise, jnp.ones(2), words))(params)
  mean = np.asarray(noise - velocity).mean(axis=(1, 2))
  assert mean[0, 0] > mean[0, 2] + 0.5 and mean[1, 2] > mean[1, 0] + 0.5


def test_dropping_all_text_makes_the_loss_blind_to_it():
  image = jax.random.randint(jax.random.key(0), (3, 8, 8, 3), 0, 256).astype(jnp.uint8)
  texts = inputs()[2]

  def losses(objective):
    skeleton = Skeleton(lambda rngs: objective.create_model(TINY, rngs))
    params = random_params(skeleton)

    @jax.jit
    def loss(text):
      batch = {'image': image, 'text': text}
      return batch_loss(objective, skeleton.bind(params), batch, jax.random.key(1))[0]

    return float(loss(texts)), float(loss(texts[::-1]))

  blind = losses(Flow(text_dropout=1.0))
  seeing = losses(Flow(text_dropout=0.0))
  assert blind[0] == blind[1] and seeing[0] != seeing[1]


def test_objective_settings_are_checked():
  with pytest.raises(UserError, match='text_dropout'):
    Flow(text_dropout=1.5)
  with pytest.raises(UserError, match='time_std'):
    Flow(time_std=0.0)
