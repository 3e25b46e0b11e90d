"""Preflight of the search for hard negatives."""

import json
import os
import subprocess
import sys

from align_jax.mining.nearest import layout
from align_jax.parallel.mesh import MeshConfig, make_mesh
from launch.preflight_mining import Search, whole
from tests.launch.reports import GIB, report
from tests.launch.test_preflight import ROOT, needs_libtpu


def test_the_whole_search_is_its_steps():
  search = Search(1_000_000, 500_000, 256, 90)
  shape = layout(1_000_000, 500_000, make_mesh(MeshConfig()))
  assert (shape.queries, shape.calls) == (131_072, 8)
  made = report(step=0.5)
  text = whole(made, search, shape)
  steps = 1_000_000 / 131_072
  assert text.startswith('a step searches for 131,072 of 1,000,000 queries: 8 steps, ')
  assert f'{0.5 * steps:.3g} s or more in all: products {0.5 * steps:.3g} s, HBM 1.91 s' in text
  assert 'the ring 0.12 s (24 GB sent by each chip)' in text
  assert whole(report(fits=False, peak=32 * GIB), search, shape).endswith('queries: 8 steps')
  one = Search(1000, 1000, 8, 5)
  assert 'a step searches for 1,000 of 1,000 queries: 1 step, ' in whole(
    made, one, layout(1000, 1000)
  )


def command(*arguments):
  """Runs preflight as a user would, in its own process: libtpu stays out of this one."""
  environment = {k: v for k, v in os.environ.items() if not k.startswith(('JAX_', 'XLA_'))}
  return subprocess.run(
    [sys.executable, '-m', 'launch.preflight', *arguments],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=400,
  )


def test_configs_are_for_programs_that_have_one():
  for arguments, message in (
    (['--program=mining', '--config=configs/clip.py'], '--config: of no use with --program=mining'),
    (['--program=mining', '--search'], '--search: of no use with --program=mining'),
    ([], '--config: none; name an experiment'),
  ):
    done = command('--topology=v5e:2x2', *arguments)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith(f'error: {message}')


@needs_libtpu
def test_command(tmp_path):
  file = tmp_path / 'mining.json'
  sizes = [
    '--mining_queries=5000',
    '--mining_candidates=3000',
    '--mining_dim=32',
    '--mining_depth=6',
  ]
  done = command('--topology=v5e:2x2', '--program=mining', *sizes, f'--json={file}')
  assert done.returncode == 0, done.stderr
  assert 'mining: the 6 nearest of 3,000 on v5e:2x2: 4 chips' in done.stdout
  assert 'a step searches for 5,000 of 5,000 queries: 1 step, ' in done.stdout
  values = json.loads(file.read_text())
  assert values['fits'] and values['calls'] == 1
  assert values['hbm']['candidates_bytes'] == 4 * 32 * 768
  # four shares go round four chips, filled up to whole groups of 128
  assert values['collectives']['collective-permute']['count'] == 4
  assert 0.9 < values['flops_per_step'] / values['flops_per_step_analytic'] < 1.2
