"""A whole study at tiny size: metrics, page, going on, and what its config refuses."""

import copy
import html.parser
import json
import math
from pathlib import Path

import numpy as np
import pytest

from align_jax.config import build
from align_jax.errors import UserError
from align_jax.study.__main__ import text_table
from align_jax.study.config import StudyConfig, train_config
from align_jax.study.page import verdict, write_page
from align_jax.study.results import JUDGED, by_arm, compare, write_metrics
from align_jax.study.runner import Run, run_study
from align_jax.study.specs import split_specs
from configs import study_diversity
from tests import tiny

# The keys promised of every arm.
KEYS = (
  'retrieval.t2i.r1',
  'retrieval.i2t.r1',
  'zero_shot.top1',
  'probe.linear',
  'probe.knn',
  'gap.auc',
  'gap.paired_cosine',
)
TRAIN = tiny.config_values(
  steps=4,
  batch_size=8,
  log_every=1,
  model=tiny.SMALL_MODEL,
  checkpoint={'every': 0, 'keep': 1},
  data={'real': ''},
)
ALIGN = {
  'model': tiny.TRACKS,
  'objective': tiny.GMAIL,
  'data': {'real': '{real}', 'generated': '{paired}'},
}
USE = {
  'model': tiny.TRACKS,
  'objective': {
    'name': 'contrastive',
    'route': 'modality',
    'lock': ('image', 'image_projection', 'lora', 'generated_projection'),
  },
  'data': {'real': '{real}', 'generated': '{generated}'},
}


def study_values(photos: str) -> dict:
  base = copy.deepcopy(TRAIN)
  base['data']['real'] = '{real}'
  generator = {**copy.deepcopy(base), 'objective': tiny.FLOW}
  generator['model'] = {**tiny.DIT, 'width': 16, 'depth': 1, 'mlp_dim': 24}
  generator['optimizer'] = {'lr': 1e-3, 'warmup_steps': 1, 'ema': 0.9}
  arm = copy.deepcopy(TRAIN)
  arm['model'] = {**arm['model'], 'init': '{init}'}
  return {
    'title': 'A tiny study',
    'seeds': (0, 1),
    'data': {'real': photos, 'held_out': {'again': f'{photos}?split=extra'}},
    'base': base,
    'generator': generator,
    'sampling': {
      'count': 24,
      'gap_count': 8,
      'steps': 2,
      'guidance': 2.0,
      'batch_size': 12,
      'shards': 2,
    },
    'arm': arm,
    'arms': (
      {'name': 'base', 'title': 'the base', 'stages': ()},
      {'name': 'real_only', 'title': 'real only', 'stages': ({'data': {'real': '{real}'}},)},
      {'name': 'naive_mix', 'title': 'naive mix', 'stages': ({'data': USE['data']},)},
      {
        'name': 'aligned',
        'title': 'aligned',
        'stages': (ALIGN, USE),
        'readings': ('clip_flow', 'aligned_encoder'),
      },
    ),
    'templates': 'photo',
    'eval_limit': 50,
  }


@pytest.fixture(scope='module')
def values(tmp_path_factory):
  return study_values(f'folder:{tiny.photo_folder(tmp_path_factory.mktemp("mine") / "p", each=6)}')


@pytest.fixture(scope='module')
def study(values, tmp_path_factory):
  """The finished study: (config, folder, runs, seconds)."""
  folder = tmp_path_factory.mktemp('study')
  config = build(StudyConfig, values)
  runs, clock = run_study(config, folder)
  seconds = clock.seconds
  write_page(folder / 'report.html', config, split_specs(config, folder), runs, seconds)
  write_metrics(folder / 'metrics.json', runs, sum(seconds.values()))
  return config, folder, runs, seconds


def snapshot(folder: Path, *but: str) -> dict[str, tuple[int, int]]:
  """Every file of a study's pieces: when it was written, and its size."""
  files = (p for p in folder.rglob('*') if p.is_file())
  return {
    str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.stat().st_size)
    for p in files
    if p.name not in ('seconds.json', *but)
  }


def test_metrics_have_the_promised_form(study):
  _, folder, _, _ = study
  content = json.loads((folder / 'metrics.json').read_text())
  assert {'arms', 'seconds', 'versions'} <= set(content)
  assert list(content['arms']) == ['base', 'real_only', 'naive_mix', 'aligned']
  for arm, metrics in content['arms'].items():
    assert set(KEYS) <= set(metrics), arm
    assert all(isinstance(v, float) and math.isfinite(v) for v in metrics.values()), arm
    assert all(0 <= metrics[k] <= 1 for k in KEYS if k != 'gap.paired_cosine'), arm
    assert 'again.retrieval.t2i.r1' in metrics
  assert content['seconds'] > 0
  assert {'jax', 'flax', 'optax'} <= set(content['versions'])
  assert content['seeds'] == [0, 1]
  assert set(content['readings']) == {'aligned (clip_flow)', 'aligned (aligned_encoder)'}
  for key in KEYS:
    seeds = content['per_seed']['real_only'][key]
    assert len(seeds) == 2
    assert content['arms']['real_only'][key] == pytest.approx(np.mean(seeds))
  assert content['arms']['aligned'] == content['readings']['aligned (clip_flow)']


