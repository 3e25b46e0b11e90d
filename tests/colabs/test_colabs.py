"""The notebooks: what they must have, and a run of each from first to last at a tiny size."""

import ast
import os
import re
import tomllib
from pathlib import Path

import jax
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from align_jax.config import build
from align_jax.data.tokenizer import train_tokenizer
from align_jax.data.transforms import Transform
from align_jax.interop.track import Track, plain_config
from align_jax.interop.write import write_model
from align_jax.models.dual_encoder import DualEncoder, DualEncoderConfig
from align_jax.models.flat import Skeleton
from tests import tiny
from tests.interop.test_export import OPENAI

ROOT = Path(__file__).parent.parent.parent
NAMES = ('align_your_clip', 'look_at_the_gap', 'quickstart')
LARGEST = 200_000  # bytes of a file with its outputs
SMALL = {'COUNT': 48, 'STEPS': 3, 'BATCH': 16, 'DEPTH': 1, 'PAIRS': 3}
CACHE = ROOT / '.pytest_cache' / 'xla_entries'  # of commands, as in tests/test_entries.py


def read(name: str) -> nbformat.NotebookNode:
  return nbformat.read(ROOT / 'colabs' / f'{name}.ipynb', as_version=4)


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
  return [cell for cell in notebook.cells if cell.cell_type == 'code']


def parameters(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
  (cell,) = [c for c in code(notebook) if 'parameters' in c.metadata.get('tags', [])]
  return cell


def values(cell: nbformat.NotebookNode) -> dict[str, object]:
  """The assignments of a cell; it holds nothing but names and literals."""
  found = {}
  for node in ast.parse(cell.source).body:
    assert isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name), cell.source
    found[node.targets[0].id] = ast.literal_eval(node.value)
  return found


def repository() -> str:
  """The project's public address; '' as long as it has none."""
  urls = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project'].get('urls', {})
  return next((v for v in urls.values() if v.startswith('https://github.com/')), '').rstrip('/')


def test_every_notebook_is_run_here():
  assert tuple(path.stem for path in sorted((ROOT / 'colabs').glob('*.ipynb'))) == NAMES


@pytest.mark.parametrize('name', NAMES)
def test_badge_installation_and_parameters_come_first(name):
  notebook = read(name)
  nbformat.validate(notebook)
  # Colab's own page for repositories, until the project has an address: then the notebook there
  owner = repository().removeprefix('https://github.com/')
  address = f'/{owner}/blob/main/colabs/{name}.ipynb' if owner else ''
  badge = f'badge.svg)](https://colab.research.google.com/github{address})'
  assert badge in notebook.cells[0].source
  first = code(notebook)[0].source
  assert "'pip', 'install'" in first and "find_spec('align_jax') is None" in first
  assert re.search(r"^REPOSITORY = '(.*)'", first, re.M)[1] == repository()
  assert values(parameters(notebook))['WORK'] == f'runs/{name}'


@pytest.mark.parametrize('name', NAMES)
def test_the_file_is_small_and_holds_no_state(name):
  assert (ROOT / 'colabs' / f'{name}.ipynb').stat().st_size < LARGEST
  for cell in code(read(name)):
    assert len(cell.source.splitlines()) <= 40
    assert not cell.outputs or cell.execution_count


@pytest.mark.parametrize('name', NAMES)
def test_links_and_folders_that_it_names_exist(name):
  text = '\n'.join(cell.source for cell in read(name).cells)
  for found in re.findall(r'(?:docs|configs)/\w+\.(?:md|py)|\w+\.ipynb|README\.md', text):
    assert (ROOT / found).exists() or (ROOT / 'colabs' / found).exists(), found


def execute(name: str, folder: Path, **changes: object) -> nbformat.NotebookNode:
  """Runs a notebook whose parameters are those of the file but for `changes`."""
  notebook = read(name)
  cell = parameters(notebook)
  known = values(cell)
  assert set(changes) <= set(known), 'the cell of parameters has other names'
  settings = {**known, **changes, 'WORK': str(folder)}
  cell.source = '\n'.join(f'{key} = {value!r}' for key, value in settings.items())
  environment = {k: v for k, v in os.environ.items() if not k.startswith(('JAX_', 'XLA_'))}
  environment |= {
    'JAX_PLATFORMS': 'cpu',
    'JAX_COMPILATION_CACHE_DIR': str(CACHE),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.2',
    'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',  # compiles in half the time; three steps need no speed
    'HF_HUB_OFFLINE': '1',
    'IPYTHONDIR': str(folder.parent / 'ipython'),  # no history in the user's home
  }
  client = NotebookClient(
    notebook, timeout=300, resources={'metadata': {'path': str(ROOT / 'colabs')}}
  )
  client.execute(env=environment)  # raises at the first cell that fails
  return notebook


