"""Preflight's answer: what it makes of the compiler's word, the page, the search, the command."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from align_jax.errors import UserError
from launch import compiler
from launch.compiler import Oversized, bytes_per_device, read_refusal
from launch.report import page, ranking, size, to_json
from launch.search import Candidate, Found, advice, candidates, search
from tests import tiny
from tests.launch.reports import GIB, report

ROOT = Path(__file__).parent.parent.parent


def test_refusal_of_libtpu():
  message = (Path(__file__).parent / 'data/libtpu_refusal.txt').read_text()
  assert read_refusal(message) == Oversized(24 * GIB, int(15.75 * GIB))


def test_refusal_after_layout():
  """The second message, as libtpu's template has it."""
  message = (
    'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 31.20G of 15.75G hbm. '
    'Exceeded hbm capacity by 15.45G. Memory usage report: …'
  )
  assert read_refusal(message) == Oversized(round(31.2 * GIB), int(15.75 * GIB))


@pytest.mark.parametrize(
  'message',
  [
    'INTERNAL: Mosaic failed to compile TPU kernel',
    'RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 20M of 16M vmem.',
  ],
)
def test_other_errors_are_no_answer(message):
  assert read_refusal(message) is None


def test_without_libtpu_it_says_how_to_get_it(monkeypatch):
  monkeypatch.delenv('TPU_LIBRARY_PATH', raising=False)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(UserError, match=r'pip install "jax\[tpu\]=='):
    compiler.prepare()


def test_bytes_per_device_are_those_of_a_shard():
  mesh = Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ('a', 'b'))
  whole, split = PartitionSpec(), PartitionSpec('a', 'b')
  tree = {
    'w': jax.ShapeDtypeStruct((64, 6), jnp.bfloat16, sharding=NamedSharding(mesh, split)),
    'n': jax.ShapeDtypeStruct((), jnp.int32, sharding=NamedSharding(mesh, whole)),
  }
  assert bytes_per_device(tree) == 16 * 3 * 2 + 4


def test_page_of_a_step_that_fits():
  text = page(report(), 'configs/x.py', ())
  assert max(map(len, text.splitlines())) < 120 and len(text.splitlines()) < 50
  for part in (
    'configs/x.py on v5e:2x4: 8 chips, mesh data=8 fsdp=1 tensor=1',
    'yes: 11.69 GiB of 15.75 GiB stay free',
    'compiled is 2.000 times that',
    'all-reduce',
    'a step takes 1000.000 ms or more (compute)',
    'align_jax/x.py:7',
    'rounds not known: loop jit(f)/while',
  ):
    assert part in text


def test_page_of_a_step_that_does_not():
  text = page(report(fits=False, peak=32 * GIB), 'x', ['--config.compute.micro_batch=64'])
  assert 'NO: 31.00 GiB of temporaries, 15.75 GiB there; 32.00 GiB in all' in text
  assert 'try --config.compute.micro_batch=64' in text
  assert 'as compiled for v5p, which has room' in text


def test_json_holds_what_is_promised():
  values = json.loads(json.dumps(to_json(report(), 'x', (), [])))
  assert values['fits'] is True and values['search'] == []
  assert values['hbm']['peak_bytes'] == 4 * GIB
  assert values['hbm']['limit_bytes'] == int(15.75 * GIB)
  assert values['flops_per_step'] == 8 * 197e12
  assert values['collectives'] == {'all-reduce': {'count': 24, 'bytes': 3e9}}
  assert values['roofline']['bound'] == 'compute' and values['roofline']['step_s'] == 1.0


def test_json_of_a_step_nothing_holds():
  none = dataclasses.replace(
    report(fits=False, peak=200 * GIB), cost=None, roofline=None, buffers=(), stand_in=''
  )
  values = json.loads(json.dumps(to_json(none, 'x', ())))
  assert values['fits'] is False and values['collectives'] is None
  assert 'NO' in page(none, 'x', ())


