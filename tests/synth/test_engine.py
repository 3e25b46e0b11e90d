import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from align_jax.config import build
from align_jax.data.images import decode_image
from align_jax.data.shards import load_manifest
from align_jax.data.sources import open_source
from align_jax.data.work import WorkConfig
from align_jax.errors import UserError
from align_jax.synth import engine
from align_jax.synth.config import SynthConfig
from align_jax.synth.engine import synthesize
from align_jax.synth.rows import AnnotationRow, DecisionRow, ImageRow, ScoreRow
from align_jax.synth.run import Run
from align_jax.synth.settings import STAGES
from align_jax.synth.stage import Stage
from align_jax.synth.summary import summary_lines, write_summary
from tests import tiny

HERE = WorkConfig(workers=1)


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  """Photographs, images that someone else made, and config values with tiny models."""
  folder = tmp_path_factory.mktemp('synth')
  tiny.photo_folder(folder / 'photos', each=6)
  for i, colour in enumerate(('red', 'green', 'blue') * 8):
    path = folder / 'made' / f'{colour} disc'
    path.mkdir(parents=True, exist_ok=True)
    tiny.picture(colour, 'disc', 900 + i).save(path / f'{i}.png')
  (folder / 'made' / 'red disc' / '00.png').write_bytes(b'\x89PNG\r\n\x1a\nbroken')
  real = f'folder:{folder}/photos'
  train = {'data': {'real': real}, 'checkpoint': {'every': 0, 'keep': 1}, 'steps': 2}
  values = {
    'real': real,
    'licence': 'CC0',
    'partners': 'category',
    'embedder': {'train': tiny.config_values(model=tiny.SMALL_MODEL, **train)},
    'categories': {
      'base': f'source:{real}',
      'extra': 'imagenet',
      'extra_count': 2,
      'threshold': 1.0,
    },
    'prompts': {'per_category': 4, 'strategies': {'template': 1.0, 'grammar': 3.0}},
    'generators': [
      {
        'name': 'flow',
        'kind': 'flow',
        'model': {'train': {**tiny.config_values(objective=tiny.FLOW, **train), 'model': tiny.DIT}},
        'settings': {'steps': 1, 'guidance': 1.0, 'batch_size': 8},
      },
      {'name': 'made', 'kind': 'external', 'settings': {'source': f'{folder}/made'}},
    ],
    'images': {'count': 40, 'part_size': 16, 'extra_share': 0.1},
    'annotation': {'work_size': 32, 'iterations': 1},
    'filtration': {
      'similarity': {'kind': 'none'},
      'masks': 'keep',
      'duplicates': {'rule': 'hash', 'distance': 0},
    },
    'report': {'map_points': 40, 'metric_rows': 40},
  }
  first = folder / 'first'
  synthesize(config(values), first, work=HERE, progress=False)
  # the other tests use the models of the first run
  for name, place in (('embedder', values['embedder']), ('flow', values['generators'][0]['model'])):
    place.clear()
    place['run'] = str(first / 'models' / name)
  return folder, values


def config(values: dict, **changes) -> SynthConfig:
  """`changes` are merged into the values, one level deep."""
  merged = copy.deepcopy(values)
  for key, value in changes.items():
    merged[key] = {**merged[key], **value} if isinstance(value, dict) else value
  return build(SynthConfig, merged)


def run(values: dict, workdir: Path, **options) -> Run:
  return synthesize(config(values), workdir, **{'work': HERE, 'progress': False, **options})


def files(workdir: Path) -> dict[str, bytes]:
  """Everything that the stages made, but for versions and notes."""
  return {
    str(path.relative_to(workdir)): path.read_bytes()
    for name in STAGES
    for path in sorted((workdir / name).rglob('*'))
    if path.is_file()
    and path.name not in ('stage.json', 'manifest.json')
    # entries hold the key of the stage, which the paths of the models are part of
    and not (path.name.startswith('part-') and path.suffix == '.json')
  }


