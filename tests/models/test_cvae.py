import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from align_jax.errors import UserError
from align_jax.losses.variational import gaussian_kl
from align_jax.models.cvae import Cvae, CvaeConfig, Gaussian, latents_at
from align_jax.models.flat import Skeleton
from align_jax.objectives import make_objective
from align_jax.objectives.cvae import ConditionalVae, latent_noise
from align_jax.train.objective import batch_loss
from align_jax.train.plan import plan
from tests import tiny

TINY = CvaeConfig(
  image_size=8,
  patch=4,
  width=16,
  heads=2,
  mlp_dim=32,
  encoder_depth=1,
  decoder_depth=1,
  latents=3,
  latent_dim=2,
  vocab_size=20,
  length=6,
)
TEXT = jnp.asarray([[1, 5, 6, 2, 0, 0], [1, 7, 2, 0, 0, 0], [1, 8, 9, 10, 11, 2]])
IMAGES = jax.random.uniform(jax.random.key(2), (3, 8, 8, 3), minval=-1)
NOISE = jax.random.normal(jax.random.key(3), (3, 3, 2))
SEEN = jnp.zeros(3, bool)


def random_params(skeleton):
  """Parameters that all matter, those that start at zero as well."""
  rng = np.random.default_rng(0)
  out = {}
  for name, shape in skeleton.shapes.items():
    scale = shape.shape[-2] ** -0.5 if shape.ndim > 1 else 0.5
    out[name] = jnp.asarray(rng.normal(0, scale, shape.shape), jnp.float32)
  return out


def make_awake(config):
  skeleton = Skeleton(lambda rngs: Cvae(config, rngs))
  params = random_params(skeleton)
  return jax.jit(lambda *args, blind=SEEN: skeleton.bind(params)(*args, blind))


@pytest.fixture(scope='module')
def awake():
  return make_awake(TINY)


def same(got, expected):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, expected)


def part(said, rows):
  return jax.tree.map(lambda x: x[rows], said)


def test_shapes_and_dtypes(awake):
  said = awake(IMAGES, TEXT, NOISE)
  assert said.images.shape == IMAGES.shape and said.images.dtype == jnp.float32
  for of in (said.posterior, said.prior):
    assert of.mean.shape == of.log_std.shape == NOISE.shape


def test_padding_is_not_looked_at(awake):
  shorter = TEXT[:, :4]  # what is cut off is padding in the first two
  same(part(awake(IMAGES, TEXT, NOISE), slice(2)), part(awake(IMAGES, shorter, NOISE), slice(2)))


def test_rows_do_not_see_each_other(awake):
  whole = awake(IMAGES, TEXT, NOISE)
  same(awake(IMAGES[::-1], TEXT[::-1], NOISE[::-1]), part(whole, slice(None, None, -1)))


def test_what_depends_on_what(awake):
  base = awake(IMAGES, TEXT, NOISE)

  def moves(said):
    return [
      bool(np.abs(a - b).max() > 1e-4)
      for a, b in (
        (said.images, base.images),
        (said.posterior.mean, base.posterior.mean),
        (said.prior.mean, base.prior.mean),
      )
    ]

  assert moves(awake(-IMAGES, TEXT, NOISE)) == [True, True, False]
  assert moves(awake(IMAGES, TEXT, -NOISE)) == [True, False, False]
  words = TEXT.at[0, 1:3].set(jnp.asarray([6, 5]))
  assert moves(awake(IMAGES, words, NOISE)) == [True, True, True]