def shown(notebook: nbformat.NotebookNode) -> list[str]:
  """What each cell shows as HTML."""
  outputs = [output for cell in code(notebook) for output in cell.outputs]
  assert not [o for o in outputs if o.output_type == 'error']
  # tqdm misses ipywidgets, which Colab has
  assert not [o.text for o in outputs if re.search(r'(?<!Tqdm)Warning', o.get('text', ''))]
  return [o.data['text/html'] for o in outputs if 'text/html' in o.get('data', {})]


def printed(notebook: nbformat.NotebookNode) -> str:
  return ''.join(
    output.text
    for cell in code(notebook)
    for output in cell.outputs
    if output.output_type == 'stream'
  )


def maps(pages: list[str]) -> list[str]:
  return [page for page in pages if 'class="aj aj-map"' in page]


def check_map(page: str, pairs: int) -> None:
  """It has a mark for every image, a link for every pair, pictures inside, and the script."""
  assert page.count('class="mark real"') == page.count('class="mark generated"') == pairs
  assert page.count('class="link"') == pairs
  assert 'data:image/webp;base64,' in page
  assert 'onmousemove' in page
  assert 'src="http' not in page and 'url(http' not in page


def test_quickstart(tmp_path):
  notebook = execute('quickstart', tmp_path / 'work', **SMALL)
  pages = shown(notebook)
  assert len(maps(pages)) == 2
  for page in maps(pages):
    check_map(page, pairs=3)
  assert any('>before</th>' in page and '>after</th>' in page for page in pages)
  assert 'of the captions find a scene' in printed(notebook)
  assert (tmp_path / 'work' / 'aligned' / 'checkpoints').is_dir()
  assert maps([(tmp_path / 'work' / 'after.html').read_text()])


def test_look_at_the_gap(tmp_path):
  # the rank of configs/gmail.py: its program is compiled once for both notebooks
  notebook = execute('look_at_the_gap', tmp_path / 'work', **SMALL, RANKS=(4,))
  pages = shown(notebook)
  assert len(maps(pages)) == 2
  for page in maps(pages):
    check_map(page, pairs=3)
  assert any('>no LoRA</th>' in page and '>rank 4</th>' in page for page in pages)
  assert sum('aj-tile query' in page for page in pages) == 2
  assert 'largest change of a real embedding: 0.0' in printed(notebook)


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
  """A folder as `save_pretrained` writes one, of a tiny CLIP with fresh weights."""
  folder = tmp_path_factory.mktemp('hub') / 'clip'
  folder.mkdir()
  config = build(DualEncoderConfig, OPENAI)
  skeleton = Skeleton(lambda rngs: DualEncoder(config, rngs))
  params = {name: np.asarray(p) for name, p in skeleton.init(jax.random.key(0)).items()}

  track = Track(config, 'real', params.__getitem__, {name: p.shape for name, p in params.items()})
  texts = [f'{colour} {thing}' for colour in tiny.COLOURS for thing in tiny.SHAPES]
  transform = Transform(image_size=32, mode='eval', resize='crop', interpolation='bicubic')
  tokenizer = train_tokenizer(texts, OPENAI['text']['vocab_size'])
  write_model(folder, plain_config(config, 'real'), track, tokenizer, transform, 12)
  return folder


def test_align_your_clip(clip, tmp_path):
  notebook = execute(
    'align_your_clip',
    tmp_path / 'work',
    CLIP=str(clip),
    STEPS=3,
    BATCH=8,
    COUNT=48,
    CONCEPTS=3,
    SIZE=32,
    PAIRS=3,
  )
  pages, said = shown(notebook), printed(notebook)
  (page,) = maps(pages)
  check_map(page, pairs=3)
  assert any('>CLIP</th>' in page and '>aligned</th>' in page for page in pages)
  for key in ('probe.linear', 'gap.paired_cosine', 'retrieval.t2i.r1'):
    assert key in said
  exported = tmp_path / 'work' / 'exported'
  assert {'config.json', 'model.safetensors', 'tokenizer.json', 'README.md'} <= {
    path.name for path in exported.iterdir()
  }
  if 'PyTorch is not installed here' not in said:
    assert float(re.search(r'difference from align_jax: (\S+)', said)[1]) < 1e-4
