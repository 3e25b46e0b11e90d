"""Questions against the scenes they are about, told a second time from their sources."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from align_jax.data.emoji.captions import noun_phrase
from align_jax.data.emoji.concepts import concept_of, scene_concepts
from align_jax.data.emoji.scenes import is_held_out
from align_jax.data.questions import (
  KINDS,
  Question,
  box_text,
  draw_questions,
  questions,
  things_in,
)
from align_jax.data.record import Record
from align_jax.data.sources import open_source
from align_jax.errors import UserError

pytest.importorskip('resvg_py')

SCENES = 'emoji:scenes?size=32&concepts=12&max_objects=3&count=60'


@pytest.fixture(scope='module', params=['train', 'compositions'])
def asked(request):
  source = open_source(f'{SCENES}&split={request.param}')
  things = things_in(source)
  records = [source[i] for i in range(len(source))]
  return request.param, things, [(r, questions(r, things)) for r in records]


def of_kind(asked, kind):
  return [(r, q) for r, found in asked[2] for q in found if q.kind == kind]


def the_object(record, question):
  """The object whose name, singular or plural, the question has."""
  for o in record.truth['objects']:
    concept = concept_of(o['concept'], o['label'])
    names = (noun_phrase(concept, n, 'natural').split(' ', 1)[1] for n in (1, 2))
    if any(f' {name}' in question.question for name in names):
      return o
  raise AssertionError(question)


def test_all_kinds_are_asked(asked):
  assert {q.kind for _, found in asked[2] for q in found} == set(KINDS)
  assert {name for _, name in asked[1]} <= {c.name for c in scene_concepts(12)}


def test_answers_are_the_truth(asked):
  for record, question in of_kind(asked, 'count'):
    count = the_object(record, question)['count']
    assert question.answer == {1: 'one', 2: 'two', 3: 'three'}[count]
  for record, question in of_kind(asked, 'colour'):
    assert question.answer == the_object(record, question)['colour'] != 'natural'
  for record, question in of_kind(asked, 'position'):
    assert [question.answer] == list(the_object(record, question)['position'])
  for record, question in of_kind(asked, 'caption'):
    assert question.answer in record.captions
    long = question.answer == record.truth['caption_long']
    assert question.question == (
      'Describe the whole picture.' if long else 'What is in the picture?'
    )


def test_boxes_are_in_hundredths(asked):
  for record, question in of_kind(asked, 'grounding'):
    (box,) = the_object(record, question)['boxes']
    told = np.asarray([int(x) for x in question.answer.split()])
    assert all(len(x) == 2 for x in question.answer.split())
    assert np.abs(told / 100 * 32 - np.asarray(box)).max() <= 0.4  # 99 stands for the edge, too
  assert box_text([0, 10, 200, 99], (200, 100)) == '00 10 99 99'


def test_half_of_what_is_asked_for_is_there(asked):
  split, things, _ = asked
  names = {name for _, name in things}
  answers = Counter()
  for record, question in of_kind(asked, 'existence'):
    phrase = question.question.removeprefix('Is there ').removesuffix('?')
    there = {}
    for o in record.truth['objects']:
      concept = concept_of(o['concept'], o['label'])
      there |= {noun_phrase(concept, 1, c): o for c in (o['colour'], 'natural')}
    assert (phrase in there) == (question.answer == 'yes'), question
    answers[question.answer] += 1
    if question.answer == 'no':
      # neither a name that never comes up nor a held-out pair: the words alone would tell
      words = [n for n in names if f' {n}' in f' {phrase}']
      assert words, phrase
      concept = next(c for c in scene_concepts(12) if c.name == max(words, key=len))
      colour = next((c for c in ('red', 'blue', 'green', 'pink') if f' {c} ' in phrase), 'natural')
      assert not is_held_out(concept, colour)
  share = answers['yes'] / sum(answers.values())
  assert 0.48 < share < 0.55
  assert split == 'train' or any(o['held_out'] for r, _ in asked[2] for o in r.truth['objects'])


def test_the_same_record_is_asked_the_same(asked):
  record, found = asked[2][0]
  assert questions(record, asked[1]) == found


def test_questions_that_a_record_brings_are_taken():
  given = ({'kind': 'vqa', 'question': 'Who?', 'answer': 'me'},)
  record = Record(id='a', image=b'', captions=('a cat',), truth={'questions': given})
  assert questions(record) == [Question('vqa', 'Who?', 'me')]
  plain = dataclasses.replace(record, truth={})
  assert questions(plain) == [Question('caption', 'What is in the picture?', 'a cat')]
  for bad in ('x', [{'kind': 'vqa'}], [{'kind': 1, 'question': 'a', 'answer': 'b'}]):
    with pytest.raises(UserError, match=r'record a: truth\.questions must be a list'):
      questions(dataclasses.replace(record, truth={'questions': bad}))


def drawn(found):
  rng = np.random.default_rng(0)
  return Counter(draw_questions(found, 1, rng.random)[0].kind for _ in range(3000))


def test_half_of_what_is_drawn_are_captions_and_other_kinds_are_drawn_equally_often():
  many = [Question('many', str(i), '') for i in range(9)]
  captions = [Question('caption', str(i), '') for i in range(2)]
  counts = drawn([*captions, *many, Question('one', 'x', '')])
  assert abs(counts['caption'] - 1500) < 100
  assert abs(counts['one'] - 750) < 80
  assert drawn(captions) == {'caption': 3000}
  assert abs(drawn([*many, Question('one', 'x', '')])['one'] - 1500) < 100


def test_different_questions_are_drawn_until_none_is_left():
  found = [Question('caption', 'a', ''), *(Question('many', str(i), '') for i in range(4))]
  rng = np.random.default_rng(1)
  drawn = [draw_questions([*found, found[0]], 3, rng.random) for _ in range(20)]
  assert all(len({*few}) == 3 for few in drawn)
  assert {*draw_questions([*found, found[0]], 9, rng.random)} == {*found}
  first = [draw_questions(found, 1, np.random.default_rng(i).random)[0] for i in range(9)]
  assert first == [draw_questions(found, 4, np.random.default_rng(i).random)[0] for i in range(9)]
