"""Every command as a user runs it: exit codes, one line for a mistake, files left behind."""

import html.parser
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from align_jax.data.shards import write_shards
from align_jax.data.sources import open_source
from tests import tiny

ROOT = Path(__file__).parent.parent
SMALL = [
  '--config.steps=4',
  '--config.batch_size=8',
  '--config.log_every=2',
  '--config.optimizer.warmup_steps=1',
  '--config.checkpoint.every=2',
  *(
    f'--config.model.{tower}.{field}={value}'
    for tower in ('image', 'text')
    for field, value in {'width': 24, 'mlp_dim': 32, 'depth': 1}.items()
  ),
  '--config.model.dim=16',
]


def command(*arguments, check=True):
  """Runs `python -m align_jax.…` as a user would, from the repository's folder."""
  environment = {k: v for k, v in os.environ.items() if not k.startswith(('JAX_', 'XLA_'))}
  cache = str(ROOT / '.pytest_cache/xla_entries')
  environment |= {
    'JAX_PLATFORMS': 'cpu',
    'JAX_COMPILATION_CACHE_DIR': cache,
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.2',
  }
  done = subprocess.run(
    [sys.executable, '-m', *arguments],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=300,
  )
  if check:
    assert done.returncode == 0, done.stderr
    assert 'Traceback' not in done.stderr
  return done


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  return f'folder:{tiny.photo_folder(tmp_path_factory.mktemp("mine") / "photos", each=5)}'


@pytest.fixture(scope='module')
def run(photos, tmp_path_factory):
  """A run on a folder of photographs, trained by the command; with evaluation on the way."""
  folder = tmp_path_factory.mktemp('runs') / 'mine'
  done = command(
    'align_jax.main',
    '--config=configs/clip.py',
    f'--workdir={folder}',
    f'--config.data.real={photos}',
    '--config.eval.every=4',
    f'--config.eval.data={photos}',
    *SMALL,
  )
  assert 'parameters learn' in done.stdout
  return folder


def test_trains_on_photographs_and_leaves_a_run(run, photos):
  config = json.loads((run / 'config.json').read_text())
  assert config['data']['real'] == photos
  assert (run / 'tokenizer').is_dir()
  assert (run / 'checkpoints' / '4').is_dir()
  lines = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
  assert [line['step'] for line in lines if 'loss' in line] == [2, 4]
  assert any('retrieval.t2i.r1' in line for line in lines)


def test_a_captioner_starts_from_the_tower_and_is_judged(run, photos, tmp_path):
  pytest.importorskip('sacrebleu')
  captioner, scores = tmp_path / 'captioner', tmp_path / 'scores.json'
  sizes = [f for f in SMALL if '.text.' not in f and '.dim' not in f]
  command(
    'align_jax.main',
    '--config=configs/multimodal.py:single',
    f'--workdir={captioner}',
    f'--config.model.init=run:{run}',
    "--config.objective.lock=('image',)",
    f'--config.data.real={photos}',
    '--config.data.text=captions',
    '--config.model.image.patch=8',
    '--config.model.decoder.depth=1',
    *sizes,
  )
  command(
    'align_jax.evaluate',
    f'--checkpoint={captioner}',
    f'--data={photos}',
    '--tasks=captions',
    f'--judge={run}',
    f'--output={scores}',
  )
  found = json.loads(scores.read_text())['scores']
  assert found['captions.asked'] == 30
  assert found.keys() >= {'captions.bleu4', 'captions.cider', 'captions.clip_score'}


class Page(html.parser.HTMLParser):
  def __init__(self, text):
    super().__init__()
    self.fetched = []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    fetching = ('src', 'srcset', 'data', *(['href'] if tag == 'link' else []))
    self.fetched += [value for key, value in attrs if key in fetching]


def test_evaluates_and_reports(run, photos, tmp_path):
  scores, report = tmp_path / 'scores.json', tmp_path / 'report.html'
  done = command(
    'align_jax.evaluate',
    f'--checkpoint={run}',
    f'--data={photos}',
    '--tasks=retrieval,zero_shot',
    f'--output={scores}',
    f'--report={report}',
  )
  content = json.loads(scores.read_text())
  keys = {'retrieval.t2i.r1', 'retrieval.i2t.r10', 'zero_shot.top1'}
  assert keys <= set(content['scores'])
  assert all(0 <= content['scores'][key] <= 1 for key in keys)
  assert {'jax', 'flax'} <= set(content['versions'])
  assert f'--checkpoint={run}' in content['command']
  assert 'zero_shot.top1' in done.stdout
  text = report.read_text()
  assert 'Evaluation of mine' in text
  fetched = Page(text).fetched
  assert fetched
  assert all(address.startswith('data:') for address in fetched)


