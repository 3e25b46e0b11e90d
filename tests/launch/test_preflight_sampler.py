"""Preflight of the sampler: the plan is the program that the data engine runs."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.errors import UserError
from align_jax.parallel.mesh import MeshConfig
from align_jax.synth.sampler import Solver
from launch.preflight_sampler import plan_sampler, rate
from tests import tiny
from tests.launch.reports import GIB, report
from tests.launch.test_preflight import ROOT, needs_libtpu

SMALL = {**tiny.DIT, 'width': 16, 'depth': 1, 'mlp_dim': 16}


def flow_config(**changes):
  config = tiny.config(objective=tiny.FLOW, **changes)
  return dataclasses.replace(config, model={**SMALL, 'init': ''})


def test_the_plan_draws_images():
  config = flow_config()
  config = dataclasses.replace(config, mesh=MeshConfig(data=2, fsdp=2))
  planned = plan_sampler(config, Solver(2, 3.0), 3, jax.devices()[:4])
  assert {n: s.shape for n, s in planned.batch.items()} == {'text': (12, 12), 'seeds': (12, 2)}
  assert planned.flops == 12 * Solver(2, 3.0).flops(planned.model)
  split = planned.state.frozen['patch_embed/kernel'].sharding.spec
  assert 'fsdp' in split
  params = jax.jit(planned.skeleton.init)(jax.random.key(0))
  placed = {n: jax.device_put(p, planned.state.frozen[n].sharding) for n, p in params.items()}
  state = dataclasses.replace(planned.state, frozen=placed)
  batch = {'text': jnp.ones((12, 12), jnp.int32), 'seeds': jnp.ones((12, 2), jnp.uint32)}
  images, finite = planned.step(state, batch)
  assert images.shape == (12, 32, 32, 3) and images.dtype == jnp.uint8 and np.all(finite)


def test_the_rate_is_that_of_the_bound():
  line = rate(report(step=0.5, mesh=(4, 2, 1)), 16)
  assert line == 'a step draws 128 images, 16 on each device: 256.0 images a second at most'
  assert rate(report(fits=False, peak=32 * GIB), 1) == 'a step draws 8 images, 1 on each device'


def test_what_is_no_flow_is_named():
  with pytest.raises(UserError, match=r"config\.objective\.name is 'contrastive'"):
    plan_sampler(tiny.config(), Solver(), 1)
  with pytest.raises(UserError, match=r'sampler\.steps'):
    plan_sampler(flow_config(), Solver(steps=0), 1)
  with pytest.raises(UserError, match=r'config\.data\.length: 13'):
    plan_sampler(flow_config(data={'length': 13}), Solver(), 1)


def command(*arguments):
  """Runs preflight as a user would, in its own process: libtpu stays out of this one."""
  environment = {k: v for k, v in os.environ.items() if not k.startswith(('JAX_', 'XLA_'))}
  small = [f'--config.model.{n}={v}' for n, v in SMALL.items()]
  small.append(f'--config.data.length={SMALL["length"]}')
  return subprocess.run(
    [sys.executable, '-m', 'launch.preflight', '--config=configs/flow.py', *small, *arguments],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=400,
  )


@needs_libtpu
def test_command(tmp_path):
  file = tmp_path / 'sampler.json'
  done = command('--topology=v5e:2x2', '--program=sampler', '--sampler_images=2', f'--json={file}')
  assert done.returncode == 0, done.stderr
  assert 'sampler (50 steps, guidance 4, euler) on v5e:2x2' in done.stdout
  assert 'a step draws 8 images, 2 on each device' in done.stdout
  values = json.loads(file.read_text())
  assert values['fits'] and values['images_per_device'] == 2
  # the solver's loop is counted fifty times over
  assert 0.5 < values['flops_per_step'] / values['flops_per_step_analytic'] < 2
  wrong = command('--topology=v5e:2x2', '--program=sampler', '--search')
  assert wrong.returncode == 2
  assert wrong.stderr.strip().splitlines()[-1].startswith('error: --search')