def test_sizes():
  assert [size(n) for n in (3, 2048, 3 * 2**20, -GIB)] == [
    '3 B',
    '2.00 KiB',
    '3.00 MiB',
    '-1.00 GiB',
  ]


def test_advice_by_what_takes_the_memory():
  config = tiny.config(batch_size=512)  # 64 on each of 8 devices
  tries = advice(config, report(fits=False, peak=32 * GIB))
  assert tries[0] == '--config.compute.remat=full'
  # 31 GiB of temporaries for 64, 14.75 GiB there
  assert tries[1] == '--config.compute.micro_batch=16'
  assert tries[2] == '--config.mesh.fsdp=4 --config.mesh.data=-1'
  large_state = report(fits=False, peak=32 * GIB, held=20 * GIB)
  assert advice(config, large_state)[0] == '--config.mesh.fsdp=4 --config.mesh.data=-1'
  assert advice(config, report()) == ()


def test_candidates_make_up_the_devices_and_divide_the_batch():
  config = tiny.config(batch_size=256)
  tried = list(candidates(config, 16))
  assert len(set(tried)) == len(tried)
  assert {c.data * c.fsdp * c.tensor for c in tried} == {16}
  assert {c.mesh for c in tried} >= {(16, 1, 1), (4, 4, 1), (1, 16, 1), (8, 1, 2)}
  for candidate in tried:
    own = 256 // (candidate.data * candidate.fsdp)
    assert not candidate.micro_batch or own % candidate.micro_batch == 0
  first = tried[: len({c.mesh for c in tried})]
  assert all(c.micro_batch == 0 and c.remat == 'none' for c in first)


def test_candidate_becomes_a_config():
  config = Candidate(4, 2, 1, 8, 'dots').applied(tiny.config())
  assert (config.mesh.data, config.mesh.fsdp, config.mesh.tensor) == (4, 2, 1)
  assert config.compute.micro_batch == 8 and config.compute.remat == 'dots'


def test_search_ranks_what_fits_and_leaves_out_what_only_saves_more():
  tried: list[tuple] = []

  def look(config):
    mesh, compute = config.mesh, config.compute
    tried.append((mesh.fsdp, mesh.tensor, compute.micro_batch, compute.remat))
    if mesh.tensor > 1:
      raise UserError('heads do not divide')
    fits = compute.remat != 'none' or mesh.fsdp > 1
    step = 2.0 if compute.remat == 'none' else 3.0 + mesh.fsdp
    return report(fits=fits, peak=(4 if fits else 20) * GIB, step=step)

  lines: list[str] = []
  found = search(tiny.config(batch_size=64), 8, look, limit=9, say=lines.append)
  assert len(found) <= 9 and any('heads do not divide' in line for line in lines)
  assert 'min left' in lines[0]
  fits = [f for f in found if f.report.fits]
  steps = [f.report.roofline.seconds for f in fits]
  assert steps == sorted(steps) and steps[0] == 2.0
  # fsdp > 1 fits as it is: nothing heavier of that mesh is compiled
  assert [t for t in tried if t[0] > 1 and t[1] == 1 and (t[2] or t[3] != 'none')] == []
  table = ranking(found)
  assert '--config.mesh.data=' in table and len(table.splitlines()) == 2 + len(fits)
  assert 'none of the settings' in ranking(
    [Found(Candidate(8, 1, 1, 0, 'none'), report(fits=False))]
  )


def test_search_does_not_compile_what_is_far_too_large_by_what_it_saw():
  tried = []

  def look(config):
    own = 512 // (config.mesh.data * config.mesh.fsdp)
    held = config.compute.micro_batch or own
    held /= config.mesh.tensor
    tried.append((config.compute.remat, held))
    need = held * {'none': 2, 'dots': 1, 'full': 0.5}[config.compute.remat] * GIB
    return report(fits=need < 14 * GIB, peak=int(need + GIB + 2**20))

  found = search(tiny.config(batch_size=512), 8, look, limit=30, say=lambda line: None)
  # 64 at a time without rematerialisation need 128 GiB, seen once; 32 are not even tried
  assert tried.count(('none', 64)) == 1 and ('none', 32) not in tried and found[0].report.fits