def test_a_blind_image_is_told_by_its_caption_alone(awake):
  blind = jnp.asarray([True, False, False])
  base = awake(IMAGES, TEXT, NOISE, blind=blind)
  other = awake(-IMAGES, TEXT, NOISE, blind=blind)
  np.testing.assert_allclose(base.images[0], other.images[0], atol=1e-5)
  assert np.abs(base.images - other.images)[1:].max(axis=(1, 2, 3)).min() > 1e-4
  skeleton = Skeleton(lambda rngs: Cvae(TINY, rngs))
  params = random_params(skeleton)

  @jax.jit
  def run(params):
    model = skeleton.bind(params)
    context = model.encode_text(TEXT)
    return model.decode(latents_at(model.prior_of(context), NOISE), context)

  np.testing.assert_allclose(base.images[0], run(params)[0], rtol=1e-4, atol=1e-4)

  def decoded(params):
    return jnp.sum(skeleton.bind(params)(IMAGES, TEXT, NOISE, ~SEEN).images)

  gradients = jax.jit(jax.grad(decoded))(params)
  learn = {name.split('/')[0] for name, g in gradients.items() if np.any(g)}
  assert {'text', 'decoder', 'latent_embed'} <= learn
  assert not learn & {'prior', 'posterior', 'patch_embed'}


def test_without_a_prior_it_is_the_standard_normal():
  said = make_awake(dataclasses.replace(TINY, prior_depth=0))(IMAGES, TEXT, NOISE)
  assert not np.any(said.prior.mean) and not np.any(said.prior.log_std)


def test_a_fresh_prior_is_the_standard_normal_and_a_fresh_posterior_near_it():
  skeleton = Skeleton(lambda rngs: Cvae(TINY, rngs))
  params = jax.jit(skeleton.init)(jax.random.key(0))
  said = jax.jit(lambda p: skeleton.bind(p)(IMAGES, TEXT, NOISE, SEEN))(params)
  assert not np.any(said.prior.mean) and not np.any(said.prior.log_std)
  assert np.asarray(gaussian_kl(*said.posterior, *said.prior)).max() < 0.5


def test_latents_are_mean_and_spread():
  of = Gaussian(jnp.full((1, 1, 1), 2.0), jnp.full((1, 1, 1), jnp.log(3.0)))
  np.testing.assert_allclose(latents_at(of, jnp.full((1, 1, 1), -1.0)), -1.0, rtol=1e-6)
  np.testing.assert_allclose(latents_at(of, jnp.full((1, 1, 1), -1.0), 0.0), 2.0)


def test_parameters_are_float32_with_an_axis_name_for_every_dimension():
  skeleton = Skeleton(lambda rngs: Cvae(dataclasses.replace(TINY, dtype='bfloat16'), rngs))
  for name, shape in skeleton.shapes.items():
    assert shape.dtype == jnp.float32, name
    assert len(skeleton.axes[name]) == len(shape.shape) and all(skeleton.axes[name]), name


def test_bfloat16_is_near_float32(awake):
  half = make_awake(dataclasses.replace(TINY, dtype='bfloat16'))(IMAGES, TEXT, NOISE)
  full = awake(IMAGES, TEXT, NOISE)
  assert half.images.dtype == half.posterior.mean.dtype == jnp.float32
  assert np.abs(half.images - full.images).max() < 0.06 * np.abs(full.images).max()


@pytest.mark.parametrize('prior_depth', [0, 1])
def test_flops_match_the_matrix_products_that_xla_counts(prior_depth):
  config = CvaeConfig(length=12, latents=8, latent_dim=8, prior_depth=prior_depth)
  skeleton = Skeleton(lambda rngs: Cvae(config, rngs))
  shapes = (
    jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32),
    jax.ShapeDtypeStruct((1, 12), jnp.int32),
    jax.ShapeDtypeStruct((1, 8, 8), jnp.float32),
    jax.ShapeDtypeStruct((1,), jnp.bool_),
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
    ({'latents': 0}, 'latents'),
    ({'prior_depth': -1}, 'prior_depth'),
  ],
)
def test_bad_config_is_named(changes, named):
  with pytest.raises(UserError, match=named):
    dataclasses.replace(TINY, **changes)


def test_wrong_image_size_is_named(awake):
  with pytest.raises(UserError, match='8 px'):
    awake(jnp.zeros((3, 12, 12, 3)), TEXT, NOISE)


# --- the objective ---


