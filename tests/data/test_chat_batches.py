"""Batches of chats: questions drawn and encoded, resumed where they stopped."""

import dataclasses

import numpy as np
import pytest

from align_jax.data.chat import Turn, train_chat
from align_jax.data.chat_shared import SHARED
from align_jax.data.pipeline import Part, train_iterator
from align_jax.data.quarantine import Quarantine
from align_jax.data.questions import DESCRIBE, questions, things_in
from align_jax.data.sources import open_source
from align_jax.data.summaries import one_words
from align_jax.data.tokenizer import train_tokenizer
from align_jax.data.transforms import Transform
from align_jax.errors import UserError
from align_jax.models import decoder

pytest.importorskip('resvg_py')

LENGTH = 96  # the longest caption and its question fit


@pytest.fixture(scope='module')
def source():
  return open_source('emoji:scenes?size=32&concepts=12&max_objects=2&count=24')


@pytest.fixture(scope='module')
def chat(source):
  things = things_in(source)
  found = [q for i in range(len(source)) for q in questions(source[i], things)]
  return train_chat([text for q in found for text in (q.question, q.answer)], 500, 16)


def batches(source, tokenizer, **settings):
  quarantine = Quarantine(None, max_share=0.5, min_seen=5)
  given = {'text': 'questions', 'length': LENGTH, 'threads': 0, 'seed': 0, 'quarantine': quarantine}
  return train_iterator(
    [Part(source)],
    batch_size=8,
    tokenizer=tokenizer,
    transform=Transform(32, mode='train'),
    **{**given, **settings},
  )


def said(chat, batch):
  """Record, question and answer of each row, read back from its tokens."""
  for name, tokens, answer in zip(batch['ids'], batch['tokens'], batch['answer'], strict=True):
    asked = tokens[: answer.argmax()]
    text = chat.decode(asked[asked != chat.end_id][None])[0]
    yield (
      name,
      text.removeprefix('user').removesuffix('assistant').strip(),
      chat.decode(tokens[answer][None])[0],
    )


def test_a_question_of_the_record_is_asked_and_answered(source, chat):
  things = things_in(source)
  known = {
    r.id: {(q.question, q.answer) for q in questions(r, things)}
    for r in map(source.__getitem__, range(len(source)))
  }
  iterator, asked = batches(source, chat), set()
  for _ in range(6):
    batch = next(iterator)
    assert {k: (v.shape, v.dtype) for k, v in batch.items() if k != 'ids'} == {
      'image': ((8, 32, 32, 3), np.uint8),
      'tokens': ((8, LENGTH), np.int32),
      'segment': ((8, LENGTH), np.int32),
      'answer': ((8, LENGTH), np.bool_),
      'group': ((8,), np.int32),
      'modality': ((8,), np.int32),
    }
    assert (batch['segment'][batch['answer']] == 1).all()
    assert ((batch['tokens'] == chat.image_id).sum(axis=1) == 16).all()
    for name, question, answer in said(chat, batch):
      assert (question, answer) in known[name]
      asked.add((name, question))
  assert len(asked) > 24  # other questions in the second epoch


def test_several_questions_of_an_image_share_a_row(source, chat):
  assert SHARED == decoder.SHARED
  things = things_in(source)
  known = {
    r.id: {(q.question, q.answer) for q in questions(r, things)}
    for r in map(source.__getitem__, range(len(source)))
  }
  batch = next(batches(source, chat, questions=4, length=200))
  for name, tokens, segment, answer in zip(
    *(batch[key] for key in ('ids', 'tokens', 'segment', 'answer')), strict=True
  ):
    shared = segment == SHARED
    assert (tokens == chat.image_id).sum() == (tokens[shared] == chat.image_id).sum() == 16
    assert not answer[shared].any()
    numbers = range(1, segment.max() + 1)
    assert len(numbers) == min(4, len(known[name]))
    pairs = set()
    for number in numbers:
      own = shared | (segment == number)
      row = {'ids': [name], 'tokens': tokens[own][None], 'answer': (answer & own)[own][None]}
      ((_, question, told),) = said(chat, row)
      pairs.add((question, told))
      alone, marks = chat.encode(
        [Turn('user', question), Turn('assistant', told)], 1, int(own.sum())
      )
      assert np.array_equal(tokens[own], alone)
      assert np.array_equal((answer & own)[own], marks)
    assert len(pairs) == len(numbers)
    assert pairs <= known[name]


