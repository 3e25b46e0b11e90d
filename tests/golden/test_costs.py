"""What a training step costs, as the compiler counts it, so that no change makes it dearer unseen.

After a change that is meant: `make golden`, and look at the diff.
"""

import functools
import json
from pathlib import Path

import jax
import pytest

from align_jax.parallel.mesh import RULES, MeshConfig, make_mesh
from align_jax.train.optimizer import OptimizerConfig, make_optimizer
from align_jax.train.state import abstract_state
from align_jax.train.step import make_train_step
from tests import tiny

pytestmark = pytest.mark.usefixtures('optimised')

FILE = Path(__file__).parent / 'costs.json'
TOLERANCE = {'flops': 0.02, 'temporary_bytes': 0.10}
METHODS = {
  'contrastive': (tiny.CONTRASTIVE, tiny.MODEL, 0.0),
  'gmail': (tiny.GMAIL, {**tiny.MODEL, **tiny.TRACKS}, 0.0),
  'flow': (tiny.FLOW, tiny.DIT, 0.99),
  'cvae': (tiny.CVAE, tiny.VAE, 0.99),
  'caption': (tiny.CAPTION, tiny.MULTIMODAL, 0.0),
  'saha': (tiny.SAHA, tiny.EMBEDDER, 0.0),
}
BATCH = 16


@functools.cache
def step_and_shapes(name: str):
  """A method's training step, and the shapes it takes; nothing is computed."""
  objective_values, model, ema = METHODS[name]
  objective, skeleton = tiny.method(objective_values, model)
  learn = {n: axes for n, axes in skeleton.axes.items() if objective.trainable(n)}
  optimizer = make_optimizer(OptimizerConfig(warmup_steps=2), 10, learn)
  placed = {'mesh': make_mesh(MeshConfig(), jax.devices()[:1]), 'rules': RULES}
  state = abstract_state(skeleton, objective, optimizer, **placed, ema=ema > 0)
  strip = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)  # noqa: E731
  shapes = jax.tree.map(strip, (state, tiny.batch(BATCH)))
  return make_train_step(skeleton, objective, optimizer, **placed, ema=ema), shapes


@functools.cache
def costs(name: str) -> dict[str, int]:
  step, shapes = step_and_shapes(name)
  compiled = step.lower(*shapes).compile()
  return {
    'flops': int(compiled.cost_analysis()['flops']),
    'temporary_bytes': int(compiled.memory_analysis().temp_size_in_bytes),
  }


def jax_version() -> str:
  return '.'.join(jax.__version__.split('.')[:2])


def test_a_step_costs_what_it_did(update_golden):
  kept = json.loads(FILE.read_text()) if FILE.exists() else {}
  version = jax_version()
  if update_golden:
    kept[version] = {name: costs(name) for name in METHODS}
    FILE.write_text(json.dumps(kept, indent=1, sort_keys=True) + '\n')
  if version not in kept:
    pytest.skip(f'{FILE.name} has no entry for jax {version}: `make golden` writes one')
  dearer = []
  for name in METHODS:
    for kind, value in costs(name).items():
      before = kept[version][name][kind]
      if abs(value - before) > TOLERANCE[kind] * before:
        dearer.append(f'{name}: {kind} {before:,} -> {value:,} ({value / before - 1:+.1%})')
  assert not dearer, 'if the change is meant: `make golden`'


@pytest.mark.parametrize('name', METHODS)
def test_a_step_lowers_for_tpu(name):
  """Whatever a TPU's compiler would refuse in the program's text, no TPU is needed to see."""
  step, shapes = step_and_shapes(name)
  text = step.trace(*shapes).lower(lowering_platforms=('tpu',)).as_text()
  assert 'stablehlo.dot_general' in text
  assert 'tf.aliasing_output' in text, 'the state is not donated'