def test_evaluates_probe_and_gap_on_generated_shards(run, photos, tmp_path):
  source = open_source(photos)
  spec = tiny.generated_shards(tmp_path / 'shards', [source[i] for i in range(len(source))])
  output = tmp_path / 'deeper' / 'scores.json'
  command(
    'align_jax.evaluate',
    f'--checkpoint={run}',
    f'--data={photos}',
    f'--generated={spec}',
    '--tasks=probe,gap',
    f'--output={output}',
  )
  scores = json.loads(output.read_text())['scores']
  assert {'probe.linear', 'probe.knn', 'gap.auc', 'gap.paired_cosine'} <= set(scores)
  assert not any(key.startswith('retrieval') for key in scores)
  assert not list(output.parent.glob('*.partial'))


# Mistakes, each a command of its own: (arguments, how its one line begins, after `error: `).
CLIP = ('align_jax.main', '--config=configs/clip.py', '--workdir={out}')
STUDY = ('align_jax.study', '--config=configs/demo.py', '--workdir={out}')
PAIRS = (
  'align_jax.evaluate',
  '--checkpoint={run}',
  '--data=emojitasks:vqa',
  '--output={out}/x.json',
)
JUDGE = ('align_jax.evaluate', '--checkpoint={run}', '--data={photos}', '--output={out}/x.json')
MISTAKES = [
  # flags and configs
  ([*CLIP, '--config.data.reall=x'], "config.data.reall: unknown field; did you mean 'real'?"),
  ([*CLIP, '--config.optimiser.lr=1'], 'config.optimiser.lr: unknown field'),
  ([*CLIP, '--config.steps=many'], 'flag --config.steps=many: '),
  ([*CLIP, '--profile_steps=9:3'], '--profile_steps: 9:3 must be two steps of this run'),
  ([*CLIP, 'steps=3'], "unexpected argument 'steps=3'"),
  ([*CLIP, '--setps=3'], "Unknown command line flag 'setps'"),
  (['align_jax.main', '--workdir={out}'], 'flag --config=None: '),
  (['align_jax.main', '--config=configs/clip.py'], 'flag --workdir=None: '),
  (
    ['align_jax.main', '--config=configs/clpi.py', '--workdir={out}'],
    "--config: no file 'configs/clpi.py'; did you mean 'configs/clip.py'?",
  ),
  (
    ['align_jax.study', '--config', 'configs/deom.py', '--workdir={out}', '--config.title=x'],
    "--config: no file 'configs/deom.py'; did you mean 'configs/demo.py'?",
  ),
  (['align_jax.evaluate', '--data=x', '--output=y'], 'flag --checkpoint=None: '),
  ([*PAIRS, '--level=user'], '{run}: a dual encoder has no prompt'),
  ([*PAIRS, '--limit=3'], '--limit: is not for pairs'),
  (['align_jax.data.convert', '--from=folder:x', '--to=arrayrecord:y'], 'flag --shards=None: '),
  # values
  ([*CLIP, '--config.objective.name=gmial'], "config.objective.name: 'gmial' is unknown; did you"),
  (
    [*CLIP, '--config.model.image.patch=7', '--config.data.real={photos}'],
    'config.model.image: image_size 32 is not',
  ),
  ([*CLIP, '--config.batch_size=-1'], 'config.batch_size: must be 1 or more'),
  # files
  ([*CLIP, '--config.data.real=folder:{out}/none'], 'folder:{out}/none'),
  ([*CLIP, '--config.model.init=run:{out}/none'], 'config.model.init: {out}/none is not a folder'),
  ([*STUDY, '--config.data.real=folder:{out}/none'], 'folder:{out}/none?split=train'),
  ([*CLIP, '--config.data.real=webdataset:{cut}/cut.tar'], '{cut}/cut.tar: truncated'),
  (
    [*CLIP, '--config.data.real=arrayrecord:{cut}/*.arrayrecord'],
    '{cut}/shard-00000-of-00001.arrayrecord: truncated',
  ),
  (
    [*STUDY, '--config.sampling.cuont=3'],
    "config.sampling.cuont: unknown field; did you mean 'count'?",
  ),
  # `held_out` can be emptied, as the README does: the mistake found is the next one
  ([*STUDY, '--config.data.held_out={{}}', '--config.data.real=folder:{out}/none'], 'folder:'),
  # evaluation
  (
    [*JUDGE, '--tasks=retrieval,zeroshot'],
    "tasks: unknown task 'zeroshot'; did you mean 'zero_shot'?",
  ),
  ([*JUDGE, '--tasks=gap'], 'gap needs generated images: --generated=SPEC'),
  ([*JUDGE, '--step=3'], '{run}: holds no checkpoint of step 3'),
  ([*JUDGE, '--inference=both'], 'flag --inference=both: '),
  ([*JUDGE, '--templates=phto', '--tasks=zero_shot'], "zero_shot.templates: unknown set 'phto'"),
  (
    ['align_jax.evaluate', '--checkpoint={out}/none', '--data={photos}', '--output={out}/x.json'],
    '{out}/none: no config.json there',
  ),
  (
    ['align_jax.data.convert', '--from={photos}', '--to=arrayrecrod:{out}', '--shards=1'],
    '',
  ),
]

