"""The rules of docs/architecture.md that a program can check."""

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / 'align_jax'
FILES = sorted(PACKAGE.rglob('*.py'))
LONGEST = 400

# Room -> the rooms it may import from, besides itself. Of the files beside the rooms, some serve
# all of them (EVERYWHERE); the entries (main, evaluate, encoder) stand above all of them.
EVERYWHERE = {'errors', 'config', 'cache', 'files', 'modality', 'storage'}
MAY_IMPORT = {
  'parallel': set(),
  'losses': set(),
  'models': set(),
  'data': set(),
  'synth': {
    'api',
    'encoder',
    'objectives',
    'train',
    'evaluation',
    'interop',
    'data',
    'models',
    'losses',
    'parallel',
  },
  'evaluation': {'data'},
  'interop': {'data', 'models'},
  'train': {'mining', 'data', 'models', 'losses', 'parallel', 'interop'},
  'objectives': {'train', 'models', 'losses'},
  'mining': {'parallel'},
  'study': {
    'encoder',
    'answerer',
    'tower_embedder',
    'mining_run',
    'mining',
    'objectives',
    'train',
    'evaluation',
    'synth',
    'data',
    'models',
  },
  'embedding_study': {
    'study',
    'embedder',
    'mining_run',
    'mining',
    'synth',
    'evaluation',
    'train',
    'data',
  },
  'encoder': {'train', 'data', 'models', 'parallel'},
  'embedder': {'encoder', 'train', 'data', 'models', 'parallel'},
  'tower_embedder': {'embedder', 'encoder', 'train', 'data', 'models'},
  'open_embedder': {'api', 'answerer', 'tower_embedder', 'embedder', 'interop', 'data'},
  'mining_run': {'mining', 'evaluation', 'data'},
  'miner': {'mining_run', 'tower_embedder', 'mining', 'train', 'data', 'models'},
  'mining_page': {'mining_run', 'mining', 'evaluation', 'data'},
  'mine': {
    'cli',
    'mining_page',
    'mining_run',
    'open_embedder',
    'tower_embedder',
    'mining',
    'data',
    'parallel',
  },
  'answerer': {'encoder', 'train', 'interop', 'data', 'models'},
  'api': {'encoder', 'answerer', 'evaluation', 'interop', 'data', 'models'},
  'explore': {'api', 'evaluation'},
  'mteb_encoder': {'api', 'data'},
  'main': {
    'cli',
    'miner',
    'tower_embedder',
    'encoder',
    'answerer',
    'objectives',
    'train',
    'evaluation',
    'data',
    'models',
    'parallel',
  },
  'synthesize': {'cli', 'synth', 'data', 'parallel'},
  'evaluate': {
    'cli',
    'encoder',
    'answerer',
    'open_embedder',
    'tower_embedder',
    'train',
    'evaluation',
    'data',
    'parallel',
  },
  'export': {'cli', 'encoder', 'answerer', 'train', 'evaluation', 'data', 'models', 'interop'},
  'cli': set(),
  'config': set(),
  'cache': set(),
  'files': {'errors'},
  'modality': set(),
  'storage': {'errors'},
  'errors': set(),
}
# objectives are typed by train.objective alone: a method does not know the loop
NARROW = {('objectives', 'train'): {'align_jax.train.objective'}}


def module_name(path: Path) -> str:
  parts = path.relative_to(ROOT).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


MODULES = {module_name(path): path for path in FILES}


@functools.cache
def imports(name: str, *, inside: bool = True) -> frozenset[str]:
  """The modules of this package that a module imports; `inside`: also those of its functions."""
  tree = ast.parse(MODULES[name].read_text())
  if not inside:
    tree = ast.Module([n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)], [])
  found = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{name}: a relative import; write the full name'
      # `from package import module` names a module, `from module import thing` does not
      full = [f'{node.module}.{alias.name}' for alias in node.names]
      found |= {f if f in MODULES else str(node.module) for f in full}
  return frozenset(m for m in found if m.split('.')[0] == 'align_jax')


