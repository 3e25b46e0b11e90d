"""Options become flags, rounds take turns, and standard output holds one line of JSON."""

import dataclasses
import json

import pytest

from align_jax.errors import UserError
from benchmarks import __main__ as programs
from benchmarks import common


@dataclasses.dataclass(frozen=True)
class Options:
  batch: int = 3
  model: str = 'S'
  gib: float = 0.5


def test_a_command_prints_one_line(capsys):
  common.command(Options, dataclasses.asdict, 'text', ['--batch=7', '--gib=2'])
  out = capsys.readouterr().out
  assert out.count('\n') == 1
  assert json.loads(out) == {'batch': 7, 'model': 'S', 'gib': 2.0}


def test_bad_input_is_one_line(capsys):
  def run(options):
    raise UserError('--batch: too large')

  with pytest.raises(SystemExit) as ended:
    common.command(Options, run, 'text', [])
  assert ended.value.code == 2
  said = capsys.readouterr()
  assert said.out == '' and said.err == 'error: --batch: too large\n'


def test_sides_take_turns():
  order = []

  def side(name):
    return lambda: float(order.append(name) or 1.0)

  seconds = common.in_turns({'ours': side('a'), 'peer': side('b')}, 3, pause=0.0)
  assert order == ['a', 'b', 'b', 'a', 'a', 'b']
  assert seconds == {'ours': [1.0] * 3, 'peer': [1.0] * 3}


def test_the_ratio_is_that_of_each_round():
  got = common.ratios({'ours': [1.0, 2.0, 4.0], 'peer': [2.0, 2.0, 2.0]}, target=1.0)
  assert got == {'median': 1.0, 'min': 0.5, 'max': 2.0, 'rounds': 3, 'target': 1.0, 'met': True}


def test_a_missing_peer_is_named():
  with pytest.raises(UserError, match='no-such-package'):
    common.need('no-such-package')


def test_machine_says_chip_and_versions():
  got = common.machine()
  assert got['chip'] and got['chips'] == 1 and got['cores'] >= 1
  assert got['versions']['jax']


def test_some_program_must_be_named():
  with pytest.raises(SystemExit) as ended:
    programs.main([])
  assert ended.value.code == 2