# --- with the TPU compiler ---

needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None, reason='the TPU compiler, libtpu, is not installed'
)
SMALL = [
  '--config.batch_size=16',
  *(
    f'--config.model.{tower}.{field}={value}'
    for tower in ('image', 'text')
    for field, value in {'width': 24, 'mlp_dim': 32, 'depth': 1}.items()
  ),
  '--config.model.dim=16',
]


def command(*arguments):
  """Runs preflight as a user would, in its own process: libtpu stays out of this one."""
  environment = {k: v for k, v in os.environ.items() if not k.startswith(('JAX_', 'XLA_'))}
  return subprocess.run(
    [sys.executable, '-m', 'launch.preflight', '--config=configs/clip.py', *SMALL, *arguments],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=400,
  )


OVERSIZED = """
import json
from types import SimpleNamespace
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from launch import compiler
from launch.analysis import analyse
from launch.chips import open_topology, parse_topology
from launch.report import page, to_json

def planner(devices):
  mesh = Mesh(np.array(devices).reshape(4, 1, 1), ('data', 'fsdp', 'tensor'))
  rows = NamedSharding(mesh, PartitionSpec('data'))
  batch = jax.ShapeDtypeStruct((4 * 196608, 8192), jnp.float32, sharding=rows)  # 6 GiB each
  alone = NamedSharding(mesh, PartitionSpec())
  whole = jax.ShapeDtypeStruct((8192, 512), jnp.float32, sharding=alone)
  state = SimpleNamespace(learn=(whole,), frozen=(), optimizer=(), average=None)
  def step(state, batch):
    return jnp.sort(jnp.sort(batch, 0), 1) @ state
  return SimpleNamespace(
    step=SimpleNamespace(trace=lambda _, batch: jax.jit(step).trace(whole, batch)),
    state=state, batch=batch, mesh=mesh, flops=2 * 4 * 196608 * 8192 * 512)

compiler.prepare()
topology = parse_topology('v5e:2x2')
devices = open_topology(topology)
limit = compiler.hbm_limit(devices)
report = analyse(planner, topology, devices, limit)
print(json.dumps({**to_json(report, 'x', ['fewer']), 'page': page(report, 'x', ['fewer'])}))
"""


@needs_libtpu
def test_oversized_step_is_an_answer_with_its_largest_buffers():
  environment = {k: v for k, v in os.environ.items() if not k.startswith(('JAX_', 'XLA_'))}
  done = subprocess.run(
    [sys.executable, '-c', OVERSIZED],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=400,
  )
  assert done.returncode == 0, done.stderr
  values = json.loads(done.stdout)
  assert values['fits'] is False and values['hbm']['headroom_bytes'] < 0
  assert values['hbm']['batch_bytes'] == 6 * GIB
  assert values['compiled_for'] == 'v5p'
  assert values['flops_per_step'] == values['flops_per_step_analytic']
  assert values['largest_buffers'][0]['size'] >= 6 * GIB
  assert 'of temporaries, 15.75 GiB there' in values['page']


@needs_libtpu
def test_command(tmp_path):
  file = tmp_path / 'small.json'
  done = command('--topology=v5e:2x2', f'--json={file}')
  assert done.returncode == 0, done.stderr
  assert 'fits       yes' in done.stdout and 'configs/clip.py on v5e:2x2' in done.stdout
  values = json.loads(file.read_text())
  assert values['fits'] and 0 < values['hbm']['peak_bytes'] < values['hbm']['limit_bytes']
  assert values['hbm']['limit_bytes'] == int(15.75 * GIB)
  assert 0.5 < values['flops_per_step'] / values['flops_per_step_analytic'] < 2
  assert values['collectives']['all-reduce']['count'] >= 1


@needs_libtpu
def test_command_says_what_is_wrong_with_a_topology():
  done = command('--topology=v9:2x2')
  assert done.returncode == 2 and done.stderr.strip().splitlines()[-1].startswith('error: --topo')
