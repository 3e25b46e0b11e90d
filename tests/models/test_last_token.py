"""The last token's hidden state, computed alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.config import build
from align_jax.models.flat import Skeleton
from align_jax.models.last_token import last_hidden
from align_jax.models.multimodal import Multimodal, MultimodalConfig
from align_jax.models.stack import Execution
from tests import tiny

RUNS = [Execution(), Execution(scan=True), Execution(remat='full'), Execution(remat='dots')]


@pytest.fixture(scope='module')
def model():
  decoder = {
    **tiny.MULTIMODAL['decoder'],
    'lora': {'rank': 2, 'layers': ('attention', 'mlp')},
  }
  config = build(MultimodalConfig, {**tiny.MULTIMODAL, 'decoder': decoder}, 'config.model')
  skeleton = Skeleton(lambda rngs: Multimodal(config, rngs))
  params = skeleton.init(jax.random.key(0))
  # adapters start at zero
  keys = jax.random.split(jax.random.key(1), len(params))
  named = zip(params.items(), keys, strict=True)
  params = {name: p + 0.1 * jax.random.normal(k, p.shape) for (name, p), k in named}
  return config, skeleton, params


@pytest.mark.parametrize('execution', RUNS, ids=['plain', 'scan', 'full', 'dots'])
def test_it_is_that_of_the_whole_and_so_is_its_gradient(model, execution):
  config, skeleton, params = model
  rng = np.random.default_rng(0)
  length, patches = config.image.patches + 9, config.image.patches
  tokens = rng.integers(2, 300, (3, length)).astype(np.int32)
  tokens[:, 4 : 4 + patches] = config.image_id
  segment = np.ones_like(tokens)
  segment[0, :3] = segment[2, :1] = 0
  images = rng.integers(0, 256, (3, 1, *2 * [config.image.image_size], 3), np.uint8)
  tokens, segment, images = (jnp.asarray(x) for x in (tokens, segment, images))
  gate = jnp.asarray([1.0, 0.0, 1.0])
  probe = jnp.asarray(rng.standard_normal((3, config.decoder.width)), jnp.float32)

  def whole(params):
    hidden = skeleton.bind(params)(tokens, segment, images, gate=gate)[:, -1]
    return hidden / jnp.linalg.norm(hidden, axis=-1, keepdims=True)

  def alone(params):
    return last_hidden(skeleton.bind(params, execution), tokens, segment, images, gate)

  np.testing.assert_allclose(jax.jit(alone)(params), jax.jit(whole)(params), atol=1e-5)
  want, got = (
    jax.jit(jax.grad(lambda params, f=f: jnp.sum(f(params) * probe)))(params)
    for f in (whole, alone)
  )
  for name, gradient in want.items():
    np.testing.assert_allclose(got[name], gradient, atol=2e-4, rtol=1e-3, err_msg=name)