def tiny_batch():
  image = jax.random.randint(jax.random.key(0), (3, 8, 8, 3), 0, 256).astype(jnp.uint8)
  return {'image': image, 'text': TEXT}


def test_the_loss_is_the_bound_in_float64():
  objective = ConditionalVae(pixel_std=0.3, kl_weight=1.7, free_bits=0.0, blind_share=0.5)
  skeleton = Skeleton(lambda rngs: objective.create_model(TINY, rngs))
  params, batch, key = random_params(skeleton), tiny_batch(), jax.random.key(1)

  @jax.jit
  def run(params):
    made = objective.prepare(batch, key)
    image = batch['image'].astype(jnp.float32) / 127.5 - 1
    noise = latent_noise(made['latent_seed'], TINY)
    said = skeleton.bind(params)(image, TEXT, noise, made['blind'])
    return batch_loss(objective, skeleton.bind(params), batch, key), said, made['blind']

  (loss, metrics), said, blind = run(params)
  said = jax.tree.map(lambda x: np.asarray(x, np.float64), said)
  seen = ~np.asarray(blind)
  assert 0 < seen.sum() < 3
  image = np.asarray(batch['image'], np.float64) / 127.5 - 1
  error = (image - said.images) ** 2
  nll = error / (2 * 0.3**2) + np.log(0.3) + 0.5 * np.log(2 * np.pi)
  (mean, log_std), (prior_mean, prior_log_std) = said.posterior, said.prior
  spread = np.exp(2 * log_std) + (mean - prior_mean) ** 2
  kl = prior_log_std - log_std + spread / (2 * np.exp(2 * prior_log_std)) - 0.5
  expected = (nll.sum() / 3 + 1.7 * kl[seen].sum() / 3) / (3 * 8 * 8)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  np.testing.assert_allclose(metrics['kl'], kl.sum() / 3, rtol=1e-4)
  np.testing.assert_allclose(metrics['seen_error'], error[seen].mean(), rtol=1e-5)
  np.testing.assert_allclose(metrics['blind_error'], error[~seen].mean(), rtol=1e-5)


def test_each_row_has_noise_of_its_own_and_each_step_another():
  objective = ConditionalVae()
  seeds = [objective.prepare(tiny_batch(), jax.random.key(i))['latent_seed'] for i in range(2)]
  noise = np.asarray([latent_noise(s, TINY) for s in seeds])
  assert len(np.unique(noise[..., 0, 0])) == 6


def test_the_objective_learns_colours_from_words():
  objective = ConditionalVae()
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

  params = jax.jit(skeleton.init)(jax.random.key(0))
  moments = optimizer.init(params)
  losses = []
  for i in range(150):
    params, moments, loss = step(params, moments, jax.random.key(i))
    losses.append(float(loss))
  assert np.mean(losses[-20:]) < 0.5 * np.mean(losses[:5])

  @jax.jit
  def draw(params):
    model = skeleton.bind(params)
    context = model.encode_text(words)
    noise = jax.random.normal(jax.random.key(1), (2, TINY.latents, TINY.latent_dim))
    return model.decode(latents_at(model.prior_of(context), noise), context)

  mean = np.asarray(draw(params)).mean(axis=(1, 2))
  assert mean[0, 0] > mean[0, 2] + 1.0 and mean[1, 2] > mean[1, 0] + 1.0


@pytest.mark.parametrize('field', ['pixel_std', 'kl_weight', 'free_bits', 'blind_share'])
def test_objective_settings_are_checked(field):
  with pytest.raises(UserError, match=f'config.objective.{field}'):
    make_objective({'name': 'cvae', field: -0.1})


def test_accumulation_is_refused_for_free_bits_couple_the_batch():
  config = tiny.config(objective={'name': 'cvae'}, optimizer={'accumulate': 2})
  config = dataclasses.replace(config, model=dataclasses.asdict(TINY))
  with pytest.raises(UserError, match='accumulate'):
    plan(config, make_objective(config.objective), jax.devices()[:1])
