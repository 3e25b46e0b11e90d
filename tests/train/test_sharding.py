"""However a step is split, over devices or in time, it is the same step."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from align_jax.errors import UserError
from align_jax.parallel.mesh import MeshConfig, put_batch
from align_jax.train.plan import plan
from align_jax.train.state import create_state
from align_jax.train.step import ComputeConfig
from tests import tiny

STEPS, BATCH = 20, 16
TRACKS = {**tiny.SMALL_MODEL, **tiny.TRACKS}
METHODS = {
  'contrastive': (tiny.CONTRASTIVE, tiny.SMALL_MODEL),
  'sigmoid': ({'name': 'contrastive', 'form': 'sigmoid'}, tiny.SMALL_MODEL),
  # the text term takes part as well
  'gmail': ({**tiny.GMAIL, 'form': 'symmetric', 'text_weight': 0.5}, TRACKS),
  'flow': (tiny.FLOW, {**tiny.DIT, 'width': 16, 'mlp_dim': 24, 'depth': 1}),
  'cvae': (tiny.CVAE, tiny.VAE),
  'caption': (
    {'name': 'caption', 'route': 'modality'},
    {
      **tiny.MULTIMODAL,
      'image': {**tiny.MULTIMODAL['image'], 'depth': 1},
      'decoder': {**tiny.MULTIMODAL['decoder'], 'depth': 1},
      'image_lora': tiny.TRACKS['lora'],
    },
  ),
  'saha': (
    tiny.SAHA,
    {
      **tiny.EMBEDDER,
      'image': {**tiny.EMBEDDER['image'], 'depth': 1},
      'decoder': {**tiny.EMBEDDER['decoder'], 'depth': 1},
    },
  ),
}
ALONE = MeshConfig(1, 1, 1)


def planned(method: str, mesh: MeshConfig, compute: ComputeConfig):
  objective, model = METHODS[method]
  config = tiny.config(
    'unread',
    objective=objective,
    batch_size=BATCH,
    mesh=vars(mesh),
    compute=vars(compute),
    optimizer={'lr': 3e-3, 'warmup_steps': 2, 'ema': 0.9 if method in ('flow', 'cvae') else 0.0},
  )
  config = dataclasses.replace(config, model=model)
  made = tiny.method(objective, model)[0]
  devices = jax.devices()[: mesh.data * mesh.fsdp * mesh.tensor]
  return config, made, plan(config, made, devices)


def batches():
  return [{k: np.asarray(v) for k, v in tiny.batch(BATCH, i).items()} for i in range(STEPS)]


@functools.cache
def losses(
  method: str, mesh: tuple[int, ...] = (1, 1, 1), compute: ComputeConfig = ComputeConfig()
) -> np.ndarray:
  config, objective, made = planned(method, MeshConfig(*mesh), compute)
  state = create_state(
    made.skeleton,
    objective,
    made.optimizer,
    key=jax.random.key(0),
    mesh=made.mesh,
    rules=config.mesh.rules,
    ema=config.optimizer.ema > 0,
  )
  out = []
  for batch in batches():
    state, metrics = made.step(state, put_batch(batch, made.mesh))
    out.append(float(metrics['loss']))
  return np.asarray(out)


MESHES = [(8, 1, 1), (2, 4, 1), (2, 2, 2)]
FEWER = [(2, 1, 1), (1, 4, 1)]
RING = ComputeConfig(loss='ring', rows=1)
CACHED = ComputeConfig(micro_batch=1)
SCAN = ComputeConfig(scan=True, remat='full')
ALL = ComputeConfig(scan=True, remat='dots', micro_batch=2, loss='ring', rows=1)


@pytest.mark.parametrize(
  ('method', 'mesh'),
  [
    *((method, mesh) for mesh in MESHES for method in ('contrastive', 'gmail', 'flow')),
    ('cvae', (2, 2, 2)),
    ('caption', (2, 2, 2)),
    ('saha', (2, 2, 2)),
    *(('contrastive', mesh) for mesh in FEWER),
  ],
)
def test_sharded_equals_unsharded(method, mesh):
  np.testing.assert_allclose(losses(method, mesh), losses(method), rtol=1e-5)


@pytest.mark.parametrize(
  ('method', 'mesh', 'compute'),
  [
    ('contrastive', (2, 4, 1), RING),
    ('sigmoid', (2, 2, 2), RING),
    ('gmail', (2, 4, 1), RING),
    ('contrastive', (1, 1, 1), CACHED),
    ('gmail', (2, 1, 1), CACHED),
    ('contrastive', (1, 1, 1), SCAN),
    ('contrastive', (2, 2, 2), ALL),
    ('sigmoid', (1, 4, 1), ALL),
    ('gmail', (2, 2, 1), ALL),
    ('flow', (2, 4, 1), ComputeConfig(scan=True, remat='full', micro_batch=1)),
    ('cvae', (2, 4, 1), ComputeConfig(scan=True, remat='full', micro_batch=1)),
    ('caption', (1, 4, 1), ComputeConfig(scan=True, remat='dots', micro_batch=2)),
    ('saha', (2, 1, 1), CACHED),
    ('saha', (1, 4, 1), ALL),
  ],
)
def test_the_way_of_computing_changes_nothing(method, mesh, compute):
  np.testing.assert_allclose(losses(method, mesh, compute), losses(method), rtol=1e-5)


def test_parameters_and_optimiser_are_created_in_shards():
  _, _, made = planned('contrastive', MeshConfig(2, 2, 2), ComputeConfig())
  names = {n for n, p in made.state.learn.items() if p.sharding.spec.count(None) < p.ndim}
  kernels = {n for n in made.state.learn if n.endswith('kernel') and 'patch_embed' not in n}
  assert kernels <= names
  moments = [m for m in jax.tree.leaves(made.state.optimizer) if m.ndim == 3]
  assert moments
  assert all(m.sharding.shard_shape(m.shape) != m.shape for m in moments)


def test_a_micro_batch_that_does_not_divide_is_refused():
  with pytest.raises(UserError, match=r'compute\.micro_batch: a device has 8 .* use 2'):
    planned('contrastive', MeshConfig(2, 1, 1), ComputeConfig(micro_batch=3))
