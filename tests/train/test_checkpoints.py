"""Checkpoints hold everything, and the one before survives a save that fails."""

import jax
import numpy as np
import pytest

from align_jax.errors import UserError
from align_jax.parallel.mesh import MeshConfig, make_mesh
from align_jax.train.checkpoints import Checkpoints, load_params
from tests.train.test_state import _setup
from tests.train.toy import toy_batch


def _trained(mesh, steps, ema=0.9):
  state, step = _setup(mesh, ema=ema)
  for i in range(steps):
    state, _ = step(state, toy_batch(i))
  return state, step


def _same(a, b):
  return all(
    np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


def test_restores_everything_bit_for_bit_and_goes_on_equally(tmp_path):
  mesh = make_mesh(MeshConfig(), jax.devices()[:1])
  state, step = _trained(mesh, 3)
  saved = Checkpoints(tmp_path)
  saved.save(state, {'position': 7})
  saved.close()
  fresh, _ = _setup(mesh, ema=0.9)
  restored, data = Checkpoints(tmp_path).restore(fresh)
  assert data == {'position': 7}
  assert _same(restored, state)
  assert _same(step(restored, toy_batch(3))[0], _trained(mesh, 4)[0])


def test_restores_onto_another_mesh(tmp_path):
  state, _ = _trained(make_mesh(MeshConfig(1, 2, 2), jax.devices()[:4]), 2)
  saved = Checkpoints(tmp_path)
  saved.save(state, {})
  saved.close()
  fresh, _ = _setup(make_mesh(MeshConfig(2, 1, 1), jax.devices()[:2]), ema=0.9)
  restored, _ = Checkpoints(tmp_path).restore(fresh)
  assert _same(restored, state)
  assert restored.learn['kernel'].sharding == fresh.learn['kernel'].sharding


def test_load_params_reads_the_newest_or_the_average(tmp_path):
  mesh = make_mesh(MeshConfig(), jax.devices()[:1])
  state, step = _trained(mesh, 1)
  saved = Checkpoints(tmp_path)
  saved.save(state, {})
  saved.wait()
  state, _ = step(state, toy_batch(1))
  saved.save(state, {})
  saved.close()
  assert np.array_equal(load_params(tmp_path)['kernel'], state.learn['kernel'])
  assert np.array_equal(load_params(tmp_path, averaged=True)['kernel'], state.average['kernel'])
  assert np.array_equal(load_params(tmp_path)['shift'], state.frozen['shift'])
  assert not np.array_equal(load_params(tmp_path, step=1)['kernel'], state.learn['kernel'])


def test_no_checkpoint_is_a_clear_error(tmp_path):
  with pytest.raises(UserError, match='holds no checkpoint'):
    load_params(tmp_path)
  assert Checkpoints(tmp_path).latest() is None
