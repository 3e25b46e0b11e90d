"""The nearest candidates are those of a full sort in float64, on one device and on many."""

import importlib.util
import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.errors import UserError
from align_jax.mining.nearest import layout, lower_search, nearest, recall_of
from align_jax.mining.products import products
from align_jax.mining.top import group_size, top_k
from align_jax.parallel.mesh import MeshConfig, make_mesh


def vectors(rng, n, dim, whole):
  if whole:  # exact products, many of them equal
    return rng.integers(-2, 3, (n, dim)).astype(np.float32)
  return rng.standard_normal((n, dim)).astype(np.float32)


@pytest.mark.parametrize('whole', [True, False])
@pytest.mark.parametrize('mesh', [None, MeshConfig(), MeshConfig(2, 2, 2)])
def test_nearest_is_a_full_sort(mesh, whole):
  mesh = mesh and make_mesh(mesh)
  rng = np.random.default_rng(0)
  for n, m, k in ((37, 1000, 40), (70, 3000, 7), (3, 5, 9)):
    x, y = vectors(rng, n, 6, whole), vectors(rng, m, 6, whole)
    found, at = nearest(x, y, k, mesh=mesh, rows=16, columns=256, portion=32)
    every = x.astype(np.float64) @ y.T.astype(np.float64)
    order = np.argsort(-every, axis=1, kind='stable')[:, :k]
    np.testing.assert_array_equal(at[:, : order.shape[1]], order)
    wanted = np.take_along_axis(every, order, axis=1)
    np.testing.assert_allclose(found[:, : order.shape[1]], wanted, atol=1e-5)
    assert (at[:, m:] == -1).all() and np.isneginf(found[:, m:]).all()


def test_top_k_is_that_of_lax():
  rng = np.random.default_rng(1)
  for m, k in ((4096, 8), (4096, 90), (100, 99), (7, 9)):
    for x in (rng.integers(0, 50, (5, m)).astype(np.float32), rng.standard_normal((5, m))):
      x = jnp.asarray(x, jnp.float32)
      for ours, wanted in zip(top_k(x, k), jax.lax.top_k(x, min(k, m)), strict=True):
        np.testing.assert_array_equal(ours, wanted)
  assert group_size(4096, 8) > 1


def test_the_approximate_search_tells_its_recall():
  rng = np.random.default_rng(2)
  x, y = vectors(rng, 20, 8, False), vectors(rng, 500, 8, False)
  _, exact = nearest(x, y, 10)
  _, found = nearest(x, y, 10, recall=0.9)
  assert 0.8 <= recall_of(found, exact) <= 1
  assert recall_of(exact, exact) == 1
  assert recall_of(np.roll(exact, 1, axis=0), exact) < 0.5


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda x, y: (x, y[:, :3], 2, 0.0), 'queries of 4 dimensions, candidates of 3'),
    (lambda x, y: (x, y[:0], 2, 0.0), 'of 0 candidates'),
    (lambda x, y: (x, y, 0, 0.0), 'the 0 nearest'),
    (lambda x, y: (x, y, 2, 1.0), 'recall 1'),
    (lambda x, y: (x, np.where(y > 0, np.nan, y), 2, 0.0), r'candidates are not finite, first'),
    (lambda x, y: (x / 0, y, 2, 0.0), '3 of 3 queries are not finite, first number 0'),
  ],
)
def test_it_refuses(change, message):
  x, y = np.ones((3, 4), np.float32), np.eye(4, dtype=np.float32)
  with np.errstate(divide='ignore', invalid='ignore'):
    *both, k, recall = change(x, y)
  with pytest.raises(UserError, match=message):
    nearest(*both, k, recall=recall)


def test_products_of_chosen_rows():
  rng = np.random.default_rng(3)
  x, y = vectors(rng, 30, 6, False), vectors(rng, 20, 6, False)
  at, to = rng.integers(0, 30, 20_000), rng.integers(0, 20, 20_000)
  np.testing.assert_allclose(products(x, y, at, to), (x[at] * y[to]).sum(axis=1), atol=1e-5)
  assert products(x, y, at[:0], to[:0]).shape == (0,)


def test_a_layout_has_room_for_all():
  mesh = make_mesh(MeshConfig())
  for n, m in ((1, 1), (1000, 70_000), (300_000, 5)):
    shape = layout(n, m, mesh, rows=16, columns=4096, portion=1024)
    assert shape.queries * shape.calls >= n and shape.candidates >= m
    assert shape.queries % 8 == 0 and shape.candidates % (8 * shape.columns) == 0


def test_the_search_lowers_for_tpus_that_are_not_there():
  """The rows of all queries go round in two dozen calls; no device holds all candidates."""
  mesh = make_mesh(MeshConfig())
  program, shape = lower_search(10_000_000, 10_000_000, 64, 90, mesh)
  text = program.as_text()
  assert 'collective_permute' in text and 'mhlo.num_partitions = 8' in text
  assert f'tensor<{shape.candidates // 8}x64xf32>' in text
  assert f'tensor<{shape.candidates}x64xf32>' in text  # of all devices together
  assert shape.calls == -(-10_000_000 // shape.queries)


PROCESS = """
import sys
import jax, numpy as np
jax.config.update('jax_num_cpu_devices', 2)
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from align_jax.mining.nearest import nearest
from align_jax.parallel.mesh import MeshConfig, make_mesh
x, y = np.random.default_rng(0).integers(-2, 3, (2, 300, 6)).astype(np.float32)
_, found = nearest(x, y, 9, mesh=make_mesh(MeshConfig()), rows=16, columns=128, portion=32)
wanted = np.argsort(-(x @ y.T), axis=1, kind='stable')[:, :9]
print('equal' if (found == wanted).all() and len(jax.devices()) == 4 else 'other')
"""


def test_processes_share_the_work():
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': ':'.join(sys.path)}
  running = [
    subprocess.Popen(
      [sys.executable, '-c', PROCESS, address, str(number)],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      env=environment,
    )
    for number in range(2)
  ]
  try:
    for out, errors in [process.communicate(timeout=120) for process in running]:
      assert out.split()[-1:] == ['equal'], errors[-2000:]
  finally:
    for process in running:
      process.kill()


TOPOLOGY = """
import jax, numpy as np
from jax.experimental import topologies
from align_jax.mining.nearest import lower_search
from jax.sharding import Mesh
devices = topologies.get_topology_desc(platform='tpu', topology_name='v5e:2x2').devices
mesh = Mesh(np.asarray(devices).reshape(4, 1, 1), ('data', 'fsdp', 'tensor'))
program, shape = lower_search(100_000, 100_000, 64, 16, mesh, columns=8192, portion=1024)
memory = program.compile().memory_analysis()
print('temporary', memory.temp_size_in_bytes, 'arguments', memory.argument_size_in_bytes)
"""


@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='libtpu is not installed')
def test_the_search_compiles_for_a_tpu_slice():
  environment = {
    'TPU_SKIP_MDS_QUERY': '1',
    'JAX_PLATFORMS': 'cpu',
    'PYTHONPATH': ':'.join(sys.path),
  }
  done = subprocess.run(
    [sys.executable, '-c', TOPOLOGY], capture_output=True, text=True, env=environment, timeout=300
  )
  assert done.returncode == 0, done.stderr[-2000:]
  words = done.stdout.split()
  held = 4 * 64 * (100_000 // 4)  # a device's share of the candidates
  assert held < int(words[3]) < 1.5 * held + 4 * 64 * 1024
  assert int(words[1]) < 64e6  # blocks, not the 400 MB of all products with a portion
