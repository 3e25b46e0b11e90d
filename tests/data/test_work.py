import json
import os
from pathlib import Path

import pytest

from align_jax.data.convert import convert
from align_jax.data.sources import open_source
from align_jax.data.work import Done, Progress, WorkConfig, run_tasks
from align_jax.errors import UserError
from tests import tiny

BEAM = pytest.mark.filterwarnings('ignore')


def square(folder: str, task: int):
  """A task: notes that it ran, says how far it is, gives its square."""
  with open(os.path.join(folder, f'ran-{task}'), 'a') as file:
    file.write('x')
  yield 1
  if task < 0:
    raise UserError(f'task {task}: negative; give another')
  yield 2
  return [task * task]


def bound(folder: Path):
  import functools

  return functools.partial(square, str(folder))


@pytest.mark.parametrize(
  'config',
  [WorkConfig(1), WorkConfig(2), WorkConfig(1, 'DirectRunner', ('--direct_num_workers=1',))],
  ids=['here', 'processes', 'beam'],
)
def test_every_task_is_done_once(tmp_path, config):
  scratch = tmp_path / 'scratch'
  messages = list(run_tasks(bound(tmp_path), range(5), config, scratch=str(scratch)))
  done = {m.index: m.result for m in messages if isinstance(m, Done)}
  assert done == {i: [i * i] for i in range(5)}
  if config.runner == 'local':
    assert sum(m.count for m in messages if isinstance(m, Progress)) == 15
  assert all((tmp_path / f'ran-{i}').read_text() == 'x' for i in range(5))
  assert not scratch.exists()


@pytest.mark.parametrize('config', [WorkConfig(1), WorkConfig(2), WorkConfig(1, 'DirectRunner')])
def test_a_bad_task_ends_it_with_its_own_message(tmp_path, config):
  with pytest.raises(UserError, match=r'^task -1: negative; give another$'):
    list(run_tasks(bound(tmp_path), [1, -1], config, scratch=str(tmp_path / 's')))


def test_beam_takes_up_what_a_stopped_run_left(tmp_path):
  config, scratch = WorkConfig(1, 'DirectRunner'), tmp_path / 'scratch'
  with pytest.raises(UserError):
    list(run_tasks(bound(tmp_path), [3, -1], config, scratch=str(scratch)))
  left = list(scratch.iterdir()) if scratch.exists() else []
  messages = list(run_tasks(bound(tmp_path), [3, 2], config, scratch=str(scratch)))
  assert {m.index: m.result for m in messages} == {0: [9], 1: [4]}
  assert (tmp_path / 'ran-3').read_text() == ('x' if left else 'xx')


def test_what_cannot_run_is_said(tmp_path):
  with pytest.raises(UserError, match='--workers=0'):
    WorkConfig(0)
  with pytest.raises(UserError, match=r'--beam_option=--project=x: needs --runner'):
    WorkConfig(1, 'local', ('--project=x',))
  with pytest.raises(UserError, match=r'--beam_option=project: write it'):
    WorkConfig(1, 'DirectRunner', ('project',))
  with pytest.raises(UserError, match=r'--runner=NoRunner'):
    list(run_tasks(bound(tmp_path), [1], WorkConfig(1, 'NoRunner'), scratch=str(tmp_path)))


def test_conversion_by_beam_gives_the_same_shards(tmp_path):
  spec = f'folder:{tiny.photo_folder(tmp_path / "in", each=2)}'
  (tmp_path / 'in' / 'red disc' / 'broken.jpg').write_bytes(b'\xff\xd8\xff broken')
  for name, options in (('a', {'workers': 1}), ('b', {'runner': 'DirectRunner'})):
    convert(spec, f'arrayrecord:{tmp_path}/{name}', 3, progress=False, **options)
  for file in sorted((tmp_path / 'a').iterdir()):
    assert file.read_bytes() == (tmp_path / 'b' / file.name).read_bytes(), file.name
  assert sorted(p.name for p in (tmp_path / 'a').iterdir()) == sorted(
    p.name for p in (tmp_path / 'b').iterdir()
  )
  assert len(open_source(f'arrayrecord:{tmp_path}/b')) == 12
  line = json.loads((tmp_path / 'b' / 'quarantine.jsonl').read_text())
  assert line['reason'] == 'corrupt'
