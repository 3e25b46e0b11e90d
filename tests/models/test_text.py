"""The text tower: what sees what, which position is read, FLOPs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from align_jax.errors import UserError
from align_jax.models.flat import params_of
from align_jax.models.text import TextConfig, TextTransformer
from tests.models import tiny

EOT, PAD = 2, 0
WORDS = jnp.array([[5, 6, 7, EOT, PAD, PAD], [8, 9, EOT, PAD, PAD, PAD], [5, 5, 5, 5, 5, EOT]])


def _text(**changes):
  return tiny.make(TextTransformer, dataclasses.replace(tiny.TEXT, **changes))


def _embed(text, words):
  return tiny.call(text, '__call__', words)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_dtype_of_computation_and_of_parameters(dtype):
  text = _text(dtype=dtype)
  assert _embed(text, WORDS).shape == (3, 16)
  assert _embed(text, WORDS).dtype == dtype
  assert all(p.dtype == jnp.float32 for p in params_of(text).values())


def test_eot_reads_the_first_end_token_and_nothing_after_it():
  text = _text()
  after = WORDS.at[0, 4:].set(jnp.array([9, EOT])).at[1, 3:].set(EOT)
  np.testing.assert_array_equal(_embed(text, WORDS), _embed(text, after))
  # nor does it matter how long the padding is
  np.testing.assert_allclose(_embed(text, WORDS[:2]), _embed(text, WORDS[:2, :4]), atol=1e-5)
  before = WORDS.at[:, 0].set(30)
  assert (np.abs(_embed(text, WORDS) - _embed(text, before)).max(axis=1) > 1e-3).all()


def test_last_reads_the_last_position_padding_included():
  text = _text(causal=False, pool='last')
  changed = WORDS.at[0, 4].set(9)
  difference = np.abs(_embed(text, WORDS) - _embed(text, changed)).max(axis=1)
  assert difference[0] > 1e-3
  assert not difference[1:].any()


@pytest.mark.parametrize('causal', [False, True])
def test_mean_of_the_real_tokens_ignores_padding(causal):
  text = _text(causal=causal, pool='mean', mask_padding=True)
  np.testing.assert_allclose(_embed(text, WORDS[:2]), _embed(text, WORDS[:2, :4]), atol=1e-5)


def test_no_text_at_all_is_finite():
  empty = jnp.zeros((2, 6), jnp.int32)
  text = _text(causal=False, pool='mean', mask_padding=True)
  assert np.isfinite(_embed(text, empty)).all()
  assert all(np.isfinite(g).all() for g in tiny.grad(text, '__call__', empty).values())


def test_longer_texts_than_positions_are_refused():
  with pytest.raises(UserError, match='texts of 7 tokens, but the model reads 6'):
    _embed(_text(), jnp.ones((1, 7), jnp.int32))
  with pytest.raises(UserError, match=r'config.model.text: width 16 is not divisible by 5'):
    dataclasses.replace(tiny.TEXT, heads=5)


def test_flops_agree_with_the_compiler():
  config = TextConfig(50, 16, width=64, depth=2, heads=2, mlp_dim=256)
  graph, params = nnx.split(nnx.eval_shape(lambda: TextTransformer(config, nnx.Rngs(0))))
  words = jax.ShapeDtypeStruct((4, 16), jnp.int32)
  lowered = jax.jit(lambda p, x: nnx.merge(graph, p)(x)).lower(params, words)
  assert lowered.cost_analysis()['flops'] / 4 == pytest.approx(config.flops, rel=0.05)