def test_readings_of_the_aligned_arm_differ(study):
  _, _, runs, _ = study
  aligned = [run for run in runs if run.arm == 'aligned']
  assert [run.seed for run in aligned] == [0, 1]
  for run in aligned:
    one, other = (run.scores[r]['gap.paired_cosine'] for r in ('clip_flow', 'aligned_encoder'))
    assert one != other


def test_pieces_stand_where_they_belong(study):
  _, folder, runs, seconds = study
  assert {p.name for p in folder.iterdir()} == {
    *('seed0', 'seed1', 'generator', 'generated'),
    *('seconds.json', 'metrics.json', 'report.html'),
  }
  stages = {a: len(list((folder / 'seed1' / a).glob('stage*'))) for a in {r.arm for r in runs}}
  assert stages == {'base': 0, 'real_only': 1, 'naive_mix': 1, 'aligned': 2}
  manifest = json.loads(next((folder / 'generated/train').glob('*.json')).read_text())
  assert manifest['complete']
  assert len(seconds) == 2 * (1 + 1 + 2 + 2 + 3) + 2
  assert not list(folder.rglob('*.partial'))


class Page(html.parser.HTMLParser):
  def __init__(self, text):
    super().__init__()
    self.fetched, self.words = [], ''
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    fetching = ('src', 'srcset', 'data', 'poster', *(['href'] if tag == 'link' else []))
    self.fetched += [value for key, value in attrs if key in fetching]

  def handle_data(self, data):
    self.words += data


def test_page_is_whole_and_fetches_nothing(study):
  config, folder, runs, _ = study
  text = (folder / 'report.html').read_text()
  page = Page(text)
  assert len(page.fetched) > 10
  assert all(address.startswith('data:') for address in page.fetched)
  assert 'url(http' not in text
  assert '@import' not in text
  for words in (config.title, verdict(runs), 'real only', 'Both readings', 'Held-out set: again'):
    assert words in page.words


def test_table_for_a_terminal_has_a_row_an_arm(study):
  config, _, runs, _ = study
  lines = text_table(config, by_arm(runs)).splitlines()
  assert [line.split('  ')[0] for line in lines[1:]] == [
    'the base',
    'real only',
    'naive mix',
    'aligned',
  ]
  assert all('±' in line for line in lines[1:])
  assert len({len(line) for line in lines}) == 1


def test_rerun_does_nothing_and_a_new_arm_costs_that_arm_alone(values, study):
  config, folder, runs, _ = study
  before = snapshot(folder)
  again, _ = run_study(config, folder)
  assert snapshot(folder) == before
  assert [(r.arm, r.seed, r.scores) for r in again] == [(r.arm, r.seed, r.scores) for r in runs]
  extra = {
    'name': 'generated_only',
    'title': 'g',
    'stages': ({'data': {'generated': '{generated}'}},),
  }
  more = build(StudyConfig, {**values, 'seeds': (0,), 'arms': (*values['arms'], extra)})
  grown, _ = run_study(more, folder)
  after = snapshot(folder)
  assert {name: after[name] for name in before} == before
  new = set(after) - set(before)
  assert new
  assert all(name.startswith('seed0/generated_only/') for name in new)
  assert [(r.arm, r.seed) for r in grown][-1] == ('generated_only', 0)


def test_a_changed_arm_is_refused_where_its_run_is_done(values, study):
  """A finished piece of another config is never passed off as the config's own."""
  _, folder, _, _ = study
  changed = copy.deepcopy(values)
  changed['base']['optimizer']['lr'] = 0.5
  with pytest.raises(UserError, match=r'config\.optimizer\.lr: 0\.5, but'):
    run_study(build(StudyConfig, changed), folder)


def test_mistakes_show_before_any_work(values, tmp_path):
  for change, message in (
    (
      {'arms': ({'name': 'a', 'title': 'a', 'stages': ({'data': {'real': '{rael}'}},)},)},
      r'{rael}',
    ),
    (
      {'arms': ({'name': 'a', 'title': 'a', 'stages': ({'steps_': 3},)},)},
      r'arms\[0\]\.stages\[0\]',
    ),
    ({'arms': (values['arms'][1], values['arms'][1])}, 'two arms share a name'),
    ({'tasks': ('retrieval', 'gpa')}, "unknown task 'gpa'; did you mean 'gap'"),
    ({'data': {'real': 'folder:/nowhere'}}, '/nowhere'),
    ({'data': {**values['data'], 'held_out': {'x': 'floder:y'}}}, "did you mean 'folder'"),
    ({'generator': {**values['generator'], 'objective': {'name': 'flwo'}}}, "did you mean 'flow'"),
  ):
    with pytest.raises(UserError, match=message) as caught:
      run_study(build(StudyConfig, {**values, **change}), tmp_path / 'study')
    assert '\n' not in str(caught.value)
    assert not (tmp_path / 'study').exists()


