"""A tiny study whose arms end with captioners."""

import copy
import json

import pytest

from align_jax.config import build
from align_jax.errors import UserError
from align_jax.study.config import StudyConfig
from align_jax.study.page import write_page
from align_jax.study.results import by_arm
from align_jax.study.runner import run_study, total_work
from align_jax.study.specs import split_specs
from align_jax.study.summary import write_summary
from align_jax.train.checkpoints import load_params
from tests import tiny

SCENES = 'emoji:scenes?size=32&concepts=12&max_objects=1&captions=short&count=24'
TRAIN = {'steps': 2, 'batch_size': 8, 'checkpoint': {'every': 0, 'keep': 1}}
LOCK = ('image', 'image_lora')
SHARES = ('object', 'colour', 'count', 'exact', 'invented')


def captioner(route: str, **data: str) -> dict:
  adapters = {'image_lora': tiny.TRACKS['lora']} if route == 'modality' else {}
  return {
    'objective': {'name': 'caption', 'route': route, 'lock': LOCK},
    'model': adapters,
    'data': data,
  }


@pytest.fixture(scope='module')
def values():
  pytest.importorskip('resvg_py')
  pytest.importorskip('sacrebleu')
  towers = tiny.config_values('{real}', model=tiny.SMALL_MODEL, **TRAIN)
  generator = {**towers, 'model': {**tiny.DIT, 'width': 16, 'depth': 1, 'mlp_dim': 24}}
  writer = tiny.config_values(
    **TRAIN, objective=tiny.CAPTION, data={'text': 'captions', 'length': 48}
  )
  model = {**tiny.MULTIMODAL, 'image': tiny.SMALL_MODEL['image'], 'length': 48}
  model['decoder'] = {**model['decoder'], 'depth': 1}
  align = {
    'model': tiny.TRACKS,
    'objective': tiny.GMAIL,
    'data': {'real': '{real}', 'generated': '{paired}'},
    'optimizer': {'lr': 1e-2, 'warmup_steps': 0},
  }
  generated = {'generated': '{generated}'}
  mix = captioner('none', real='{real}', **generated)
  return {
    'title': 'captioners',
    'seeds': (0,),
    'data': {'real': SCENES, 'held_out': {'again': f'{SCENES}&split=extra'}},
    'base': towers,
    'models': {},
    'generator': {**generator, 'objective': tiny.FLOW},
    'sampling': {'count': 32, 'gap_count': 8, 'steps': 1, 'guidance': 1.0, 'shards': 1},
    'arm': {**towers, 'model': {**tiny.SMALL_MODEL, 'init': '{init}'}},
    'captioner': {**writer, 'model': {**model, 'init': '{init}'}},
    'arms': (
      {'name': 'naive_mix', 'title': 'mix', 'stages': (mix,)},
      {
        'name': 'gmail',
        'title': 'aligned',
        'stages': (align, captioner('modality', **generated)),
        'readings': ('clip_flow', 'aligned_encoder'),
      },
    ),
    'tasks': ('gap',),
    'eval_limit': 10,
    'headline': ('captions.exact', 'captions.object', 'captions.cider', 'gap.paired_cosine'),
    'comparisons': (('gmail', 'naive_mix'), ('naive_mix', 'gmail')),
  }


def test_captioners_are_trained_scored_and_shown(values, tmp_path):
  config = build(StudyConfig, values)
  runs, clock = run_study(config, tmp_path)
  assert [run.arm for run in runs] == ['naive_mix', 'gmail']
  mix, aligned = (tmp_path / 'seed0' / name for name in ('naive_mix', 'gmail'))
  # tower and adapters are those of the stage before; the base's, where there is none
  towers, after = load_params(aligned / 'stage1'), load_params(aligned / 'stage2')
  image = [name for name in after if name.startswith('image/')]
  assert any('lora' in name.split('/') and towers[name].any() for name in image)
  assert all((after[name] == towers[name]).all() for name in image)
  base, after = load_params(tmp_path / 'seed0' / 'base'), load_params(mix / 'stage1')
  assert all((after[n] == base[n]).all() for n in after if n.startswith('image/'))
  trained = json.loads((aligned / 'stage1' / 'config.json').read_text())
  assert trained['steps'] == 2  # those of the arm are not shared with the captioner
  for run in runs:
    for scores in run.scores.values():
      assert {f'captions.{name}' for name in SHARES} <= scores.keys()
      assert {'captions.bleu4', 'captions.cider', 'captions.clip_score'} <= scores.keys()
      assert {'again.captions.exact', 'gap.paired_cosine'} <= scores.keys()
      assert scores['captions.asked'] == 10
  kept = json.loads((aligned / 'captions.json').read_text())
  assert len(kept['said']) == 10
  assert kept['judged']['judge'] == str(tmp_path / 'seed0' / 'base')
  assert {'clip_flow', 'aligned_encoder'} == kept['scores'].keys()
  gaps = {run.arm: run.scores['clip_flow']['gap.paired_cosine'] for run in runs}
  assert gaps['gmail'] != gaps['naive_mix']  # of the towers that each reads with
  assert clock.seconds.keys() >= {'gmail, seed 0, stage 2'}
  write_page(tmp_path / 'report.html', config, split_specs(config, tmp_path), runs, clock.seconds)
  text = (tmp_path / 'report.html').read_text()
  for words in ('What the captioners say', 'Captions all right', 'Loss of each captioner'):
    assert words in text
  write_summary(tmp_path, config, by_arm(runs, all_readings=True))
  assert 'CIDEr' in (tmp_path / 'results.md').read_text()
  before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*') if p.is_file()}
  again, _ = run_study(config, tmp_path)
  assert [run.scores for run in again] == [run.scores for run in runs]
  after = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*') if p.is_file()}
  assert {p: t for p, t in after.items() if p.name != 'seconds.json'} == {
    p: t for p, t in before.items() if p.name != 'seconds.json'
  }


def test_the_work_of_captioners_is_their_own(values):
  config = build(StudyConfig, values)
  more = copy.deepcopy(values)
  more['captioner']['steps'] = 12
  assert total_work(build(StudyConfig, more)) - total_work(config) == 2 * 10 * 8


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'captioner': {}}, 'config.captioner: empty, but the arm naive_mix ends with a captioner'),
    ({'judge': '{model:judge}'}, 'config.judge: {model:judge} is unknown'),
    (
      {'arms': ({'name': 'a', 'title': 'a', 'stages': (captioner('none'), {})},)},
      r'config.arms \(a\): a captioner is the last stage',
    ),
    (
      {'arms': ({'name': 'a', 'title': 'a', 'stages': ({**captioner('none'), 'sets': 1},)},)},
      r'arms\[0\]\.stages\[0\] \(a\)\.sets: unknown field',
    ),
  ],
)
def test_mistakes_show_before_any_work(values, changes, message, tmp_path):
  changes = {'comparisons': (), 'trends': {}, **changes}
  with pytest.raises(UserError, match=message):
    run_study(build(StudyConfig, {**values, **changes}), tmp_path)
  assert not list(tmp_path.iterdir())
