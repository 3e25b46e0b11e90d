"""A study whose generated images are sets that the engine makes."""

import json

import pytest

from align_jax.config import build
from align_jax.data.shards import load_manifest
from align_jax.errors import UserError
from align_jax.study.config import StudyConfig
from align_jax.study.results import by_arm
from align_jax.study.runner import run_study
from align_jax.study.summary import write_summary
from tests import tiny

TRAIN = {'steps': 2, 'checkpoint': {'every': 0, 'keep': 1}}


@pytest.fixture(scope='module')
def values(tmp_path_factory):
  folder = tmp_path_factory.mktemp('sets')
  real = f'folder:{tiny.photo_folder(folder / "photos", each=8)}'
  tiny.photo_folder(folder / 'made', each=3)
  arm = tiny.config_values(model={**tiny.SMALL_MODEL, 'init': '{init}'}, **TRAIN)
  made = {
    'real': '{real}',
    'embedder': {'run': '{model:judge}'},
    'categories': {'base': f'source:{real}'},
    'prompts': {},
    'generators': [{'name': 'made', 'kind': 'external', 'settings': {'source': f'{folder}/made'}}],
    'images': {'count': 18, 'part_size': 9},
    'annotation': {'method': 'none'},
    'filtration': {'similarity': {'kind': 'none'}, 'duplicates': {'rule': 'none'}},
  }
  return {
    'title': 'sets',
    'seeds': [0],
    'data': {'real': real},
    'models': {'judge': tiny.config_values('{real}', model=tiny.SMALL_MODEL, **TRAIN)},
    'sets': {'plain': made},
    'base': tiny.config_values('{real}', model=tiny.SMALL_MODEL, **TRAIN),
    'arm': arm,
    'arms': [
      {'name': 'real_only', 'title': 'real', 'stages': [{'data': {'real': '{real}'}}]},
      {
        'name': 'mix',
        'title': 'mix',
        'stages': [{'data': {'real': '{real}', 'generated': '{set:plain}'}}],
        'generated': 12,
      },
    ],
    'tasks': ['zero_shot'],
    'frequency': [3, 5],
    'headline': ['zero_shot.balanced', 'zero_shot.rare', 'zero_shot.frequent'],
    'comparisons': [['mix', 'real_only']],
  }


def test_sets_are_made_once_and_arms_learn_from_them(values, tmp_path):
  config = build(StudyConfig, values)
  runs, _ = run_study(config, tmp_path)
  manifest = load_manifest(str(tmp_path / 'sets' / 'plain' / 'shards'))
  assert manifest.complete and manifest.total == 18
  mix = next(run for run in runs if run.arm == 'mix')
  trained = json.loads((mix.workdir / 'config.json').read_text())
  assert trained['data']['generated'] == (
    f'arrayrecord:{tmp_path}/sets/plain/shards/*.arrayrecord?limit=12'
  )
  scores = by_arm(runs)['mix']
  assert 'zero_shot.balanced' in scores
  assert {'zero_shot.frequent', 'zero_shot.common', 'zero_shot.rare'} & scores.keys()
  write_summary(tmp_path, config, by_arm(runs, all_readings=True))
  text = (tmp_path / 'results.md').read_text()
  assert 'Zero-shot, rare classes' in text and '| mix |' in text
  before = (tmp_path / 'sets' / 'plain' / 'shards' / 'manifest.json').stat().st_mtime_ns
  run_study(config, tmp_path)
  assert (tmp_path / 'sets' / 'plain' / 'shards' / 'manifest.json').stat().st_mtime_ns == before
  more = {**values, 'arms': [values['arms'][0], {**values['arms'][1], 'generated': 19}]}
  with pytest.raises(UserError, match=r'\(mix\): 19 generated images, .* plain keeps 18 of 18'):
    run_study(build(StudyConfig, more), tmp_path)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'sets': {}, 'models': {}}, 'config.sets: no generated images'),
    ({'sets': {'Plain 1': {}}}, r'config.sets \(Plain 1\): a name is made of'),
    ({'generator': {'steps': 1}}, 'config.sampling: a generator and how it is sampled'),
    ({'trends': {'more': ['mix', 'mixx']}}, r"config.trends \(more\): 'mixx' is no arm.*mix"),
  ],
)
def test_bad_studies(values, changes, message):
  with pytest.raises(UserError, match=message):
    build(StudyConfig, {**values, **changes})


def test_an_unknown_model_is_named(values, tmp_path):
  wrong = {**values['sets']['plain'], 'embedder': {'run': '{model:jugde}'}}
  with pytest.raises(UserError, match=r'config.sets.plain.embedder.run: {model:jugde} is unknown'):
    run_study(build(StudyConfig, {**values, 'sets': {'plain': wrong}}), tmp_path)
  assert not list(tmp_path.iterdir())
