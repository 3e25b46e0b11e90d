"""From a run and pairs to a plan: the command, the functions behind it, and its page."""

import base64
import hashlib
import html.parser
import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from align_jax.data.pair_record import Content, PairRecord
from align_jax.data.pair_sources import open_pairs
from align_jax.data.sources import open_source
from align_jax.data.tokenizer import load_tokenizer
from align_jax.encoder import make_encoder
from align_jax.errors import UserError
from align_jax.mining.pairs import Pairs
from align_jax.mining.plan import check_plan, load_plan
from align_jax.mining.report import text_report
from align_jax.mining.strategy import STRATEGIES, MiningConfig
from align_jax.mining_page import PageConfig, mining_page
from align_jax.mining_run import EmbeddedPairs, check, embed_pairs, mine_pairs, mine_run
from align_jax.objectives import make_objective
from align_jax.parallel.mesh import MeshConfig, make_mesh
from align_jax.tower_embedder import TowerEmbedder, load_embedder
from align_jax.train.checkpoints import load_params
from align_jax.train.init import make_config
from align_jax.train.loop import train
from align_jax.train.run_config import read_run_config
from tests import chats, tiny
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


class Source:
  """Pairs given one by one; a text in place of one says why it cannot be read."""

  spec, licence = 'tests:pairs', ''

  def __init__(self, pairs):
    self.pairs = pairs

  def __len__(self):
    return len(self.pairs)

  def __getitem__(self, index):
    if isinstance(self.pairs[index], str):
      raise UserError(self.pairs[index])
    return self.pairs[index]

  def ids(self):
    return [f'{i:03}' for i in range(len(self.pairs))]


def pair(number, query=None, positive=None, task='t', label=''):
  query = query or Content(f'query {number}')
  return PairRecord(f'{number:03}', task, query, positive or Content(f'{number}'), label=label)


def hashed(contents, role, instruction):
  """Unit vectors that depend on the content alone."""
  seeds = [int(hashlib.sha256(c.id.encode()).hexdigest()[:8], 16) for c in contents]
  x = np.stack([np.random.default_rng(seed).standard_normal(8) for seed in seeds])
  return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


class Page(html.parser.HTMLParser):
  """What a page shows."""

  def __init__(self, text):
    super().__init__()
    self.images, self.tags, self.words = [], [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    if tag == 'img':
      self.images.append(dict(attrs)['src'])

  def handle_data(self, data):
    self.words.append(data.strip())


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
  for name in ('overwrite', 'strategy', 'skip', 'percentage', 'level'):
    flags.FLAGS[name].unparse()
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


def test_each_content_is_embedded_once():
  asked = []

  def embed(contents, role, instruction):
    asked.extend((role, content.id) for content in contents)
    return hashed(contents, role, instruction)

  shared = Content('shared')
  source = Source(
    [pair(i, positive=shared if i % 2 else None, task=f't{i % 3}') for i in range(20)]
  )
  found = embed_pairs(embed, source, batch_size=7)
  assert len(asked) == len(set(asked)) == 20 + 11
  assert found.pairs.candidate.max() == 10 and found.task_names == ('t0', 't1', 't2')
  assert (found.labels == -1).all()
  for i in (0, 1, 13):
    record = source[i]
    wanted = hashed([record.query, record.positive], '', '')
    np.testing.assert_array_equal(found.pairs.queries[found.pairs.query[i]], wanted[0])
    np.testing.assert_array_equal(found.pairs.candidates[found.pairs.candidate[i]], wanted[1])


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
    assert mined.counts['pairs'] == 13 and mined.hardness.members == 12
  with pytest.raises(UserError, match='tests:pairs: no pair can be read'):
    mine_run(embed, Source(['gone'] * 9), 3, settings=skip)
  with pytest.raises(UserError, match='needs clusters of 4 pairs, there are 0'):
    mine_run(embed, Source([pair(i, broken) for i in range(9)]), 3, settings=skip)


def test_embeddings_that_are_not_finite_are_refused_or_counted():
  source = Source([pair(i) for i in range(12)])

  def embed(contents, role, instruction):
    out = hashed(contents, role, instruction)
    out[[c.text == 'query 5' for c in contents]] = np.nan
    return out

  with pytest.raises(UserError, match=r'1 embeddings are not finite, .* \(--bad=skip\)'):
    mine_run(embed, source, 3)
  mined, _ = mine_run(embed, source, 3, settings=MiningConfig(bad='skip'))
  assert mined.counts['not_finite'] == 1 and 5 not in mined.clusters
  text = text_report(mined, float('nan'), {'query without image': 2})
  assert '2  left out by the source: query without image' in text and 'false' not in text


@pytest.mark.parametrize(
  ('k', 'strategy', 'change', 'message'),
  [
    (12, 'saha', {}, 'tests:pairs: 12 pairs, and k=12 needs clusters of 13'),
    (0, 'saha', {}, 'k=0 hard negatives'),
    (3, 'sahara', {}, "no strategy 'sahara'"),
    (3, 'percentage', {'percentage': 3.0}, 'config.percentage'),
  ],
)
def test_settings_that_cannot_be_are_named_first(k, strategy, change, message):
  def embed(contents, role, instruction):
    raise AssertionError('nothing is to be embedded')

  with pytest.raises(UserError, match=message):
    mine_run(embed, Source([pair(i) for i in range(12)]), k, strategy, MiningConfig(**change))


def test_ids_are_there_once():
  source = Source([pair(i) for i in range(12)])
  source.ids = lambda: ['a'] * 12
  with pytest.raises(UserError, match="two pairs have the id 'a'"):
    check(source, 3, 'saha', MiningConfig())


@pytest.mark.parametrize('strategy', STRATEGIES)
def test_a_page_of_any_strategy(strategy):
  if strategy == 'b3':
    pytest.importorskip('pymetis')
  evil = '<script>alert(1)</script>'
  png = tiny.png(tiny.picture('red', 'disc', 0))
  source = Source(
    [
      pair(i, Content(f'{evil} {i}', (png,)), Content(f'{evil} {i % 20}'), label=f'{evil} {i % 10}')
      for i in range(40)
    ]
  )
  found = []
  embedded = embed_pairs(hashed, source)
  settings = MiningConfig(skip=2, keep=10)
  mined = mine_pairs(embedded, 4, strategy, settings, found=found.append)
  text = mining_page(mined, found, embedded, source, PageConfig(evil, [evil], shown=40), {'x': 1.0})
  page = Page(text)
  assert 'script' not in page.tags and any(evil in word for word in page.words)
  assert sum(word.startswith('Query, its match, negatives') for word in page.words) == min(
    40, len(mined.clusters)
  )
  near = [word for word in page.words if word.startswith('Near, and left out: ')]
  assert bool(near) == (strategy not in ('random', 'task_random', 'top_k'))


def test_not_one_cluster():
  vectors = np.eye(20, dtype=np.float32)
  number = np.arange(20, dtype=np.int32)
  pairs = Pairs(vectors, vectors[:3], number, number % 3)  # three candidates in all
  ids = tuple(map(str, range(20)))
  embedded = EmbeddedPairs(pairs, ids, ('a',), 0 * number, 0 * number - 1, 0, {})
  with pytest.raises(UserError, match=r'of 20 pairs no 8 can be found .* smaller k'):
    mine_pairs(embedded, 7, 'top_k', MiningConfig(bad='skip'))
