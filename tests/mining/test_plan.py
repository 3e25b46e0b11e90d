"""Plans come back as they were, damage is refused, and so are data that have changed."""

import dataclasses
import gzip
import json

import numpy as np
import pytest

from align_jax.errors import UserError
from align_jax.mining.plan import (
  check_plan,
  ids_checksum,
  load_plan,
  make_plan,
  plan_checksum,
  save_plan,
)
from align_jax.mining.strategy import mine
from tests.mining.toy import Toy, make_toy

IDS = [f'scène-{i:04}' for i in range(120)]


@pytest.fixture(scope='module')
def plan():
  pairs, _ = make_toy(Toy(pairs=120, meanings=60, topics=6), seed=0)
  return make_plan(mine(pairs, 3, ids=IDS), IDS, 'emoji:scenes', content='abc')


def test_a_plan_comes_back(plan, tmp_path):
  path = tmp_path / 'sub' / 'plan.jsonl.gz'
  save_plan(path, plan)
  again = load_plan(path)
  assert again == plan and plan_checksum(again) == plan_checksum(plan)
  check_plan(again, IDS[::-1], 'abc')
  assert [p.name for p in path.parent.iterdir()] == [path.name]
  assert plan.size == 4 and len(plan.clusters) == 30 and plan.records == 120
  assert {name for row in plan.clusters for name in row} == set(IDS)
  assert plan.settings['k'] == 3 and plan.settings['mutual']['alike'] == 0.5
  # small, and the same bytes for the same plan
  first = path.read_bytes()
  save_plan(path, plan)
  assert path.read_bytes() == first and len(first) < 2500


def test_ids_may_hold_anything(plan, tmp_path):
  odd = ['line\u2028line', 'next\x85line', 'half \ud83d', 'two\nlines', '"quoted"']
  names = odd + IDS[len(odd) :]
  other = dict(zip(IDS, names, strict=True))
  clusters = tuple(tuple(other[name] for name in row) for row in plan.clusters)
  save_plan(tmp_path / 'plan', dataclasses.replace(plan, clusters=clusters))
  assert load_plan(tmp_path / 'plan').clusters == clusters


def test_a_plan_can_be_read_by_hand(plan, tmp_path):
  save_plan(tmp_path / 'plan', plan)
  head, names, *rows = gzip.decompress((tmp_path / 'plan').read_bytes()).decode().splitlines()
  assert json.loads(head)['data'] == 'emoji:scenes'
  names = json.loads(names)
  assert tuple(names[i] for i in json.loads(rows[0])) == plan.clusters[0]


def test_damage_is_refused(plan, tmp_path):
  path = tmp_path / 'plan'
  save_plan(path, plan)
  data = path.read_bytes()
  for broken in (data[:-9], data[:100] + b'x' + data[101:], b'', b'{}'):
    path.write_bytes(broken)
    with pytest.raises(UserError, match='damaged'):
      load_plan(path)
  text = gzip.decompress(data)
  for before, after in (
    (b'"seed": 0', b'"seed": 1'),
    (text[-20:], text[-20:].replace(b'[', b' [')),
  ):
    path.write_bytes(gzip.compress(text.replace(before, after)))
    with pytest.raises(UserError, match='damaged, its checksum does not fit; mine again'):
      load_plan(path)


@pytest.mark.parametrize(
  ('head', 'message'),
  [({'schema': 2}, 'a plan of schema 2, this reads 1'), ({'format': 'list'}, 'no batch plan')],
)
def test_other_files_are_refused(plan, tmp_path, head, message):
  save_plan(tmp_path / 'plan', plan)
  first, _, rest = gzip.decompress((tmp_path / 'plan').read_bytes()).partition(b'\n')
  changed = json.dumps({**json.loads(first), **head}).encode() + b'\n' + rest
  (tmp_path / 'plan').write_bytes(gzip.compress(changed))
  with pytest.raises(UserError, match=message):
    load_plan(tmp_path / 'plan')


def test_there_is_none(tmp_path):
  with pytest.raises(UserError, match='no such plan'):
    load_plan(tmp_path / 'plan')
  with pytest.raises(UserError, match='a folder; name the plan in it'):
    load_plan(tmp_path)


def test_a_full_disk_leaves_the_old_plan(plan, tmp_path, monkeypatch):
  path = tmp_path / 'plan'
  save_plan(path, plan)
  before = path.read_bytes()

  def full(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr('os.fsync', full)
  with pytest.raises(UserError, match='no space left'):
    save_plan(path, dataclasses.replace(plan, data='other'))
  assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
  ('ids', 'content', 'message'),
  [
    (IDS[1:], '', "1 of its records are not there now, first 'scène-0000'"),
    ([*IDS, 'new'], '', r'mined from 120 records, there are 121 now \(1 more\)'),
    (IDS, 'xyz', r'hold something else now \(checksum xyz…, was abc…\)'),
    ([*IDS, IDS[0]], '', 'more than once'),
  ],
)
def test_data_that_have_changed_are_refused(plan, ids, content, message):
  with pytest.raises(UserError, match=message):
    check_plan(plan, ids, content)


def test_records_that_no_cluster_names_count_as_well(plan):
  few = dataclasses.replace(plan, clusters=plan.clusters[:5])
  named = {name for row in few.clusters for name in row}
  spare = next(name for name in IDS if name not in named)
  with pytest.raises(UserError, match='there are 119 now'):
    check_plan(few, [name for name in IDS if name != spare])
  with pytest.raises(UserError, match='as many, but others'):
    check_plan(few, [*(name for name in IDS if name != spare), 'new'])
  check_plan(few, IDS)


def test_a_plan_of_some_of_the_same_records(plan):
  check_plan(plan, [*IDS, 'another'], 'abc')  # the checksum of contents says that nothing changed


def test_clusters_are_of_one_size(plan):
  with pytest.raises(UserError, match='cluster 1 is of 2 records, not 4'):
    dataclasses.replace(plan, clusters=(plan.clusters[0], plan.clusters[1][:2]))


def test_the_checksum_of_ids_knows_no_order():
  assert ids_checksum(['a', 'b']) == ids_checksum(['b', 'a']) != ids_checksum(['ab'])
  assert ids_checksum(['a\nb']) != ids_checksum(['a', 'b'])
  assert np.asarray(IDS).dtype.kind == 'U'
