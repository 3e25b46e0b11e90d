"""Batches of pairs, and batches that follow a plan: whole clusters, on any number of processes."""

import io

import numpy as np
import pytest
from PIL import Image

from align_jax.data.chat import train_chat
from align_jax.data.embed_prompt import SYSTEM, embed_turns
from align_jax.data.examples import Clusters, Part
from align_jax.data.pair_record import Content, PairRecord
from align_jax.data.pipeline import train_iterator
from align_jax.data.position import CHUNK
from align_jax.data.quarantine import Quarantine
from align_jax.data.transforms import Transform
from align_jax.errors import UserError

LENGTH, PATCHES, COUNT = 120, 4, 40
CLUSTERS = np.random.default_rng(0).permutation(COUNT).reshape(10, 4)


def png(value: int, size: int = 16) -> bytes:
  file = io.BytesIO()
  Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(file, 'PNG')
  return file.getvalue()


class Pairs:
  """Image to text, and text to image and text, by turns; pair 7 may be damaged."""

  licence = 'CC0'

  def __init__(self, damaged=False):
    self.spec, self.damaged = 'made:up', damaged

  def __len__(self):
    return COUNT

  def ids(self):
    return [f'pair-{i}' for i in range(COUNT)]

  def __getitem__(self, index):
    image = b'none' if self.damaged and index == 7 else png(6 * index)
    text = Content(f'number {index // 2}')
    sides = (Content('', (image,)), text)
    if index % 2:
      sides = text, Content('but blue', (image,))
    return PairRecord(f'pair-{index}', 'task', *sides, 'Find it.', 'This is it.')


@pytest.fixture(scope='module')
def chat():
  texts = [f'number {i} Find it. This is it. but blue' for i in range(20)]
  return train_chat([*texts, SYSTEM], 400, PATCHES)


def batches(chat, source=None, clusters=CLUSTERS, **settings):
  settings = {'batch_size': 8, 'level': 'user', 'threads': 0, 'seed': 0, **settings}
  part = Part(source or Pairs())
  if clusters is not None:
    part = Part(part.source, clusters=Clusters(clusters, 'abc'))
  return train_iterator(
    [part],
    length=LENGTH,
    tokenizer=chat,
    text='pairs',
    transform=Transform(16, mode='train'),
    quarantine=Quarantine(None, max_share=0.5, min_seen=50),
    **settings,
  )


def numbers(batch):
  return [int(name.removeprefix('pair-')) for name in batch['ids']]


def test_a_batch_holds_prompts_and_pixels_of_both_sides(chat):
  source = Pairs()
  batch = next(batches(chat, clusters=None))
  assert {k: (v.shape, v.dtype) for k, v in batch.items() if k != 'ids'} == {
    'group': ((8,), np.int32),
    **{
      f'{side}_{name}': value
      for side in ('query', 'candidate')
      for name, value in {
        'tokens': ((8, LENGTH), np.int32),
        'segment': ((8, LENGTH), np.int32),
        'image': ((8, 1, 16, 16, 3), np.uint8),
      }.items()
    },
  }
  for row, number in enumerate(numbers(batch)):
    pair = source[number]
    for side, content, instruction in (
      ('query', pair.query, pair.instruction),
      ('candidate', pair.positive, pair.candidate_instruction),
    ):
      turns = embed_turns(content, side, instruction, 'user')
      tokens, segment = chat.prompts([turns], len(content.images), LENGTH)
      np.testing.assert_array_equal(batch[f'{side}_tokens'][row], tokens[0])
      np.testing.assert_array_equal(batch[f'{side}_segment'][row], segment[0])
      assert (batch[f'{side}_image'][row] == (6 * number if content.images else 0)).all()
  same = np.asarray(numbers(batch)) // 2
  texts = [i for i, number in enumerate(numbers(batch)) if number % 2 == 0]
  groups = batch['group'][texts]
  assert ((groups[:, None] == groups) == (same[texts][:, None] == same[texts])).all()


def test_clusters_come_whole_and_shuffled(chat):
  iterator = batches(chat, batch_size=20)
  seen = np.reshape([numbers(next(iterator)) for _ in range(4)], (2, 10, 4)).tolist()
  for epoch in seen:
    assert sorted(epoch) == sorted(CLUSTERS.tolist())
  assert seen[0] != seen[1] != CLUSTERS.tolist()


def test_a_cluster_with_a_damaged_member_is_left_out_whole(chat):
  iterator = batches(chat, Pairs(damaged=True), batch_size=4)
  seen = [numbers(next(iterator)) for _ in range(18)]
  assert sorted(seen) == sorted([c for c in CLUSTERS.tolist() if 7 not in c] * 2)


@pytest.mark.parametrize('threads', [0, 2])
def test_goes_on_where_it_was(chat, threads):
  iterator = batches(chat, threads=threads)
  for _ in range(5):
    next(iterator)
  state = iterator.get_state()
  wanted = [numbers(next(iterator)) for _ in range(12)]
  again = batches(chat)
  again.set_state(state)
  assert [numbers(next(again)) for _ in range(12)] == wanted
  other = batches(chat, clusters=None)
  with pytest.raises(UserError, match='saved with'):
    batches(chat, seed=1).set_state(state)
  del state['data']['plan']
  with pytest.raises(UserError, match='saved with plan None, now abc'):
    batches(chat).set_state(state)
  other.set_state(state)


def test_processes_share_whole_clusters_also_when_their_number_changes(chat):
  wide = np.random.default_rng(1).permutation(COUNT)[:36].reshape(6, 6)  # no divisor of CHUNK
  assert CHUNK % 6
  made = [
    batches(chat, clusters=wide, batch_size=6, process_index=p, process_count=2) for p in range(2)
  ]
  seen = [numbers(next(iterator)) for _ in range(2) for iterator in made]
  states = [iterator.get_state() for iterator in made]
  states[0]['positions'][1] = states[1]['positions'][1]
  alone = batches(chat, clusters=wide, batch_size=6)
  alone.set_state(states[0])
  seen += [numbers(next(alone)) for _ in range(2)]
  assert sorted(seen) == sorted(wide.tolist())  # one epoch, each cluster once


def test_what_cannot_be_is_refused(chat):
  with pytest.raises(UserError, match=r'batch size 6 .* the batch plan are of 4'):
    batches(chat, batch_size=6)
  parts = [Part(Pairs(), clusters=Clusters(CLUSTERS, 'abc')), Part(Pairs())]
  with pytest.raises(UserError, match='made:up: has a batch plan, but is mixed'):
    train_iterator(
      parts,
      batch_size=4,
      length=LENGTH,
      tokenizer=chat,
      text='pairs',
      transform=Transform(16, mode='train'),
      seed=0,
      quarantine=Quarantine(None, max_share=0.5, min_seen=50),
    )