@pytest.fixture(scope='module')
def done(world, tmp_path_factory):
  """A run by one process, in one go."""
  folder = tmp_path_factory.mktemp('done')
  run(world[1], folder)
  return folder


def test_shards_hold_what_was_kept_with_its_provenance(world, done):
  _, values = world
  made = Run(config(values), done)
  images = list(made.stage('generate').all_rows(ImageRow))
  decisions = {row.id: row for row in made.stage('filter').all_rows(DecisionRow)}
  scores = {row.id: row for row in made.stage('score').all_rows(ScoreRow)}
  assert len(images) == 40 == len(decisions)
  assert {image.generator for image in images} == {'flow', 'made'}
  source = open_source(f'arrayrecord:{done}/shards')
  kept = [source[i] for i in range(len(source))]
  assert [r.id for r in kept] == [i.id for i in images if decisions[i.id].kept]
  assert 0 < len(kept) <= 40
  manifest = load_manifest(str(done / 'shards'))
  assert manifest.complete and manifest.shard_count == 3 and manifest.licence == 'CC0'
  assert manifest.total + sum(manifest.skipped.values()) == 40
  by_id = {image.id: image for image in images}
  real = open_source(values['real'])
  real_ids = {real[i].id for i in range(len(real))}
  for record in kept:
    row, found = by_id[record.id], record.truth['provenance']
    assert record.modality == 'generated' and record.labels == (row.category,)
    assert record.captions == (row.prompt,) and record.prompt == row.prompt
    assert found['seed'] == row.seed and found['generator'] == row.generator
    assert record.generator_id == row.generator_id and found['settings']
    assert record.truth['scores']['phash'] == scores[record.id].phash
    assert record.truth['decision']['kept']
    extra = row.category not in {f'{c} {s}' for c in tiny.COLOURS for s in tiny.SHAPES}
    assert (record.pair_id in real_ids) != extra
    assert decode_image(record.image).shape[2] == 3
  (broken,) = [i for i in images if i.failure]
  assert broken.failure == 'corrupt' and decisions[broken.id].reasons == ('corrupt',)


def test_the_same_seed_gives_the_same_bytes(world, done, tmp_path):
  run(world[1], tmp_path, work=WorkConfig(workers=2))
  assert files(tmp_path) == files(done)


def test_stages_one_by_one_give_the_same(world, done, tmp_path):
  for name in STAGES:
    made = run(world[1], tmp_path, stage=name)
  assert files(tmp_path) == files(done)
  assert made.kept() == Run(config(world[1]), done).kept()
  with pytest.raises(UserError, match=r"--stage=scores: no such stage; did you mean 'score'"):
    run(world[1], tmp_path, stage='scores')


def test_a_stage_wants_those_before_it(world, tmp_path):
  with pytest.raises(UserError, match=r'categories: 0 of 1 parts are done; run --stage=categories'):
    run(world[1], tmp_path, stage='generate')


def test_beam_annotates_the_same(world, done, tmp_path):
  run(world[1], tmp_path, work=WorkConfig(1, 'DirectRunner', ('--direct_num_workers=1',)))
  assert files(tmp_path) == files(done)


@pytest.mark.parametrize('killed_at', range(1, 20, 4))
def test_killed_anywhere_it_ends_the_same_and_repeats_nothing(
  world, done, tmp_path, monkeypatch, killed_at
):
  """A stop before or after any part: what is done stays, what is not is made."""
  write, count, made = Stage.write, 0, []

  def counted(self, part, *arguments, **named):
    nonlocal count
    count += 1
    if count == killed_at:
      raise KeyboardInterrupt
    write(self, part, *arguments, **named)
    made.append((self.name, part))

  monkeypatch.setattr(Stage, 'write', counted)
  try:
    run(world[1], tmp_path)
  except KeyboardInterrupt:
    run(world[1], tmp_path)
  assert len(made) == len(set(made)) == 2 + 4 * 3
  assert files(tmp_path) == files(done)


