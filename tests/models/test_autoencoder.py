"""The autoencoder by itself; that it is diffusers' is in tests/interop/test_autoencoder.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.errors import UserError
from align_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from align_jax.models.dit import Dit, DitConfig
from align_jax.models.flat import Skeleton
from align_jax.objectives.flow import Flow, latent_noise
from align_jax.parallel.mesh import RULES, MeshConfig, make_mesh
from align_jax.train.objective import batch_loss
from align_jax.train.optimizer import OptimizerConfig, make_optimizer
from align_jax.train.state import create_state
from align_jax.train.step import make_train_step

TINY = AutoencoderConfig(
  widths=(8, 16), blocks=1, groups=4, latent_channels=4, scale=0.5, shift=0.1
)
DIT = DitConfig(
  image_size=16,
  patch=2,
  width=16,
  depth=1,
  heads=2,
  mlp_dim=32,
  text_depth=1,
  vocab_size=20,
  length=6,
  autoencoder=TINY,
)


def random_params(skeleton):
  rng = np.random.default_rng(0)
  out = {}
  for name, shape in skeleton.shapes.items():
    fan_in = int(np.prod(shape.shape[:-1])) or 1
    scale = fan_in**-0.5 if len(shape.shape) > 1 else 0.2
    out[name] = jnp.asarray(rng.normal(0, scale, shape.shape) + name.endswith('scale'), jnp.float32)
  return out


@pytest.fixture(scope='module')
def skeleton():
  return Skeleton(lambda rngs: Dit(DIT, rngs))


@pytest.fixture(scope='module')
def params(skeleton):
  return random_params(skeleton)


def images(count=2, size=16):
  return jax.random.uniform(jax.random.key(0), (count, size, size, 3), minval=-1, maxval=1)


def test_latents_are_scaled_draws_of_the_posterior(skeleton, params):
  noise = jax.random.normal(jax.random.key(1), (2, 8, 8, 4))

  @jax.jit
  def run(params):
    model = skeleton.bind(params).autoencoder
    return model.encode(images()), model.to_latents(images(), noise)

  (mean, log_var), latents = run(params)
  assert mean.shape == (2, 8, 8, 4)
  expected = (mean + np.exp(0.5 * np.asarray(log_var)) * noise - 0.1) * 0.5
  np.testing.assert_allclose(latents, expected, rtol=1e-5, atol=1e-6)


def test_the_way_back_undoes_the_scale(skeleton, params):
  latents = jax.random.normal(jax.random.key(2), (1, 8, 8, 4))

  @jax.jit
  def run(params):
    model = skeleton.bind(params).autoencoder
    return model.to_images(latents), model.decode(latents / 0.5 + 0.1)

  got, expected = run(params)
  assert got.shape == (1, 16, 16, 3) and got.dtype == jnp.float32
  np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_bfloat16_is_near_float32_and_parameters_stay_float32(params):
  half = dataclasses.replace(DIT, autoencoder=dataclasses.replace(TINY, dtype='bfloat16'))
  full, other = (Skeleton(lambda rngs, c=c: Dit(c, rngs)) for c in (DIT, half))
  assert {shape.dtype for shape in other.shapes.values()} == {jnp.dtype('float32')}
  a, b = (
    jax.jit(lambda p, s=s: s.bind(p).autoencoder.encode(images()).mean)(params)
    for s in (full, other)
  )
  assert b.dtype == jnp.float32
  assert 0 < np.abs(a - b).max() < 0.05 * np.abs(a).max()


def test_flops_match_what_xla_counts():
  config = AutoencoderConfig(widths=(16, 32, 64), blocks=2, groups=8)
  skeleton = Skeleton(lambda rngs: Autoencoder(config, rngs))
  image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  latent = jax.ShapeDtypeStruct((1, 8, 8, 4), jnp.float32)

  def counted(run, x):
    lowered = jax.jit(lambda p, x: run(skeleton.bind(p), x)).lower(skeleton.shapes, x)
    return lowered.cost_analysis()['flops']

  # XLA leaves out what a convolution multiplies with padding, we do not
  encoded = counted(lambda model, x: model.encode(x), image)
  assert 0.85 * config.encode_flops(32) < encoded < 1.1 * config.encode_flops(32)
  decoded = counted(lambda model, x: model.decode(x), latent)
  assert 0.85 * config.decode_flops(32) < decoded < 1.1 * config.decode_flops(32)


def test_the_objective_learns_from_latents(skeleton, params):
  """The loss is the flow's on latents, written out here once more."""
  objective = Flow(text_dropout=0.0)
  pixels = jax.random.randint(jax.random.key(0), (3, 16, 16, 3), 0, 256).astype(jnp.uint8)
  text = jnp.asarray([[1, 5, 6, 2, 0, 0], [1, 7, 2, 0, 0, 0], [1, 8, 9, 10, 11, 2]])
  key = jax.random.key(4)

  @jax.jit
  def both(params):
    model = skeleton.bind(params)
    batch = {'image': pixels, 'text': text}
    loss, _ = batch_loss(objective, model, batch, key)
    batch = objective.prepare(batch, key)
    noise, drawn = latent_noise(batch['latent_seed'], (8, 8, 4))
    latents = model.autoencoder.to_latents(pixels / 127.5 - 1.0, drawn)
    time = batch['time'][:, None, None, None]
    velocity = model((1 - time) * latents + time * noise, batch['time'], text)
    return loss, jnp.mean((velocity - (noise - latents)) ** 2)

  got, expected = both(params)
  np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_noise_of_latents_is_drawn_from_each_rows_own_seed():
  seeds = jnp.asarray([3, 9, 3], jnp.uint32)
  flow, drawn = latent_noise(seeds, (2, 2, 4))
  np.testing.assert_array_equal(flow[0], flow[2])
  assert np.abs(flow[0] - flow[1]).min() > 0 and np.abs(flow - drawn).min() > 0


