"""A whole study of embedders at tiny size: its files, going on after a kill, what it refuses."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest

from align_jax.config import build
from align_jax.embedding_study import runner
from align_jax.embedding_study.config import EmbeddingStudyConfig
from align_jax.embedding_study.page import write_results
from align_jax.embedding_study.runner import run_study
from align_jax.errors import UserError
from align_jax.mining.plan import load_plan
from align_jax.train.run_config import read_run_config
from tests import tiny

SIZE = 'size=32&concepts=6&max_objects=2'
MODEL = {
  **tiny.MULTIMODAL,
  'image': {**tiny.MULTIMODAL['image'], 'depth': 1, 'width': 16, 'mlp_dim': 24},
  'decoder': {**tiny.MULTIMODAL['decoder'], 'vocab_size': 500, 'depth': 1},
  'length': 96,
}


def training(**changes) -> dict:
  """A training config of a model that answers."""
  values = tiny.config_values(
    steps=2,
    batch_size=8,
    log_every=1,
    objective=tiny.CAPTION,
    model=copy.deepcopy(MODEL),
    checkpoint={'every': 0, 'keep': 1},
    data={
      'real': f'emoji:scenes?{SIZE}&captions=short&split=train&count=40',
      'tokenizer': '{tokenizer}',
      'text': 'questions',
      'length': 96,
    },
  )
  values['model'] = {**copy.deepcopy(MODEL), 'init': ''}
  for key, value in changes.items():
    values[key] = {**values[key], **value} if isinstance(value, dict) else value
  return values


def study_values() -> dict:
  decoder = {**MODEL['decoder'], 'lora': {'rank': 2, 'alpha': 2.0, 'layers': ('attention', 'mlp')}}
  return {
    'title': 'A tiny study',
    'seeds': (0,),
    'levels': (
      {'name': 'user', 'title': 'user turn', 'length': 80},
      {'name': 'none', 'title': 'none', 'length': 72},
    ),
    'strategies': (
      {'name': 'in_batch', 'title': 'in-batch', 'mine': 'random'},
      {'name': 'saha', 'title': 'SaHa', 'mine': 'saha', 'classes': ('classification',)},
    ),
    'k': 3,
    'pairs': f'emojitasks:classification,grounding?split=train&{SIZE}&count=16&seed={{seed}}',
    'tokenizer': {
      'data': f'emoji:scenes?{SIZE}&captions=short&split=train&count=40',
      'count': 40,
      'vocab_size': 500,
    },
    'models': {'answers': training()},
    'base': '{model:answers}',
    'training': training(
      model={'init': '{init}', 'decoder': decoder},
      objective={'name': 'saha', 'learn': 'lora'},
      data={'real': '{pairs}', 'plan': '{plan}', 'text': 'pairs', 'tokenizer': ''},
    ),
    'evaluation': {'size': 32, 'concepts': 6, 'max_objects': 2, 'count': 3, 'candidates': 4},
    'comparisons': (('saha', 'in_batch'),),
  }


def run_values(**changes) -> dict:
  """What is run: one of the levels."""
  values = study_values()
  return values | {'levels': values['levels'][1:]} | changes


def snapshot(folder: Path) -> dict[str, int]:
  return {
    str(p.relative_to(folder)): p.stat().st_mtime_ns
    for p in folder.rglob('*')
    if p.is_file() and p.name != 'seconds.json'
  }


class Killed(BaseException):
  """What no program catches."""


@pytest.fixture(scope='module')
def study(tmp_path_factory):
  """A study that was killed before its last training, then went on: (config, folder, found)."""
  folder = tmp_path_factory.mktemp('study')
  config = build(EmbeddingStudyConfig, run_values())
  whole, done = runner.train_once, []

  def train_some(values, place, label):
    if len(done) == 2:  # the model and a cell
      raise Killed
    done.append(label)
    whole(values, place, label)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(runner, 'train_once', train_some)
    with pytest.raises(Killed):
      run_study(config, folder)
  before = snapshot(folder)
  told = []
  found, clock = run_study(config, folder, lambda found, clock: told.append(len(found.cells)))
  assert told == [2]
  write_results(folder, config, found, clock.seconds)
  after = snapshot(folder)
  assert {name: after[name] for name in before} == before
  return config, folder, found


def test_every_cell_is_there_and_was_trained_at_its_level_on_its_plan(study):
  _, folder, found = study
  assert [(c.level, c.strategy) for c in found.cells] == [('none', 'in_batch'), ('none', 'saha')]
  for cell in found.cells:
    trained = read_run_config(cell.run)
    assert (trained.data.level, trained.seed) == (cell.level, cell.seed)
    assert trained.data.length == trained.model['length'] == 72
    plan = load_plan(trained.data.plan)
    assert (plan.size, plan.records) == (4, 32)
    assert cell.mined['clusters'] == len(plan.clusters)
    assert 0 <= cell.mined['false_negatives'] <= 1
    assert 0 < cell.mined['members'] <= 1
    assert 0 <= cell.scores['average'] <= 1
    assert cell.scores['tasks'] == 12
  assert set(found.zero_shot) == {'none'}
  plans = [load_plan(folder / f'none/seed0/{name}/plan.jsonl.gz') for name in ('in_batch', 'saha')]
  assert [plan.strategy for plan in plans] == ['random', 'saha']


def test_results_are_written(study):
  _, folder, _ = study
  content = json.loads((folder / 'metrics.json').read_text())
  assert set(content['cells']) == {'none'}
  assert content['cells']['none']['saha']['average'] == pytest.approx(
    np.mean(content['per_seed']['none']['saha']['average'])
  )
  assert (content['encoded_pairs'], content['missing']) == (16, 0)
  page, text = (folder / 'report.html').read_text(), (folder / 'results.md').read_text()
  for words in ('A tiny study', 'Before any contrastive step', 'False negatives', 'SaHa'):
    assert words in page
  for words in ('before any contrastive step', '| SaHa |', 'One seed: differences of four points'):
    assert words in text
  assert 'src="http' not in page and 'All strategies' in page
  assert (folder / 'results.png').read_bytes().startswith(b'\x89PNG')


def test_rerun_does_nothing_and_another_evaluation_trains_nothing(study):
  config, folder, found = study
  before = snapshot(folder)
  again, _ = run_study(config, folder)
  assert snapshot(folder) == before
  assert again.cells == found.cells
  values = run_values()
  values['evaluation']['count'] = 2
  run_study(build(EmbeddingStudyConfig, values), folder)
  after = snapshot(folder)
  changed = {name for name in after if after[name] != before.get(name)}
  assert {Path(name).name for name in changed} == {'scores.json', 'none.json'}


def test_a_changed_strategy_is_refused_where_it_was_mined(study):
  _, folder, _ = study
  config = build(EmbeddingStudyConfig, run_values(mining={'mult': 2}))
  with pytest.raises(UserError, match=r'mined\.json: was made with settings=.*another --workdir'):
    run_study(config, folder)


def test_another_tokenizer_is_refused_where_models_have_learnt_by_one(study):
  _, folder, _ = study
  values = run_values()
  values['tokenizer']['vocab_size'] += 1
  with pytest.raises(UserError, match=r'tokenizer\.json: was made with vocab_size='):
    run_study(build(EmbeddingStudyConfig, values), folder)


def test_a_cell_has_the_seed_and_pairs_and_prompt_that_are_its_own():
  config = build(EmbeddingStudyConfig, study_values())
  for level, length in zip(config.levels, (80, 72), strict=True):
    cell = config.cell_config(level, 4, 'the/plan', 'run:base', 'here')
    assert (cell.seed, cell.data.level, cell.data.length) == (4, level.name, length)
    assert cell.data.real.endswith('&seed=4')
    assert (cell.data.plan, cell.model['init'], cell.model['length']) == (
      *('the/plan', 'run:base'),
      length,
    )


def changed(**changes) -> dict:
  return study_values() | changes


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    (changed(seeds=()), r'config\.seeds: none'),
    (changed(seeds=(1, 1)), r'config\.seeds: \[1\] is there twice'),
    (changed(k=4), r'batch_size: 8 is no multiple of a cluster of k \+ 1 = 5'),
    (changed(comparisons=(('saha', 'b3'),)), "'b3' is no strategy; known"),
    (changed(mining={'mutl': 3}), r'config\.mining\.mutl: unknown field'),
    (
      changed(strategies=({'name': 'a', 'title': 'a', 'mine': 'sahha'},)),
      r"config\.strategies \(a\): no strategy 'sahha'; did you mean 'saha'",
    ),
    (
      changed(strategies=({'name': 'a/b', 'title': 'a', 'mine': 'saha'},)),
      'a name is made of a-z, 0-9 and _',
    ),
    (changed(models={'answers': training(model={'init': '{model:answers}'})}), 'needs another'),
    (changed(levels=({'name': 'usr', 'title': 'u', 'length': 9},)), 'usr'),
  ],
)
def test_what_a_config_refuses(values, message):
  with pytest.raises(UserError, match=message):
    build(EmbeddingStudyConfig, values)


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    (changed(pairs='emojitasks:al'), "no task 'al'"),
    (changed(evaluation={'sizes': 32}), "did you mean 'size'"),
    (changed(base='{model:nobody}'), r'config\.base: \{model:nobody\} is unknown; known'),
    (changed(base='run:/nowhere'), '/nowhere is not a folder'),
    (changed(training=training(model={'init': '{inti}'})), r'\{inti\} is unknown'),
  ],
)
def test_mistakes_show_before_any_work(values, message, tmp_path):
  with pytest.raises(UserError, match=message) as caught:
    run_study(build(EmbeddingStudyConfig, values), tmp_path / 'study')
  assert '\n' not in str(caught.value)
  assert not (tmp_path / 'study').exists()