def test_a_finished_run_is_not_touched(world, done, monkeypatch):
  before = {p: p.stat().st_mtime_ns for p in done.rglob('*') if p.is_file()}
  monkeypatch.setattr(Run, 'make', None)
  run(world[1], done)
  assert {p: p.stat().st_mtime_ns for p in done.rglob('*') if p.is_file()} == before


def test_a_full_disk_loses_nothing(world, done, tmp_path, monkeypatch):
  from align_jax.synth import stage as stage_lib

  sync, count = stage_lib.sync, 0

  def full(path):
    nonlocal count
    count += 1
    if count > 8:
      raise OSError(28, 'No space left on device')
    sync(path)

  with monkeypatch.context() as patch, pytest.raises(UserError, match='no space left'):
    patch.setattr(stage_lib, 'sync', full)
    run(world[1], tmp_path)
  run(world[1], tmp_path)
  assert files(tmp_path) == files(done)


def test_other_settings_are_refused_until_redone(world, done, tmp_path):
  _, values = world
  run(values, tmp_path)
  other = copy.deepcopy(values)
  other['filtration']['min_spread'] = 30.0
  with pytest.raises(UserError, match=r'filtration.min_spread: 2.0, now 30.0.*--redo=filter'):
    run(other, tmp_path)
  assert files(tmp_path) == files(done)
  again = copy.deepcopy(values)
  again['generators'][0]['settings']['batch_size'] = 5  # decides nothing that is made
  run(again, tmp_path)
  made = run(other, tmp_path, redo='filter')
  reasons = [r.reasons[0] for r in made.stage('filter').all_rows(DecisionRow) if not r.kept]
  assert any(reason.startswith('blank') for reason in reasons)
  assert files(tmp_path)['generate/part-00000.jsonl'] == files(done)['generate/part-00000.jsonl']


def test_quantiles_are_of_all_parts(world, tmp_path):
  _, values = world
  other = copy.deepcopy(values)
  other['filtration']['similarity'] = {'kind': 'quantile', 'drop': 0.5, 'at_least': 1}
  made = run(other, tmp_path)
  rows = list(made.stage('filter').all_rows(DecisionRow))
  dropped = sum(any(text.startswith('similarity') for text in r.reasons) for r in rows)
  assert 10 <= dropped <= 24


def test_numbers_that_are_not_finite_are_counted_not_written(world, tmp_path, monkeypatch):
  _, values = world
  draw = engine.Run._generate

  def broken(self, part, seen):
    generate = self.generators['flow'].generate
    self.generators['flow'].generate = lambda prompts, seeds: [
      None if i == 0 else image for i, image in enumerate(generate(prompts, seeds))
    ]
    draw(self, part, seen)

  monkeypatch.setattr(engine.Run, '_generate', broken)
  made = run(values, tmp_path)
  rows = list(made.stage('generate').all_rows(ImageRow))
  assert sum(row.failure == 'not_finite' for row in rows) >= 3
  manifest = load_manifest(str(tmp_path / 'shards'))
  assert manifest.skipped['not_finite'] >= 3 and manifest.complete


def test_masks_are_in_the_records(world, done):
  made = Run(config(world[1]), done)
  rows = [r for r in made.stage('annotate').all_rows(AnnotationRow) if not r.failure]
  source = open_source(f'arrayrecord:{done}/shards')
  found = {source[i].id: source[i].truth.get('annotation') for i in range(len(source))}
  both = [row for row in rows if row.id in found]
  assert both
  for row in both:
    assert found[row.id]['rle'] == row.rle and list(found[row.id]['size']) == [
      row.height,
      row.width,
    ]