def test_a_step_trains_all_but_the_autoencoder(skeleton, params):
  objective = Flow()
  learn = {n: axes for n, axes in skeleton.axes.items() if objective.trainable(n)}
  optimizer = make_optimizer(OptimizerConfig(lr=0.1, warmup_steps=0), 10, learn)
  mesh = make_mesh(MeshConfig(data=1, fsdp=2), jax.devices()[:2])
  placed = {'mesh': mesh, 'rules': RULES}
  before = {n: np.array(p) for n, p in params.items()}
  state = create_state(
    skeleton, objective, optimizer, key=jax.random.key(0), **placed, ema=True, given=before
  )
  assert not [n for n in {**state.learn, **state.average} if n.startswith('autoencoder/')]
  paths = jax.tree_util.tree_flatten_with_path(state.optimizer)[0]
  assert not [path for path, _ in paths if 'autoencoder' in jax.tree_util.keystr(path)]
  step = make_train_step(skeleton, objective, optimizer, **placed, ema=0.9)
  batch = {
    'image': jax.random.randint(jax.random.key(0), (4, 16, 16, 3), 0, 256).astype(jnp.uint8),
    'text': jnp.ones((4, 6), jnp.int32),
  }
  state, metrics = step(state, batch)
  assert np.isfinite(metrics['loss'])
  for name, value in state.params.items():
    assert (name.startswith('autoencoder/')) == np.array_equal(value, before[name]), name


def test_flops_of_training_hold_one_forward_of_the_encoder():
  without = dataclasses.replace(DIT, autoencoder=None, image_size=8)
  assert DIT.patches == without.patches == 16
  encoded = TINY.encode_flops(16)
  assert Flow().flops(DIT) == 3 * DIT.flops + encoded


@pytest.mark.parametrize(
  ('changes', 'named'),
  [
    ({'widths': ()}, 'widths'),
    ({'widths': (8, 10)}, '10 is not divisible by 4'),
    ({'blocks': 0}, 'blocks'),
    ({'latent_channels': 0}, 'latent_channels'),
    ({'scale': 0.0}, 'scale'),
  ],
)
def test_bad_configs_are_named(changes, named):
  with pytest.raises(UserError, match=named):
    dataclasses.replace(TINY, **changes)


def test_sizes_that_do_not_divide_are_named(skeleton, params):
  with pytest.raises(UserError, match='the 4 px of a patch; use 16'):
    dataclasses.replace(DIT, image_size=18)
  with pytest.raises(UserError, match='15x16 px do not divide by 2'):
    skeleton.bind(params).autoencoder.encode(jnp.zeros((1, 15, 16, 3)))
  with pytest.raises(UserError, match='8 px of 4 channels, not 16 px of 3'):
    skeleton.bind(params)(images(), jnp.ones(2), jnp.zeros((2, 6), jnp.int32))
