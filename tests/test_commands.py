"""Every command that a page or a docstring tells the reader to run names things that exist."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from align_jax.evaluation import captions, tasks

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
DOCSTRINGS = [
  *(ROOT / 'launch' / name for name in ('preflight.py', 'weak_scaling.py', 'local.py')),
  *(
    ROOT / 'align_jax' / name
    for name in (
      'main.py',
      'evaluate.py',
      'export.py',
      'mine.py',
      'synthesize.py',
      'study/__main__.py',
      'embedding_study/__main__.py',
    )
  ),
  ROOT / 'align_jax' / 'data' / 'convert.py',
  *sorted((ROOT / 'configs').glob('*.py')),
]
STARTS = ('python -m', 'python3 -m', 'make ')


def commands_of_page(text: str) -> list[str]:
  """The commands in fenced blocks and in `backticks`, lines that go on joined."""
  found = []
  for block in re.findall(r'^```\w*\n(.*?)^```', text, re.M | re.S):
    found += re.sub(r'\\\n\s*', ' ', block).splitlines()
  found += re.findall(r'`([^`\n]+)`', re.sub(r'^```.*?^```', '', text, flags=re.M | re.S))
  return [line.strip() for line in found if line.strip().startswith(STARTS)]


def commands_of_docstring(text: str) -> list[str]:
  doc = re.sub(r'\\+\n\s*', ' ', ast.get_docstring(ast.parse(text)) or '')
  found = re.findall(r'(?:^\s*\(?|`)((?:python -m|make) [^`\n]*)', doc, re.M)
  # what stands in brackets is another way to say it
  out = []
  for line in found:
    out += [part.strip(' )') for part in re.split(r'\s{2,}\(', line)]
  return out


COMMANDS = sorted(
  {(p.name, c) for p in PAGES if p.exists() for c in commands_of_page(p.read_text())}
  | {(p.name, c) for p in DOCSTRINGS for c in commands_of_docstring(p.read_text())}
)


def module_file(name: str) -> Path:
  path = ROOT / name.replace('.', '/')
  return path / '__main__.py' if path.is_dir() else path.with_suffix('.py')


def flags_of(path: Path) -> set[str]:
  """The names of the flags a command defines."""
  text = path.read_text()
  names = set(re.findall(r"DEFINE_\w+\(\s*'(\w+)'", text))
  if 'define_work()' in text:
    names |= {'workers', 'runner', 'beam_option'}
  return names | ({'config'} if 'define_config(' in text else set())


def required_flags_of(path: Path) -> set[str]:
  """Those without which a command does not start."""
  text = path.read_text()
  names = set(re.findall(r"DEFINE_\w+\(\s*'(\w+)',[^()]*required=True", text))
  return names | ({'config'} if 'define_config()' in text else set())


def check_argparse(words: list[str]) -> None:
  """A launcher's command before `--` (tests/launch dry-runs these as well), or a benchmark's."""
  module, *arguments = words
  assert module_file(module).is_file(), f'no module {module}'
  text = ''.join(path.read_text() for path in (ROOT / module.split('.')[0]).glob('*.py'))
  for argument in arguments:
    name = argument.strip('[]').partition('=')[0]
    # a benchmark's flags are the fields of its options
    field = re.compile(rf'^  {name[2:]}: (int|str|float|bool)\b', re.MULTILINE)
    known = name in ('…', '--help') or f"'{name}'" in text or field.search(text)
    assert known, f'{module} has no {name}'


def check_python(words: list[str]) -> None:
  if '--' in words:
    behind = words[words.index('--') + 1 :]
    words = words[: words.index('--')]
    if behind[:2] == ['python', '-m']:
      check_python(behind[2:])
  with_absl = words[0] in ('launch.preflight', 'launch.weak_scaling')
  if words[0].split('.')[0] in ('launch', 'benchmarks') and not with_absl:
    check_argparse(words)
    return
  module, *arguments = words
  path = module_file(module)
  assert path.is_file(), f'no module {module}'
  known = flags_of(path)
  # `[--config.steps=500]` is an argument that may be left out
  given = [a.strip('[]') for a in arguments if a not in ('…', '...', '[--config.…]')]
  values = dict(a.removeprefix('--').partition('=')[::2] for a in given)
  assert all(a.startswith('--') for a in given), given
  for flag in values:
    assert flag.split('.')[0] in known, f'{module} has no flag --{flag}'
  missing = required_flags_of(path) - set(values)
  mentioned = len(values) < 3 or '…' in arguments or '...' in arguments  # not spelt out
  assert not missing or mentioned, f'{module} needs {missing}'
  if 'tasks' in values:
    assert set(values['tasks'].split(',')) <= {*tasks.NAMES, *captions.NAMES}
  config_path = values.get('config', '')
  if not config_path or config_path in ('configs/NAME.py', 'configs/X.py', '…'):
    return
  config_path, _, argument = config_path.partition(':')
  assert (ROOT / config_path).is_file(), f'no file {config_path}'
  module = importlib.import_module(config_path[: -len('.py')].replace('/', '.'))
  config = module.get_config(argument) if argument else module.get_config()
  for flag in values:
    if flag.startswith('config.'):
      value: object = config
      for part in flag.split('.')[1:]:
        assert isinstance(value, ConfigDict) and part in value, f'{config_path} has no {flag}'
        value = value[part]


def check_make(words: list[str]) -> None:
  targets = set(re.findall(r'^([a-z-]+):.*##', (ROOT / 'Makefile').read_text(), re.M))
  makefile = (ROOT / 'Makefile').read_text()
  for word in words:
    name = word.partition('=')[0]
    known = name in targets if '=' not in word else re.search(rf'^{name} \?=', makefile, re.M)
    assert known, f'the Makefile has no {word}'


@pytest.mark.parametrize(('page', 'command'), COMMANDS)
def test_command_names_what_exists(page, command):
  words = shlex.split(command.split(' #')[0].split(', then')[0])
  if words[0] == 'make':
    check_make(words[1:])
  else:
    check_python(words[2:])


def test_the_readme_has_the_two_commands_and_the_way_to_own_data():
  readme = [command for page, command in COMMANDS if page == 'README.md']
  assert any(c.startswith('make demo') for c in readme)
  assert any(c.startswith('make test') for c in readme)
  assert any('align_jax.main' in c and '--config.data.real=' in c for c in readme)
  assert any('align_jax.evaluate' in c for c in readme)


@pytest.mark.parametrize(
  'command',
  [
    'python -m align_jax.mian --config=configs/clip.py',
    'python -m align_jax.main --config=configs/clop.py',
    'python -m align_jax.main --config=configs/clip.py --config.data.reel=x',
    'python -m align_jax.evaluate --chekpoint=x',
    'python -m align_jax.evaluate --tasks=retrival',
    'make damo',
    'make demo PYTHNO=python3.12',
  ],
)
def test_a_wrong_command_is_found(command):
  with pytest.raises(AssertionError):
    test_command_names_what_exists('', command)


def test_make_help_lists_every_target():
  text = (ROOT / 'Makefile').read_text()
  phony = set(re.search(r'^\.PHONY: (.*)$', text, re.M)[1].split())
  assert set(re.findall(r'^([a-z-]+):.*##', text, re.M)) == phony
