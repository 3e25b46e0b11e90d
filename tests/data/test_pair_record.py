"""Contents and pairs: ids, and candidates that are read when they are asked for."""

import pickle

import pytest

from align_jax.data.pair_record import Content, Contents, PairRecord, content_ids, hash_id


def numbered(index):
  return Content(f'text {index}')


def test_an_id_is_made_of_the_content():
  assert Content('a').id == Content('a').id
  different = [
    Content('a'),
    Content('b'),
    Content('a', (b'1',)),
    Content('', (b'a',)),
    Content('a', (b'1', b'2')),
    Content('a', (b'12',)),
    Content('a', (b'2', b'1')),
  ]
  assert len({content.id for content in different}) == len(different)
  assert Content('a', id='mine').id == 'mine'


def test_parts_of_an_id_do_not_run_together():
  assert hash_id('ab', 'c') != hash_id('a', 'bc') != hash_id('abc')
  assert hash_id('a') == hash_id(b'a')


def test_a_pair_has_an_id_of_its_task_and_contents():
  made = [
    PairRecord('', task, Content(q), Content(p))
    for task, q, p in (('t', 'a', 'b'), ('t', 'b', 'a'), ('u', 'a', 'b'))
  ]
  assert len({record.id for record in made}) == 3
  assert made[0].id == PairRecord('', 't', Content('a'), Content('b'), label='x').id
  assert PairRecord('mine', 't', Content('a'), Content('b')).id == 'mine'


def test_candidates_are_read_when_they_are_asked_for():
  read = []

  def load(index):
    read.append(index)
    return numbered(index)

  contents = Contents(['a', 'b', 'c'], load)
  assert len(contents) == 3 and content_ids(contents) == ('a', 'b', 'c') and not read
  assert contents[-1].text == 'text 2' and read == [2]
  assert [c.text for c in contents[:2]] == ['text 0', 'text 1']
  assert [c.text for c in contents] == ['text 0', 'text 1', 'text 2']
  with pytest.raises(IndexError):
    contents[3]
  assert content_ids((Content('x', id='1'),)) == ['1']


def test_candidates_travel_to_other_processes():
  contents = pickle.loads(pickle.dumps(Contents(['a', 'b'], numbered)))
  assert contents.ids == ('a', 'b') and contents[1].text == 'text 1'
