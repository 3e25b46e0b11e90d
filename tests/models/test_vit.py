"""The vision tower: flavours, positions, patches, FLOPs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from align_jax.errors import UserError
from align_jax.models.flat import params_of
from align_jax.models.vit import (
  Vit,
  VitConfig,
  fit_positions,
  interpolate_positions,
  patchify,
  sincos2d,
)
from tests.models import tiny


def _vit(**changes):
  return tiny.make(Vit, dataclasses.replace(tiny.VIT, **changes), None)


def _embed(vit, images):
  return tiny.call(vit, '__call__', images)


@pytest.mark.parametrize(
  ('pool', 'positions', 'dtype'),
  [
    ('cls', 'learned', 'float32'),
    ('cls', 'sincos2d', 'bfloat16'),
    ('map', 'learned', 'bfloat16'),
    ('mean', 'sincos2d', 'float32'),
  ],
)
def test_every_flavour_embeds(pool, positions, dtype):
  vit = _vit(pool=pool, positions=positions, dtype=dtype, pre_norm=pool == 'cls')
  out = _embed(vit, tiny.images())
  assert out.shape == (3, 16)
  assert out.dtype == dtype
  assert np.isfinite(np.asarray(out, np.float32)).all()
  assert all(p.dtype == jnp.float32 for p in params_of(vit).values())
  names = params_of(vit)
  assert ('cls' in names) == (pool == 'cls') == ('pre_norm/scale' in names)
  assert ('head/probe' in names) == (pool == 'map')
  assert ('position' in names) == (positions == 'learned')


def test_bfloat16_stays_near_float32():
  exact, rounded = (
    _embed(_vit(pool='map', dtype=d), tiny.images()) for d in ('float32', 'bfloat16')
  )
  np.testing.assert_allclose(exact, np.asarray(rounded, np.float32), atol=0.1)


def test_patch_bias_is_a_switch():
  assert 'patch_embed/bias' in params_of(_vit())
  assert 'patch_embed/bias' not in params_of(_vit(patch_bias=False))


def test_floats_and_bytes_are_the_same_images():
  vit = _vit(mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))
  images = tiny.images()
  floats = images.astype(jnp.float32)
  np.testing.assert_array_equal(_embed(vit, images), _embed(vit, floats))


def test_colours_are_normalised():
  vit = _vit(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
  images = tiny.images()
  expected = (np.asarray(images) / 255 - [0.4, 0.5, 0.6]) / [0.2, 0.3, 0.4]
  np.testing.assert_allclose(vit._normalise(images), expected, atol=1e-5)


def test_patches_are_cut_row_by_row():
  images = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype(np.float32)
  patches = patchify(jnp.asarray(images), 2)
  assert patches.shape == (2, 6, 12)
  np.testing.assert_array_equal(patches[1, 4], images[1, 2:4, 2:4].ravel())


def test_positions_at_another_resolution():
  vit = _vit()
  assert _embed(vit, tiny.images(size=32)).shape == (3, 16)
  with pytest.raises(UserError, match='20x20 do not divide into patches of 8'):
    _embed(vit, tiny.images(size=20))


def test_interpolating_to_the_same_grid_is_the_identity():
  table = jnp.asarray(np.random.default_rng(0).normal(size=(12, 4)), jnp.float32)
  np.testing.assert_array_equal(interpolate_positions(table, (3, 4), (3, 4)), table)
  assert interpolate_positions(table, (3, 4), (6, 5)).shape == (30, 4)


@pytest.mark.parametrize('new', [(8, 8), (24, 24), (32, 20)])
def test_interpolation_follows_a_smooth_function(new):
  def smooth(rows, columns):
    # pixel centres: the same place in the image whatever the grid
    y, x = np.mgrid[:rows, :columns]
    y, x = (y + 0.5) / rows, (x + 0.5) / columns
    return np.stack([np.sin(2 * y + x), np.cos(2 * x), y * x], -1)

  table = jnp.asarray(smooth(16, 16).reshape(-1, 3), jnp.float32)
  out = interpolate_positions(table, (16, 16), new).reshape(*new, 3)
  inside = (slice(new[0] // 8, -(new[0] // 8)), slice(new[1] // 8, -(new[1] // 8)))
  np.testing.assert_allclose(out[inside], smooth(*new)[inside], atol=1e-2)


def test_sincos_positions_equal_the_formula():
  table = sincos2d((3, 5), 8).reshape(3, 5, 8)
  row, column = 2, 4
  for k, frequency in enumerate([1.0, 1e-4]):
    angles = [column * frequency, column * frequency, row * frequency, row * frequency]
    expected = [f(a) for f, a in zip([np.sin, np.cos] * 2, angles, strict=True)]
    np.testing.assert_allclose(table[row, column, k::2], expected, atol=1e-6)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'image_size': 30}, 'image_size 30 is not divisible by patch 8; use 32'),
    ({'patch': 0}, 'patch must be positive'),
    ({'heads': 3}, 'width 16 is not divisible by 3 heads'),
    ({'heads': 0}, 'not divisible by 0 heads'),
    ({'width': 18, 'positions': 'sincos2d'}, 'width divisible by 4'),
  ],
)
def test_bad_configs(changes, message):
  with pytest.raises(UserError, match=message):
    dataclasses.replace(tiny.VIT, **changes)


@pytest.mark.parametrize('pool', ['cls', 'map'])
def test_flops_agree_with_the_compiler(pool):
  config = VitConfig(64, 8, width=64, depth=2, heads=2, mlp_dim=256, pool=pool)
  vit = nnx.eval_shape(lambda: Vit(config, None, nnx.Rngs(0)))
  graph, params = nnx.split(vit)
  images = jax.ShapeDtypeStruct((4, 64, 64, 3), jnp.uint8)
  lowered = jax.jit(lambda p, x: nnx.merge(graph, p)(x)).lower(params, images)
  # of the program before fusion: what XLA does to single products is not the model's affair
  assert lowered.cost_analysis()['flops'] / 4 == pytest.approx(config.flops, rel=0.05)


def test_positions_are_fitted_with_and_without_a_class_token():
  table = np.random.default_rng(0).normal(size=(17, 4)).astype(np.float32)
  fitted = fit_positions(table, 26)
  assert np.array_equal(fitted[0], table[0])
  grid = interpolate_positions(jnp.asarray(table[1:]), (4, 4), (5, 5))
  np.testing.assert_allclose(fitted[1:], grid)
  assert fit_positions(table[1:], 25).shape == (25, 4)
  assert np.array_equal(fit_positions(table, 17), table)


@pytest.mark.parametrize('length', [25, 27])
def test_positions_that_make_no_square_are_refused(length):
  with pytest.raises(UserError, match='cannot be resized'):
    fit_positions(np.zeros((17, 4), np.float32), length)
