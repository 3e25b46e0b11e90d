"""From a run and pairs to a plan: the command, the functions behind it, and its page."""

import base64
import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from align_jax.data.pair_record import Content
from align_jax.data.pair_sources import open_pairs
from align_jax.data.sources import open_source
from align_jax.data.tokenizer import load_tokenizer
from align_jax.encoder import make_encoder
from align_jax.errors import UserError
from align_jax.miner import make_miner
from align_jax.mining.plan import check_plan, load_plan
from align_jax.mining.strategy import MiningConfig
from align_jax.mining_run import embed_pairs, mine_pairs, mine_run
from align_jax.objectives import make_objective
from align_jax.parallel.mesh import MeshConfig, make_mesh
from align_jax.tower_embedder import TowerEmbedder, load_embedder
from align_jax.train.checkpoints import load_params
from align_jax.train.init import make_config
from align_jax.train.loop import train
from align_jax.train.remine import Stopped
from align_jax.train.run_config import read_run_config
from tests import chats, tiny
from tests.pairs import Page, Source, pair
from tests.test_entries import ROOT, command

pytest.importorskip('resvg_py')

SCENES = 'emoji:scenes?size=32&concepts=12&max_objects=2&count=48&captions=short'
PAIRS = f'{SCENES}&pairs=image_to_caption'
LENGTH = 300  # of prompts: the tokenizer's words are short
TWO_PARTS = {
  **tiny.MULTIMODAL,
  'image': {**tiny.MULTIMODAL['image'], 'depth': 1},
  'decoder': {**tiny.MULTIMODAL['decoder'], 'depth': 1},
  'length': LENGTH,
}


@pytest.fixture(scope='module')
def towers(tmp_path_factory):
  """A run of a dual encoder with a track for generated images."""
  folder = tmp_path_factory.mktemp('towers') / 'run'
  config = tiny.config(SCENES, steps=2, batch_size=8, model={**tiny.SMALL_MODEL, **tiny.TRACKS})
  train(config, make_objective(config.objective), folder)
  return folder


@pytest.fixture(scope='module')
def answering(tmp_path_factory):
  """A run of a multimodal model."""
  folder = tmp_path_factory.mktemp('answering') / 'run'
  data = {'text': 'questions', 'length': LENGTH, 'vocab_size': 300}
  values = tiny.config_values(SCENES, steps=2, batch_size=8, data=data)
  config = make_config({**values, 'objective': tiny.CAPTION, 'model': TWO_PARTS})
  train(config, make_objective(config.objective), folder)
  return folder


def test_command(towers, tmp_path):
  output = tmp_path / 'mined'
  done = command(
    'align_jax.mine', f'--checkpoint={towers}', f'--data={PAIRS}', f'--output={output}', '--k=3',
    '--report', '--shown=2',
  )  # fmt: skip
  plan = load_plan(output / 'plan.jsonl.gz')
  check_plan(plan, open_pairs(PAIRS).ids())
  assert (plan.size, len(plan.clusters), plan.data) == (4, 12, PAIRS)
  text = (output / 'report.txt').read_text()
  assert done.stdout.startswith(text) and 'of the negatives are false: truly matches' in text
  assert 'embed' in done.stderr and 'pairs/s' in done.stderr and 'queries/s' in done.stderr
  page = Page((output / 'report.html').read_text())
  kinds = [src.partition(';base64,') for src in page.images]
  pictures = [data for kind, _, data in kinds if kind == 'data:image/png']
  assert len(pictures) == 2 and all(kind.startswith('data:image/') for kind, _, _ in kinds)
  assert Image.open(io.BytesIO(base64.b64decode(pictures[0]))).size == (96, 96)
  assert sum(word.startswith('Near, and left out: ') for word in page.words) == 2
  assert 'script' not in page.tags
  before = (output / 'plan.jsonl.gz').read_bytes()
  flow = tmp_path / 'flow'
  flow.mkdir()
  config = {**tiny.config_values(SCENES), 'objective': tiny.FLOW, 'model': tiny.DIT}
  (flow / 'config.json').write_text(json.dumps(config))
  (tmp_path / 'file').touch()
  there = f'--output={output}'
  lines = several(
    [f'--checkpoint={towers}', f'--data={PAIRS}', '--k=3', f'--output={tmp_path / "new"}'],
    [
      [there],
      [there, '--overwrite'],
      [f'--output={tmp_path / "file"}'],
      ['--strategy=saha_mutul'],
      ['--skip=-1'],
      ['--strategy=percentage', '--percentage=0'],
      ['--labelled_tasks=vqa'],
      ['--strategy=saha', '--labelled_tasks=vqa', '--noper_task'],
      ['--alike=0'],
      ['--recall=1'],
      ['--k=48'],
      ['--level=user'],
      [f'--checkpoint={flow}'],
      [f'--data=mmeb:{tmp_path}/none'],
    ],
  )
  for line, wanted in zip(
    lines,
    [
      'holds a plan, which a training may follow; choose another folder, or replace it',
      'done',
      'a file; name a folder',
      "no strategy 'saha_mutul'; did you mean 'saha_mutual'?",
      '--skip: -1 must be at least 0',
      '--percentage: 0.0: above 0',
      '--labelled_tasks: is for the strategy saha, not for saha_mutual',
      '--labelled_tasks: needs tasks that are mined apart (per_task)',
      '--alike: 0.0 is no share above 0',
      '--recall: 1.0 must be 0 (exact), or below 1',
      '48 pairs, and k=48 needs clusters of 49',
      "a dual encoder has no prompt; leave the level 'user' out",
      'a run of a generator',
      'no file or folder',
    ],
    strict=True,
  ):
    assert wanted in line
  assert (output / 'plan.jsonl.gz').read_bytes() == before
  assert not (tmp_path / 'new').exists()


