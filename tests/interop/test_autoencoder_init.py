"""`config.model.init=hf:VAE`: a flow over the latents of an imported autoencoder."""

import jax
import numpy as np
import pytest

from align_jax.interop.autoencoder import load_autoencoder
from align_jax.objectives import make_objective
from align_jax.train.init import find_origins, initial_params, make_config
from align_jax.train.plan import plan
from align_jax.train.state import param_shardings
from tests import tiny
from tests.interop import tools
from tests.interop.test_autoencoder import MODELS, make

pytest.importorskip('diffusers')


@pytest.mark.parametrize('stated', [{}, {'autoencoder': {'dtype': 'bfloat16'}}])
def test_training_starts_from_its_weights(tmp_path, stated):
  folder = tools.save(make(**MODELS['plain']), tmp_path)
  values = tiny.config_values('folder:x', objective=tiny.FLOW)
  values['model'] = {**tiny.DIT, **stated, 'init': f'hf:{folder}'}
  config = make_config(values)
  planned = plan(config, make_objective(config.objective), jax.devices()[:1])
  assert planned.model.autoencoder.widths == (8, 16) and planned.model.side == 16
  assert planned.model.autoencoder.dtype == stated.get('autoencoder', {}).get('dtype', 'float32')
  shardings = param_shardings(planned.skeleton, planned.mesh, config.mesh.rules)
  got = initial_params(planned.skeleton, find_origins(config.model['init']), shardings)
  expected = load_autoencoder(folder, planned.skeleton.shapes, 'autoencoder/')
  assert got.keys() == expected.keys() == set(planned.state.frozen)
  assert all(np.array_equal(got[n], expected[n]) for n in got)