def test_the_report_is_written(world, done):
  made = Run(config(world[1]), done)
  write_summary(made, ['python', '-m', 'align_jax.synthesize'])
  page, numbers = (done / 'report.html').read_text(), json.loads((done / 'report.json').read_text())
  assert 'red disc' in page and '<script src' not in page
  assert numbers['funnel.kept'] == made.kept()
  lines = summary_lines(made)
  assert any(f'{made.kept()} of 40 images kept; dropped: ' in line for line in lines)


def command_of(values: dict, folder: Path) -> list[str]:
  """The command line of a run of these values."""
  file = folder / 'config.py'
  file.write_text(
    'from ml_collections import ConfigDict\n'
    f'def get_config():\n  return ConfigDict({json.loads(json.dumps(values))!r})\n'
  )
  return [sys.executable, '-m', 'align_jax.synthesize', f'--config={file}']


def test_the_command_runs_and_says_what_is_wrong(world, tmp_path):
  command = command_of(world[1], tmp_path)
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu'}

  def call(*flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
      [*command, *flags], capture_output=True, text=True, env=environment, check=False
    )

  for stage in ('categories', 'prompts'):
    alone = call(f'--workdir={tmp_path}/run', f'--stage={stage}')
    assert alone.returncode == 0, alone.stderr
    assert f'done so far: categories{", prompts" if stage == "prompts" else ""}' in alone.stdout
  good = call(f'--workdir={tmp_path}/run', '--workers=1')
  assert good.returncode == 0, good.stderr
  assert 'of 40 images kept' in good.stdout and 'images/s' in good.stderr
  assert (tmp_path / 'run' / 'report.html').exists()
  # two processes make what one does
  launcher = [sys.executable, '-m', 'launch.local', '--processes=2', '--devices=1', '--']
  both = [*launcher, *command, f'--workdir={tmp_path}/both', '--workers=1']
  ended = subprocess.run(both, capture_output=True, text=True, env=environment, check=False)
  assert ended.returncode == 0, ended.stderr
  assert files(tmp_path / 'both') == files(tmp_path / 'run')
  bad = call(f'--workdir={tmp_path}/bad', '--config.images.count=0')
  assert bad.returncode == 2 and bad.stderr.count('\n') == 1
  assert 'config.images.count: 0' in bad.stderr and not (tmp_path / 'bad').exists()


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'categories': {'base': 'file:none.txt'}}, 'none.txt: no such file'),
    ({'generators': []}, 'config.generators: none'),
    ({'embedder': {'run': ''}}, 'config.embedder: set either run'),
    ({'embedder': {'run': '/no/such/run'}}, 'no config.json there'),
    ({'real': 'folder:/no/such/folder'}, '/no/such/folder'),
    ({'images': {'allocation': 'most'}}, 'config.images.allocation'),
    ({'filtration': {'fallback': 'text'}}, 'config.filtration.fallback'),
    ({'annotation': {'method': 'sam'}}, 'config.annotation.folder'),
  ],
)
def test_bad_input_is_named(world, tmp_path, changes, message):
  with pytest.raises(UserError, match=message):
    synthesize(config(world[1], **changes), tmp_path / 'run', work=HERE, progress=False)
  assert not (tmp_path / 'run' / 'generate').exists() or not list(
    (tmp_path / 'run' / 'generate').glob('part-*')
  )


def test_seeds_decide_the_images(world, done, tmp_path):
  other = copy.deepcopy(world[1])
  other['images']['seed'] = 1
  for name in STAGES[:3]:
    made = run(other, tmp_path, stage=name)
  first = Run(config(world[1]), done)
  ids = [{row.id for row in r.stage('generate').all_rows(ImageRow)} for r in (made, first)]
  drawn = {i for i in ids[0] if i.startswith('flow')}
  assert drawn and not drawn & ids[1]
  pixels = [
    {r.image for r in r_.stage('generate').records(0) if r.generator_id.startswith('dit')}
    for r_ in (made, first)
  ]
  assert pixels[0] and not pixels[0] & pixels[1]