def several(common, cases):
  """Runs the command's main for each case in one other process; returns what each came to."""
  program = """
import json, sys
from absl import flags
from align_jax import mine
from align_jax.errors import UserError
common, cases = json.loads(sys.argv[1])
for case in cases:
  flags.FLAGS.unparse_flags()
  for flag in flags.FLAGS.flags_by_module_dict()['align_jax.mine']:
    flag.unparse()
  flags.FLAGS(['mine', *common, *case])
  try:
    mine.main()
    print('\\ncase: done')
  except UserError as error:
    print('\\ncase:', ' '.join(str(error).split()))
"""
  environment = {k: v for k, v in os.environ.items() if not k.startswith('JAX_')}
  environment |= {'JAX_PLATFORMS': 'cpu'}
  done = subprocess.run(
    [sys.executable, '-c', program, json.dumps([common, cases])],
    cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return [line for line in done.stdout.splitlines() if line.startswith('case:')]


def test_a_multimodal_run_mines_every_task(answering):
  source = open_pairs('emojitasks:all?split=train&size=32&concepts=12&count=8')
  embed = load_embedder(answering, 'user')
  found = embed_pairs(embed, source)
  assert len(found.task_names) == 6 and len(found.ids) == len(source) == 48
  assert (found.labels >= 0).all()
  np.testing.assert_allclose(np.linalg.norm(found.pairs.queries, axis=1), 1, atol=1e-5)
  mined = mine_pairs(found, 3, 'saha_mutual')
  tasks = found.tasks[mined.clusters]
  assert (tasks == tasks[:, :1]).all()
  assert len(np.unique(mined.clusters)) >= 48 - mined.counts['known_match']
  with pytest.raises(UserError, match=r"no task 'vq'; did you mean 'vqa'\?"):
    mine_pairs(found, 3, 'saha', labelled_tasks=['vq'])
  classes = mine_pairs(found, 3, 'saha', labelled_tasks=['classification'])
  assert classes.settings['labelled_tasks'] == (found.task_names.index('classification'),)


def test_levels_of_a_multimodal_run(answering, tmp_path):
  contents = [Content('a red cat')]
  found = [load_embedder(answering, level)(contents, 'query')[0] for level in ('', 'none', 'user')]
  np.testing.assert_array_equal(
    found[0], load_embedder(answering, 'hierarchical')(contents, 'query')[0]
  )
  assert np.abs(found[0] - found[1]).max() > 1e-3 and np.abs(found[1] - found[2]).max() > 1e-3
  deaf = tmp_path / 'deaf'
  shutil.copytree(answering, deaf)
  (deaf / 'tokenizer' / 'chat_template.jinja').write_text(chats.DEAF)
  with pytest.raises(UserError, match=r'no system role, which .* use --level=user'):
    load_embedder(deaf)
  load_embedder(deaf, 'user')


def perturbed(run):
  """Makes the embedder of a run with weights moved by chance, so that its tracks differ."""
  config = read_run_config(run)
  rng = np.random.default_rng(0)
  params = {
    n: p + 0.05 * rng.standard_normal(p.shape).astype(np.float32)
    for n, p in load_params(run, averaged=True, step=None).items()
  }
  tokenizer = load_tokenizer(run / 'tokenizer')
  return lambda mesh=None: TowerEmbedder(make_encoder(config, params, tokenizer, mesh))


def test_a_dual_encoder_embeds_contents_by_their_towers(towers):
  embed = perturbed(towers)()
  png = tiny.png(tiny.picture('red', 'disc', 0))
  contents = [
    Content('a red cat'),
    Content('', (png,)),
    Content('', (png,), modality='generated'),
    Content('a red cat', (png,)),
  ]
  assert contents[1].id != contents[2].id
  found = embed(contents, 'query', 'Find it.')
  pixels = np.asarray(Image.open(io.BytesIO(png)))[None]
  text = embed.encoder.embed_texts(['a red cat'])[0]
  real, generated = (embed.encoder.embed_images(pixels, m)[0] for m in ('real', 'generated'))
  assert np.abs(real - generated).max() > 1e-3
  both = (text + real) / np.linalg.norm(text + real)
  np.testing.assert_allclose(found, [text, real, generated, both], atol=1e-5)
  np.testing.assert_array_equal(found, embed(contents, 'candidate'))
  for content, message in (
    (Content('', (png, png), 'two'), 'content two: 2 images and no text; a dual encoder embeds'),
    (Content(''), '0 images and no text'),
    (Content('', (b'no image',), 'broken'), 'content broken: .*; leave it out'),
  ):
    with pytest.raises(UserError, match=message):
      embed([content], 'query')
  with pytest.raises(UserError, match='the list of contents is empty'):
    embed([], 'query')


def test_pairs_of_gmail_go_through_their_own_tracks(tmp_path):
  real = open_source(f'folder:{tiny.photo_folder(tmp_path / "photos", each=2)}')
  spec = tiny.generated_shards(tmp_path / 'made', [real[i] for i in range(4)])
  partners = real.spec.replace('&', '%26')
  first = open_pairs(f'{spec}?pairs=generated_to_real&partners={partners}')[0]
  assert (first.query.modality, first.positive.modality) == ('generated', 'real')
  assert open_pairs(f'{spec}?pairs=image_to_caption')[0].query.modality == 'generated'


@pytest.mark.parametrize('kind', ['towers', 'answering'])
def test_devices_share_the_embedding(kind, towers, answering):
  mesh = make_mesh(MeshConfig(data=4, fsdp=2))
  source = open_pairs(PAIRS)
  if kind == 'towers':
    make = perturbed(towers)
  else:
    make = lambda mesh=None: load_embedder(answering, 'none', mesh=mesh)  # noqa: E731
  alone, shared = (embed_pairs(make(m), source) for m in (None, mesh))
  np.testing.assert_allclose(alone.pairs.queries, shared.pairs.queries, atol=2e-5)
  np.testing.assert_allclose(alone.pairs.candidates, shared.pairs.candidates, atol=2e-5)
  assert len(alone.pairs.candidates) < len(source)  # equal captions are embedded once
  one, two = (mine_pairs(alone, 3, 'top_k', mesh=m) for m in (None, mesh))
  np.testing.assert_array_equal(one.clusters, two.clusters)


def test_what_cannot_be_mined_is_refused_or_counted(towers):
  embed = perturbed(towers)()
  broken = Content('', (b'no image',), 'broken')
  good = [pair(i) for i in range(12)]
  same = pair(12, good[3].query, good[3].positive)
  cases = [
    ('cannot read record 12', 'unreadable', 'cannot read record 12'),
    (pair(12, broken), 'unreadable', 'content broken: '),
    (pair(12, positive=broken), 'unreadable', 'content broken: '),
    (same, 'repeated', "pairs '003' and '012' are the same; leave one out, or --bad=skip"),
  ]
  skip = MiningConfig(bad='skip')
  for bad, reason, message in cases:
    source = Source([*good, bad])
    with pytest.raises(UserError, match=message):
      mine_run(embed, source, 3)
    mined, ids = mine_run(embed, source, 3, settings=skip)
    assert len(ids) == 13 and 12 not in mined.clusters
    assert mined.counts[reason] == 1 and not mined.counts['not_finite']
    # the other side of a broken one is left without a match; of one that cannot be read none is
    alone = int(not isinstance(bad, str) and reason == 'unreadable')
    assert mined.counts['no_owner'] + mined.counts['no_positive'] == 2 * alone
    assert mined.counts['pairs'] == 13 and mined.hardness.members == 12
  with pytest.raises(UserError, match='tests:pairs: no pair can be read'):
    mine_run(embed, Source(['gone'] * 9), 3, settings=skip)
  with pytest.raises(UserError, match='needs clusters of 4 pairs, there are 0'):
    mine_run(embed, Source([pair(i, broken) for i in range(9)]), 3, settings=skip)


def test_a_run_mines_anew_by_its_own_weights(tmp_path):
  remine = {'every': 2, 'lag': 1, 'k': 3, 'data': PAIRS, 'settings': {'bad': 'skip'}}
  config = tiny.config(SCENES, steps=4, batch_size=8, model=tiny.SMALL_MODEL, remine=remine)
  miner = make_miner(config, tmp_path)
  train(config, make_objective(config.objective), tmp_path, mine=miner)
  plans = [load_plan(tmp_path / 'plans' / f'{step}.jsonl.gz') for step in (0, 2)]
  assert all(plan.strategy == 'saha_mutual' and plan.size == 4 for plan in plans)
  # the same weights, mined by the embedder that mined others before
  again = miner(load_params(tmp_path, averaged=True), lambda: False)
  check_plan(again, open_pairs(PAIRS).ids())
  with pytest.raises(Stopped):
    miner(load_params(tmp_path, averaged=True), lambda: True)