def room(module: str) -> str:
  return (module.split('.') + [''])[1]


def allowed(importer: str, imported: str) -> bool:
  here, there = room(importer), room(imported)
  if not here:  # the package itself
    return there == 'api'
  if there in EVERYWHERE or here == there:
    return True
  # a room's command may use what every command shares
  if there == 'cli' and importer.split('.')[-1] in ('__main__', 'convert'):
    return True
  return there in MAY_IMPORT[here] and imported in NARROW.get((here, there), {imported})


def test_imports_go_down_only():
  rooms = {room(name) for name in MODULES} - {''}
  assert rooms == set(MAY_IMPORT), 'a new room: say here what it may import'
  wrong = [f'{a} imports {b}' for a in MODULES for b in sorted(imports(a)) if not allowed(a, b)]
  assert not wrong


@pytest.mark.parametrize(
  ('importer', 'imported'),
  [
    ('align_jax.models.vit', 'align_jax.train.loop'),
    ('align_jax.models.vit', 'align_jax.data.pipeline'),
    ('align_jax.models.dual_encoder', 'align_jax.data.record'),
    ('align_jax.losses.flow', 'align_jax.data.sources'),
    ('align_jax.data.pipeline', 'align_jax.models.vit'),
    ('align_jax.train.loop', 'align_jax.objectives'),
    ('align_jax.train.loop', 'align_jax.evaluation.tasks'),
    ('align_jax.evaluation.tasks', 'align_jax.train.loop'),
    ('align_jax.evaluation.tasks', 'align_jax.encoder'),
    ('align_jax.objectives.gmail', 'align_jax.train.loop'),
    ('align_jax.encoder', 'align_jax.main'),
  ],
)
def test_the_rule_forbids(importer, imported):
  assert not allowed(importer, imported)


def test_no_module_imports_itself_by_a_detour():
  done: set[str] = set()

  def visit(name: str, path: tuple[str, ...]) -> None:
    assert name not in path, ' -> '.join([*path[path.index(name) :], name])
    if name in done:
      return
    for target in sorted(imports(name, inside=False)):
      assert target in MODULES, f'{name} imports {target}, which does not exist'
      visit(target, (*path, name))
    done.add(name)

  for name in MODULES:
    visit(name, ())
  assert done == set(MODULES)


def test_files_stay_short():
  lengths = {
    path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines())
    for folder in (PACKAGE, ROOT / 'configs', ROOT / 'launch')
    for path in folder.rglob('*.py')
  }
  assert not {name: n for name, n in lengths.items() if n > LONGEST}


# `Retrieval(` is no `eval(`
@pytest.mark.parametrize(
  'pattern',
  [
    r'\bpickle\.loads?\b',
    r'\bimport pickle\b',
    r'allow_pickle\s*=\s*True',
    r'(?<![\w.])eval\(',
    r'(?<![\w.])exec\(',
    r'\bTODO\b',
    r'\bFIXME\b',
    r'\bNotImplementedError\b',
    r'shell\s*=\s*True',
  ],
)
def test_the_code_has_no(pattern):
  found = [
    f'{path.relative_to(ROOT)}:{number}: {line.strip()}'
    for path in FILES
    for number, line in enumerate(path.read_text().splitlines(), start=1)
    if re.search(pattern, line)
  ]
  assert not found


def test_only_commands_define_flags():
  """A library import must not add flags to the program that imports it."""
  commands = {
    'cli',
    'main',
    'evaluate',
    'export',
    'mine',
    'synthesize',
    'study.__main__',
    'embedding_study.__main__',
    'data.convert',
  }
  found = {
    name.removeprefix('align_jax.')
    for name, path in MODULES.items()
    if re.search(r'\bDEFINE_|define_config\(', path.read_text())
  }
  assert found == commands
