import concurrent.futures
import errno
import os

import numpy as np
import pytest

from align_jax.data.record import Record
from align_jax.errors import UserError
from align_jax.synth import stage as stage_lib
from align_jax.synth.rows import AnnotationRow, Category, PromptRow
from align_jax.synth.stage import open_stage, remove_stage, remove_temporaries

ROWS = [Category('cat'), Category('dög', 'a "good" one', True, 0.25, 'imagenet')]


def test_rows_records_and_arrays_come_back(tmp_path):
  stage = open_stage(tmp_path, 'generate', {'a': 1}, '', 2)
  records = [Record('x', b'1', ('one',)), Record('y', b'2')]
  arrays = {'embedding': np.arange(6, dtype=np.float32).reshape(2, 3)}
  assert not stage.is_done(0) and not stage.is_complete()
  stage.write(1, ROWS, records, arrays)
  assert stage.is_done(1) and stage.count_done() == 1 and not stage.is_done(0)
  assert stage.rows(1, Category) == ROWS
  assert list(stage.records(1)) == records and len(stage.records(1)) == 2
  np.testing.assert_array_equal(stage.arrays(1)['embedding'], arrays['embedding'])
  stage.write(0, [])
  assert stage.is_complete() and list(stage.all_rows(Category)) == ROWS
  rows = [PromptRow('1', 'cat', 'a cat', 'grammar', {'colour': 'red'}), PromptRow('2', 'c', '', '')]
  stage.write(0, rows)
  assert stage.rows(0, PromptRow) == rows
  boxes = [
    AnnotationRow('1', 3, 4, 0.5, (0, 1, 2, 3), 'abc'),
    AnnotationRow('2', 3, 4, failure='e'),
  ]
  stage.write(0, boxes)
  assert stage.rows(0, AnnotationRow) == boxes


def test_other_ends_of_lines_are_part_of_a_text(tmp_path):
  stage = open_stage(tmp_path, 'prompts', {}, '', 1)
  rows = [
    PromptRow('1', 'cat', 'a\u2028cat\u2029or\x85so\r\n', 'external'),
    PromptRow('2', 'c', '', ''),
  ]
  stage.write(0, rows)
  assert stage.rows(0, PromptRow) == rows


def test_processes_of_two_machines_may_share_a_process_id(tmp_path):
  def work(_: int) -> None:
    open_stage(tmp_path, 'prompts', {'per': 4}, '', 1)

  for _ in range(20):
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
      list(pool.map(work, range(2)))
    remove_stage(tmp_path, 'prompts')


def test_damage_is_noticed(tmp_path):
  stage = open_stage(tmp_path, 'score', {}, '', 1)
  stage.write(0, ROWS)
  path = stage.folder / 'part-00000.jsonl'
  path.write_text(path.read_text().replace('cat', 'cow'))
  assert not stage.is_done(0)
  path.unlink()
  assert not stage.is_done(0)
  (stage.folder / 'part-00000.json').write_text('{')
  with pytest.raises(UserError, match=r'part-00000.json: damaged'):
    stage.is_done(0)
  (stage.folder / 'stage.json').write_text('[]')
  with pytest.raises(UserError, match=r'stage.json: damaged'):
    open_stage(tmp_path, 'score', {}, '', 1)


def test_other_settings_are_refused_by_name(tmp_path):
  open_stage(tmp_path, 'prompts', {'per': 3}, '', 1)  # nothing was made: no matter
  stage = open_stage(tmp_path, 'prompts', {'per': 4, 'group': {'b': 1, 'c': [1, 2]}}, '', 1)
  stage.write(0, ROWS)
  same = open_stage(tmp_path, 'prompts', {'group': {'c': (1, 2), 'b': 1}, 'per': 4}, '', 1)
  assert same.key == stage.key
  with pytest.raises(UserError, match=r'group.b: 1, now 2.*--redo=prompts'):
    open_stage(tmp_path, 'prompts', {'per': 4, 'group': {'b': 2, 'c': [1, 2]}}, '', 1)
  with pytest.raises(UserError, match=r'1 parts, now 3'):
    open_stage(tmp_path, 'prompts', {'per': 4, 'group': {'b': 1, 'c': [1, 2]}}, '', 3)
  with pytest.raises(UserError, match='an earlier stage was made anew'):
    open_stage(tmp_path, 'prompts', {'per': 4, 'group': {'b': 1, 'c': [1, 2]}}, 'other', 1)
  remove_stage(tmp_path, 'prompts')
  assert not open_stage(tmp_path, 'prompts', {'per': 5}, '', 1).is_done(0)


@pytest.mark.parametrize('stop', range(4))
def test_a_kill_leaves_the_old_part_or_none(tmp_path, monkeypatch, stop):
  stage = open_stage(tmp_path, 'generate', {}, '', 1)
  stage.write(0, ROWS, [Record('x', b'1')])
  replace, count = os.replace, 0

  def killed(*paths):
    nonlocal count
    count += 1
    if count > stop:
      raise KeyboardInterrupt
    replace(*paths)

  with monkeypatch.context() as patch:
    patch.setattr(os, 'replace', killed)
    if stop < 3:
      with pytest.raises(KeyboardInterrupt):
        stage.write(0, ROWS[:1], [Record('y', b'2')])
    else:
      stage.write(0, ROWS[:1], [Record('y', b'2')])
  assert stage.is_done(0) == (stop == 3)
  stage.write(0, ROWS[:1], [Record('y', b'2')])
  assert stage.rows(0, Category) == ROWS[:1] and stage.records(0)[0].id == 'y'
  remove_temporaries(stage)
  assert not [p for p in stage.folder.iterdir() if p.name.startswith('.')]


def test_a_full_disk_leaves_what_was(tmp_path, monkeypatch):
  stage = open_stage(tmp_path, 'generate', {}, '', 2)
  stage.write(0, ROWS)

  def full(_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(stage_lib, 'sync', full)
  for part in range(2):
    with pytest.raises(UserError, match='no space left'):
      stage.write(part, ROWS[:1], [Record('y', b'2')])
  monkeypatch.undo()
  assert stage.is_done(0) and stage.rows(0, Category) == ROWS and not stage.is_done(1)
  assert not [p for p in stage.folder.iterdir() if p.name.startswith('.')]
