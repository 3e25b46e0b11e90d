"""The dual encoder: one space, tracks by modality, the temperature."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from align_jax.errors import UserError
from align_jax.models.adapter import LoraConfig
from align_jax.models.dual_encoder import DualEncoder, DualEncoderConfig
from align_jax.models.flat import Skeleton, axes_of, params_of
from tests.models import tiny

RANKS = [2, 'full']
MIXED = jnp.array([0, 1, 1])


def _image(model, modality='real', projection=None):
  if isinstance(modality, str):
    return tiny.call(model, 'encode_image', tiny.images(), modality=modality, projection=projection)
  return tiny.call(model, 'encode_image', tiny.images(), modality, projection=projection)


def _furthest(a, b):
  return np.abs(np.asarray(a) - np.asarray(b)).max(axis=1)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_embeddings_are_unit_norm_float32(dtype):
  image, text = (dataclasses.replace(c, dtype=dtype) for c in (tiny.VIT, tiny.TEXT))
  model = tiny.dual(image=image, text=text)
  for out in (_image(model), tiny.call(model, 'encode_text', jnp.ones((3, 6), jnp.int32))):
    assert out.shape == (3, 8)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), 1, atol=1e-5)


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
  names = {'log_scale', 'logit_bias', 'image_projection/kernel', 'text_projection/bias'}
  assert names <= set(params)
  assert any('lora' in name.split('/') for name in params)


@pytest.mark.parametrize('rank', RANKS)
def test_untrained_tracks_are_the_same_function(rank):
  model = tiny.dual(lora=LoraConfig(rank=rank))
  real = _image(model)
  np.testing.assert_array_equal(real, _image(model, 'generated'))
  np.testing.assert_array_equal(real, _image(model, MIXED))


@pytest.mark.parametrize('rank', RANKS)
@pytest.mark.parametrize('layers', [('attention',), ('mlp',), ('attention', 'mlp')])
def test_real_track_never_moves_bit_for_bit(rank, layers):
  lora = LoraConfig(rank=rank, layers=layers)
  model = tiny.dual(lora=lora)
  moved = tiny.dual(tiny.perturbed(model, 'lora', 'generated_projection'), lora=lora)
  before = _image(model)
  np.testing.assert_array_equal(before, _image(moved))
  assert (_furthest(before, _image(moved, 'generated')) > 1e-3).all()
  # nor does it differ from the same backbone in a model that never had an adapter
  backbone = {n: p for n, p in params_of(model).items() if 'lora' not in n.split('/')}
  np.testing.assert_array_equal(before, _image(tiny.dual(backbone, lora=None)))


def test_real_track_compiles_no_adapter():
  with_lora, without = tiny.dual(), tiny.dual(lora=None)

  def products(model, modality):
    jaxpr = jax.make_jaxpr(lambda x: model.encode_image(x, modality))(tiny.images())
    return str(jaxpr).count('dot_general')

  assert products(with_lora, 'real') == products(without, 'real') == products(without, 'generated')
  # a and b of four layers
  assert products(with_lora, 'generated') == products(without, 'real') + 2 * 4


@pytest.mark.parametrize('rank', RANKS)
@pytest.mark.parametrize('projection', ['single', 'dual'])
def test_a_mixed_batch_equals_the_two_tracks(rank, projection):
  changes = {'lora': LoraConfig(rank=rank), 'projection': projection}
  parts = ('lora', 'generated_projection') if projection == 'dual' else ('lora',)
  model = tiny.dual(tiny.perturbed(tiny.dual(**changes), *parts), **changes)
  expected = np.where(MIXED[:, None] == 1, _image(model, 'generated'), _image(model))
  np.testing.assert_allclose(_image(model, MIXED), expected, atol=1e-6)
  assert (_furthest(_image(model, 'generated'), _image(model)) > 1e-3).all()


def test_projection_can_be_chosen_apart_from_the_track():
  # the adapters are untrained, so the projection alone makes the difference
  model = tiny.dual(tiny.perturbed(tiny.dual(), 'generated_projection'))
  real = _image(model)
  np.testing.assert_array_equal(_image(model, 'generated', 'real'), real)
  np.testing.assert_array_equal(_image(model, MIXED, 'real'), real)
  other = _image(model, 'real', 'generated')
  np.testing.assert_array_equal(_image(model, 'generated'), other)
  assert (_furthest(other, real) > 1e-3).all()


@pytest.mark.parametrize('rank', RANKS)
@pytest.mark.parametrize('modality', ['generated', 'real'])
def test_gradients_reach_the_adapters_of_the_generated_track_alone(rank, modality):
  model = tiny.dual(lora=LoraConfig(rank=rank))
  gradients = tiny.grad(model, 'encode_image', tiny.images(), modality=modality)
  moved = {name: bool(g.any()) for name, g in gradients.items()}
  learned = [n for n in moved if 'lora' in n.split('/') and n.endswith(('/b', '/delta'))]
  assert len(learned) == 4
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


def test_bad_configs():
  with pytest.raises(UserError, match=r'config\.model\.init_bias'):
    _ = tiny.dual(init_bias=None).bias
  with pytest.raises(UserError, match=r'init_scale: 200\.0 is outside \(0, max_scale 100'):
    DualEncoderConfig(tiny.VIT, tiny.TEXT, 8, init_scale=200.0)


def test_both_projections_begin_equal():
  params = Skeleton(lambda rngs: DualEncoder(tiny.DUAL, rngs)).init(jax.random.key(3))
  kernels = [params[f'{name}_projection/kernel'] for name in ('image', 'generated')]
  assert kernels[0].any()
  np.testing.assert_array_equal(*kernels)