# One process that has imported the slow packages forks once a command: each has an exit code of
# its own, in a tenth of the time.
_FORKS = """
import json, os, runpy, sys, tempfile
import align_jax.encoder, align_jax.evaluation.sections, align_jax.study.page

def run(module, *arguments):
  with tempfile.TemporaryFile('w+') as error:
    child = os.fork()
    if not child:
      os.dup2(error.fileno(), 2)
      os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
      sys.argv = [module, *arguments]
      code = 0
      try:
        runpy.run_module(module, run_name='__main__', alter_sys=True)
      except SystemExit as stopped:
        code = stopped.code or 0
      except BaseException:
        import traceback
        traceback.print_exc()
        code = 1
      sys.stderr.flush()
      os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    error.seek(0)
    return code, error.read()

commands = json.load(sys.stdin)
print(json.dumps([run(*c) for c in commands]))
"""


def cut_short(photos, folder):
  """A tar and a shard of the photographs, both without their last third."""
  source = open_source(photos)
  records = [source[i] for i in range(len(source))]
  write_shards(records, str(folder), 1, 'CC0', 'tests')
  with tarfile.open(folder / 'cut.tar', 'w') as tar:
    for number, record in enumerate(records):
      for ending, data in (('jpg', record.image), ('txt', record.captions[0].encode())):
        member = tarfile.TarInfo(f'{number}.{ending}')
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
  for path in (folder / 'cut.tar', *folder.glob('*.arrayrecord')):
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])


def test_every_mistake_ends_with_code_2_and_one_line(run, photos, tmp_path):
  names = {'run': run, 'photos': photos, 'out': tmp_path / 'out', 'cut': tmp_path / 'cut'}
  cut_short(photos, names['cut'])
  commands = [[a.format(**names) for a in arguments] for arguments, _ in MISTAKES]
  done = subprocess.run(
    [sys.executable, '-W', 'ignore', '-c', _FORKS],
    cwd=ROOT,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    input=json.dumps(commands),
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  wrong = []
  for arguments, (_, message), (code, error) in zip(
    commands, MISTAKES, json.loads(done.stdout), strict=True
  ):
    begins = 'error: ' + message.format(**names)
    if code != 2 or len(error.splitlines()) != 1 or not error.startswith(begins):
      wrong.append(f'{" ".join(arguments)}\n  -> {code}: {error}')
  assert not wrong, '\n'.join(wrong)
  assert not (tmp_path / 'out' / 'checkpoints').exists()


def test_a_real_process_ends_with_code_2_and_one_line(tmp_path):
  done = command(
    'align_jax.main',
    '--config=configs/clip.py',
    f'--workdir={tmp_path / "out"}',
    '--config.data.reall=x',
    check=False,
  )
  assert done.returncode == 2
  assert done.stderr == "error: config.data.reall: unknown field; did you mean 'real'?\n"
  assert not (tmp_path / 'out').exists()


def test_a_run_is_evaluated_as_an_embedder(run, tmp_path):
  pytest.importorskip('resvg_py')
  tasks = 'emojitasks:image_to_caption?size=32&concepts=12&count=4&candidates=4&split=test'
  arguments = ['align_jax.evaluate', f'--checkpoint={run}', f'--data={tasks}']
  output = tmp_path / 'scores.json'
  done = command(*arguments, f'--output={output}', f'--report={tmp_path / "page.html"}')
  assert 'Emoji-MMEB' in done.stdout
  assert 0 <= json.loads(output.read_text())['scores']['average'] <= 1
  html.parser.HTMLParser().feed((tmp_path / 'page.html').read_text())


def test_images_that_an_mmeb_file_lacks_are_counted(run, tmp_path):
  (tmp_path / 'a.png').write_bytes(tiny.png(tiny.picture('red', 'disc', 0)))
  (tmp_path / 'GQA').mkdir()
  row = {'qry_text': 'What?', 'tgt_text': ['one', 'two'], 'tgt_img_path': ['', '']}
  rows = [{**row, 'qry_img_path': name} for name in ('a.png', 'gone.png')]
  (tmp_path / 'GQA' / 'test.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
  output, page = tmp_path / 'scores.json', tmp_path / 'page.html'
  done = command(
    'align_jax.evaluate',
    f'--checkpoint={run}',
    f'--data=mmeb:{tmp_path}?missing=skip',
    f'--output={output}',
    f'--report={page}',
  )
  assert json.loads(output.read_text())['skipped'] == {'GQA: query without image': 1}
  assert 'skipped: 1 GQA: query without image' in done.stdout
  assert 'Skipped: 1 GQA: query without image.' in page.read_text()
