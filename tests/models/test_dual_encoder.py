"""The dual encoder: one space, tracks by modality, the temperature."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from align_jax.errors import UserError
from align_jax.models.adapter import LoraConfig
from align_jax.models.dual_encoder import DualEncoderConfig
from align_jax.models.flat import Skeleton, axes_of, params_of
from tests.models import tiny

RANKS = [2, 'full']
MIXED = jnp.array([0, 1, 1])


def test_embeddings_are_unit_norm_float32():
  half = {k: dataclasses.replace(v, dtype='bfloat16') for k, v in _towers().items()}
  for model in (tiny.dual(), tiny.dual(**half)):
    for out in (model.encode_image(tiny.images()), model.encode_text(jnp.ones((3, 6), jnp.int32))):
      assert out.shape == (3, 8)
      assert out.dtype == jnp.float32
      np.testing.assert_allclose(jnp.linalg.norm(out, axis=1), 1, atol=1e-5)


def _towers():
  return {'image': tiny.VIT, 'text': tiny.TEXT}


@pytest.mark.parametrize('rank', RANKS)
def test_every_parameter_is_float32_and_names_its_axes(rank):
  image = dataclasses.replace(tiny.VIT, pool='map', pre_norm=True, dtype='bfloat16')
  model = tiny.dual(image=image, lora=LoraConfig(rank=rank), projection_bias=True)
  params, axes = params_of(model), axes_of(model)
  assert params.keys() == axes.keys()
  for name, value in params.items():
    assert value.dtype == jnp.float32, name
    assert len(axes[name]) == value.ndim, name
    assert all(axis is None or isinstance(axis, str) for axis in axes[name]), name
  assert {'log_scale', 'logit_bias', 'image_projection/kernel', 'text_projection/bias'} <= set(params)
  assert any('lora' in name.split('/') for name in params)


@pytest.mark.parametrize('rank', RANKS)
def test_untrained_tracks_are_the_same_function(rank):
  model = tiny.dual(lora=LoraConfig(rank=rank))
  real = model.encode_image(tiny.images(), 'real')
  np.testing.assert_array_equal(real, model.encode_image(tiny.images(), 'generated'))
  np.testing.assert_array_equal(real, model.encode_image(tiny.images(), MIXED))


@pytest.mark.parametrize('rank', RANKS)
@pytest.mark.parametrize('layers', [('attention',), ('mlp',), ('attention', 'mlp')])
def test_real_track_never_moves_bit_for_bit(rank, layers):
  lora = LoraConfig(rank=rank, layers=layers)
  model = tiny.dual(lora=lora)
  bare = tiny.dual(lora=None)
  # the same backbone in a model that never had an adapter
  for name in ('image', 'image_projection', 'text', 'text_projection'):
    _copy(getattr(model, name), getattr(bare, name))
  before = model.encode_image(tiny.images(), 'real')
  tiny.perturb(model, 'lora')
  tiny.perturb(model, 'generated_projection')
  assert (jnp.abs(before - model.encode_image(tiny.images(), 'generated')).max(axis=1) > 1e-3).all()
  np.testing.assert_array_equal(before, model.encode_image(tiny.images(), 'real'))
  np.testing.assert_array_equal(before, bare.encode_image(tiny.images(), 'real'))


def _copy(source, target):
  values = params_of(source)
  for path, variable in nnx.to_flat_state(nnx.state(target, nnx.Param)):
    own = target
    for key in path:
      own = own[key] if isinstance(key, int) else getattr(own, key)
    own[...] = values['/'.join(map(str, path))]
    assert own.shape == variable.shape


def test_real_track_compiles_no_adapter():
  with_lora, without = tiny.dual(), tiny.dual(lora=None)

  def products(model, modality):
    return str(jax.make_jaxpr(lambda x: model.encode_image(x, modality))(tiny.images())).count(
      'dot_general'
    )

  assert products(with_lora, 'real') == products(without, 'real') == products(without, 'generated')
  # a and b of four layers in each of two blocks
  assert products(with_lora, 'generated') == products(without, 'real') + 2 * 4 * 2


@pytest.mark.parametrize('rank', RANKS)
@pytest.mark.parametrize('projection', ['single', 'dual'])
def test_a_mixed_batch_equals_the_two_tracks(rank, projection):
  model = tiny.dual(lora=LoraConfig(rank=rank), projection=projection)
  tiny.perturb(model, 'lora')
  if projection == 'dual':
    tiny.perturb(model, 'generated_projection')
  tracks = {m: model.encode_image(tiny.images(), m) for m in ('real', 'generated')}
  expected = jnp.where(MIXED[:, None] == 1, tracks['generated'], tracks['real'])
  mixed = jax.jit(lambda m: model.encode_image(tiny.images(), m))(MIXED)
  np.testing.assert_allclose(mixed, expected, atol=1e-6)


def test_projection_can_be_chosen_apart_from_the_track():
  model = tiny.dual()
  images = tiny.images()
  tiny.perturb(model, 'generated_projection')
  real = model.encode_image(images, 'real')
  # the adapters are untrained, so the projection alone makes the difference
  np.testing.assert_array_equal(model.encode_image(images, 'generated', 'real'), real)
  np.testing.assert_array_equal(model.encode_image(images, MIXED, 'real'), real)
  other = model.encode_image(images, 'real', 'generated')
  np.testing.assert_array_equal(model.encode_image(images, 'generated'), other)
  assert jnp.abs(other - real).max() > 1e-3


@pytest.mark.parametrize('rank', RANKS)
@pytest.mark.parametrize('modality', ['generated', 'real'])
def test_gradients_reach_the_adapters_of_the_generated_track_alone(rank, modality):
  model = tiny.dual(lora=LoraConfig(rank=rank))
  target = jnp.ones((3, 8))
  gradients = nnx.grad(lambda m: jnp.sum(m.encode_image(tiny.images(), modality) * target))(model)
  moved = {
    '/'.join(map(str, path)): bool(g[...].any()) for path, g in nnx.to_flat_state(gradients)
  }
  learned = [n for n in moved if 'lora' in n and n.endswith(('/b', '/delta'))]
  assert len(learned) == 4 * tiny.VIT.depth
  assert all(moved[n] == (modality == 'generated') for n in learned)
  assert moved['generated_projection/kernel'] == (modality == 'generated')
  assert moved['image_projection/kernel'] == (modality == 'real')


def test_scale_is_learned_in_log_space_and_bounded():
  model = tiny.dual(init_scale=100.0)
  np.testing.assert_allclose(model.scale, 100, rtol=1e-5)
  assert model.scale.dtype == jnp.float32
  assert model.bias == -10
  model.log_scale[...] = jnp.asarray(9.0)
  np.testing.assert_allclose(model.scale, 100, rtol=1e-5)
  for sign, expected in [(1.0, 100.0), (-1.0, 0.0)]:
    # at the bound the way down is open, the way up is not
    gradient = nnx.grad(lambda m, s=sign: s * m.scale)(model)['log_scale'][...]
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
  model.log_scale[...] = jnp.log(7.0)
  np.testing.assert_allclose(nnx.grad(lambda m: -m.scale)(model)['log_scale'][...], -7, rtol=1e-5)


def test_a_model_without_a_bias_says_so():
  with pytest.raises(UserError, match=r'config.model.init_bias'):
    _ = tiny.dual(init_bias=None).bias
  with pytest.raises(UserError, match=r'init_scale: 200'):
    DualEncoderConfig(tiny.VIT, tiny.TEXT, 8, init_scale=200.0)


def test_towers_can_be_rebuilt_from_their_flat_parameters():
  model = tiny.dual()
  skeleton = Skeleton(lambda rngs: type(model)(tiny.DUAL, rngs))
  again = skeleton.bind(params_of(model))
  np.testing.assert_array_equal(again.encode_image(tiny.images()), model.encode_image(tiny.images()))
  init = jax.jit(skeleton.init)(jax.random.key(0))
  np.testing.assert_array_equal(
    init['image_projection/kernel'], init['generated_projection/kernel']
  )