NAMES = {'real': 'folder:x', 'generated': 'arrayrecord:y', 'init': 'run:z'}


def test_train_config_merges_and_fills():
  override = {'data': {'real': '{real}'}, 'model': {'dim': 8, 'init': '{init}'}, 'seed': 7}
  config = train_config(TRAIN, override, NAMES, 'here')
  assert (config.data.real, config.model['init'], config.seed) == ('folder:x', 'run:z', 7)
  assert config.model['dim'] == 8
  assert config.model['image'] == TRAIN['model']['image']
  assert config.data.length == TRAIN['data']['length']
  # an objective is replaced whole: `form` is not GMAIL's but contrastive's
  gmail = train_config(TRAIN, {'objective': {'name': 'gmail'}}, NAMES, 'here')
  assert gmail.objective == {'name': 'gmail'}
  more = {'data': {'more': ({'spec': '{generated}', 'weight': 2.0},)}}
  assert train_config(TRAIN, more, NAMES, 'here').data.more[0].spec == 'arrayrecord:y'


@pytest.mark.parametrize(
  ('override', 'message'),
  [
    (
      {'data': {'real': '{rael}'}},
      r'here\.data.*\{rael\} is unknown; known: real, generated, init',
    ),
    ({'data': {'reel': 'x'}}, r"here\.data\.reel: unknown field; did you mean 'real'"),
    ({'stpes': 3}, r"here\.stpes: unknown field; did you mean 'steps'"),
    ({'steps': 'x'}, r'here\.steps: expected int'),
  ],
)
def test_train_config_names_the_mistake(override, message):
  with pytest.raises(UserError, match=message):
    train_config(TRAIN, override, NAMES, 'here')


def fake_runs(seeds: int, **gaps: float | list[float]) -> list[Run]:
  """An aligned and a naive arm; `gaps` are aligned less naive, by the last word of the metric."""
  runs = []
  for seed in range(seeds):
    naive = {key: 0.4 + 0.01 * seed for key in JUDGED}
    aligned = dict(naive)
    for name, gap in gaps.items():
      key = next(k for k in JUDGED if k.replace('.', '_') == name)
      aligned[key] += gap[seed] if isinstance(gap, list) else gap
    for arm, scores in (('naive_mix', naive), ('aligned', aligned)):
      runs.append(Run(arm, seed, Path('run'), Path('base'), {'clip_flow': scores}))
  return runs


def test_verdict_says_better_worse_and_even():
  text = verdict(
    fake_runs(
      3,
      retrieval_t2i_r1=[0.10, 0.11, 0.12],
      probe_knn=[-0.05, -0.06, -0.07],
      probe_linear=[0.2, -0.2, 0.1],
    )
  )
  better, worse, even = text.split('; ')
  assert better == 'Aligning beat mixing on Text → image R@1 (+11.0 points)'
  assert worse == 'mixing beat aligning on kNN probe (-6.0 points)'
  assert even.startswith('no clear difference on ')
  for name in ('Image → text R@1', 'Zero-shot top', 'Linear probe (+3.3 points)'):
    assert name in even
  assert 'One seed' not in text


@pytest.mark.parametrize(
  ('gap', 'begins'),
  [
    (0.08, 'Aligning beat mixing on '),
    (-0.08, 'Mixing beat aligning on '),
    (0.02, 'No clear difference on '),
  ],
)
def test_verdict_of_one_seed_owns_up_to_it(gap, begins):
  gaps = {key.replace('.', '_'): gap for key in JUDGED}
  text = verdict(fake_runs(1, **gaps))
  assert text.startswith(begins)
  assert ';' not in text
  assert text.endswith('One seed: differences of four points and less are taken for noise.')


def test_verdict_of_several_pairs_says_what_is_firm():
  config = build(StudyConfig, study_diversity.get_config().to_dict())
  runs = []
  for arm in config.arms:
    for seed in range(3):
      value = 0.2 + 0.01 * seed + 0.1 * (arm.name == 'mix_all')
      scores = dict.fromkeys(config.headline, 0.2) | {config.headline[0]: value}
      runs.append(Run(arm.name, seed, Path('run'), Path('base'), {'clip_flow': scores}))
  lines = verdict(runs, config).splitlines()
  assert len(lines) == len(config.comparisons)
  first = 'naive mix: + filtration (all) against naive mix: one template, one generator: The first'
  assert lines[0] == f'{first} beat the second on Zero-shot balanced (+10.0 points).'
  assert lines[1].endswith(': No clear difference.')


def test_verdict_without_both_arms_claims_nothing():
  runs = [run for run in fake_runs(2) if run.arm == 'aligned']
  assert verdict(runs) == '1 arms were measured; the tables below compare them.'


def test_differences_are_paired_by_seed():
  """The seeds' own spread cancels: what counts is that every seed moves the same way."""
  found = {
    key: (mean, error)
    for key, mean, error in compare(by_arm(fake_runs(3, probe_knn=0.05)), 'aligned', 'naive_mix')
  }
  mean, error = found['probe.knn']
  assert mean == pytest.approx(0.05)
  assert error == pytest.approx(0, abs=1e-12)