def test_questions_that_do_not_fit_are_left_out(source, chat):
  one, few = (next(batches(source, chat, questions=n, length=LENGTH)) for n in (1, 9))
  assert few['segment'].max() < 9
  assert (few['segment'] != 0).sum() > 1.2 * (one['segment'] != 0).sum()
  for row, first in enumerate(one['tokens']):
    own = np.isin(few['segment'][row], [SHARED, 1])
    wanted = first[one['segment'][row] > 0]
    assert np.array_equal(few['tokens'][row][own], wanted)


def test_captions_answer_what_an_image_shows(source, chat):
  batch = next(batches(source, chat, text='captions'))
  captions = {r.id: r.captions for r in map(source.__getitem__, range(len(source)))}
  for name, question, answer in said(chat, batch):
    assert question == DESCRIBE
    assert answer in captions[name]


@pytest.mark.parametrize('threads', [0, 2])
def test_the_next_batch_is_the_one_that_would_have_come(source, chat, threads):
  first = batches(source, chat)
  for _ in range(2):
    next(first)
  state, wanted = first.get_state(), next(first)
  again = batches(source, chat, threads=threads)
  again.set_state(state)
  got = next(again)
  assert all(np.array_equal(got[name], wanted[name]) for name in wanted)


def test_records_without_a_question_are_counted(tmp_path, source, chat):
  class Bare:
    spec, licence = 'memory:', ''

    def __len__(self):
      return 24

    def __getitem__(self, index):
      record = source[index]
      return record if index % 6 else type(record)(id=record.id, image=record.image)

  quarantine = Quarantine(None, max_share=0.5, min_seen=5)
  iterator = train_iterator(
    [Part(Bare())],
    batch_size=24,
    length=LENGTH,
    tokenizer=chat,
    transform=Transform(32, mode='train'),
    quarantine=quarantine,
    text='questions',
    threads=0,
    seed=0,
  )
  next(iterator)
  assert quarantine.counts.keys() == {'no question'}


def test_chats_need_a_chat(source, chat):
  with pytest.raises(UserError, match=r"data\.text: 'questions' with a Tokenizer"):
    batches(source, train_tokenizer(['a'], 300))
  with pytest.raises(UserError, match=r"data\.text: 'plain' with a Chat"):
    batches(source, chat, text='plain')


def test_damaged_images_and_questions_are_skipped(source, chat):
  class Damaged:
    spec, licence = 'damaged:', ''

    def __len__(self):
      return len(source)

    def __getitem__(self, index):
      record = source[index]
      if index == 3:
        return dataclasses.replace(record, image=b'no image')
      if index == 5:
        return dataclasses.replace(record, truth={'questions': 'none'})
      return record

  quarantine = Quarantine(None, max_share=0.9, min_seen=50)
  iterator = batches(Damaged(), chat, quarantine=quarantine)
  seen = {name for _ in range(6) for name in next(iterator)['ids']}
  assert len(seen) == len(source) - 2
  assert {'format', 'bad questions'} == set(quarantine.counts)


def test_images_and_captions_are_summarised_in_one_word(source, chat):
  shown = {r.id: {*one_words(r)} for r in map(source.__getitem__, range(len(source)))}
  iterator = batches(source, chat, summaries=0.5, questions=3, length=400)
  found, prompts = 0, set()
  for batch in (next(iterator) for _ in range(4)):
    rows = zip(*(batch[k] for k in ('ids', 'tokens', 'segment', 'answer')), strict=True)
    for name, tokens, segment, answer in rows:
      if not (segment[0] == 1 and segment.max() == 2):
        assert segment[0] == SHARED
        continue
      found += 1
      blind = segment == 1  # before what is shared, which it does not see
      assert (tokens[blind] == chat.image_id).sum() == 0
      assert (tokens[segment == SHARED] == chat.image_id).sum() == 16
      for own in (blind, (segment == SHARED) | (segment == 2)):
        row = {'ids': [name], 'tokens': tokens[own][None], 'answer': (answer & own)[own][None]}
        ((_, prompt, word),) = said(chat, row)
        assert word in shown[name]
        prompts.add(prompt.split()[0])
        end = 'word.' in prompt.split()[-1] or 'system' in prompt
        assert end
  assert 8 <= found <= 24
  assert {'system', 'Represent'} <= prompts


def test_a_template_that_tells_images_apart_last_cannot_share_them(source, chat):
  turns = [Turn('system', 'a'), Turn('user', 'b'), Turn('assistant', 'c')]
  other = [Turn('system', 'b'), *turns[1:]]
  with pytest.raises(UserError, match='before the images'):
    chat.encode_shared([([turns, other], [])], 1, 200)
