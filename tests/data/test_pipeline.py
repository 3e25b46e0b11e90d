"""Batches: what is in them, that their order never changes, and what happens to bad records."""

import collections
import dataclasses
import io
import json
import time

import numpy as np
import pytest
from PIL import Image

from align_jax.data.examples import caption_group
from align_jax.data.pipeline import Part, local_batch, train_iterator
from align_jax.data.quarantine import Quarantine
from align_jax.data.record import Record
from align_jax.data.tokenizer import train_tokenizer
from align_jax.data.transforms import Transform
from align_jax.errors import UserError

SIZE = 8
CAPTIONS = [f'{colour} {name}' for colour in ('red', 'blue') for name in ('dog', 'cat', 'car')]
TOKENIZER = train_tokenizer(CAPTIONS, 300)


class Memory:
  """A source in memory; a record that is None cannot be read."""

  def __init__(self, records, spec='memory:a'):
    self.records, self.spec, self.licence = records, spec, ''
    self.reads = 0

  def __len__(self):
    return len(self.records)

  def __getitem__(self, index):
    self.reads += 1
    if self.records[index] is None:
      raise UserError(f'{self.spec}: record {index} is damaged')
    return self.records[index]


class Named(Memory):
  """A source that knows its ids."""

  def ids(self):
    return [record.id for record in self.records]


def png(value: int, size: int = SIZE) -> bytes:
  out = io.BytesIO()
  Image.new('RGB', (size, size), (value % 256, 7, 9)).save(out, 'PNG')
  return out.getvalue()


def records(count: int, prefix: str = 'r', **fields) -> list:
  return [
    Record(f'{prefix}{i}', png(i), captions=(CAPTIONS[i % len(CAPTIONS)],), **fields)
    for i in range(count)
  ]


def iterate(parts, **options):
  defaults = {
    'batch_size': 4,
    'length': 8,
    'tokenizer': TOKENIZER,
    'transform': Transform(SIZE, 'train'),
    'seed': 0,
    'quarantine': Quarantine(None, 0.5, 1000),
  }
  if isinstance(parts, Memory):
    parts = [Part(parts)]
  return train_iterator(parts, **(defaults | options))


def take(iterator, batches: int) -> list[dict]:
  return [next(iterator) for _ in range(batches)]


def ids(batches) -> list[str]:
  return [str(name) for batch in batches for name in batch['ids']]


def assert_same(first, second):
  for a, b in zip(first, second, strict=True):
    assert a.keys() == b.keys()
    for key in a:
      np.testing.assert_array_equal(a[key], b[key], err_msg=key)


# --- what is in a batch


def test_batch_fields():
  source = Memory(records(6, modality='generated'))
  (batch,) = take(iterate(source), 1)
  assert set(batch) == {'image', 'text', 'group', 'modality', 'ids'}
  assert batch['image'].shape == (4, SIZE, SIZE, 3) and batch['image'].dtype == np.uint8
  assert batch['text'].shape == (4, 8) and batch['text'].dtype == np.int32
  assert batch['group'].dtype == np.int32 and (batch['group'] >= 0).all()
  np.testing.assert_array_equal(batch['modality'], np.ones(4, np.int32))
  assert all(array.flags.c_contiguous for array in batch.values())
  for row, name in enumerate(ids([batch])):
    number = int(name[1:])
    assert (batch['image'][row, ..., 0] == number).all()
    np.testing.assert_array_equal(batch['text'][row], TOKENIZER.encode([CAPTIONS[number]], 8)[0])
    assert batch['group'][row] == caption_group(CAPTIONS[number])


def test_one_of_several_captions_is_drawn_and_blank_ones_never():
  record = Record('a', png(1), captions=('red dog', '  ', 'blue car', 'red cat'))
  groups = np.concatenate([b['group'] for b in take(iterate(Memory([record])), 60)])
  counts = collections.Counter(groups.tolist())
  assert set(counts) == {caption_group(text) for text in ('red dog', 'blue car', 'red cat')}
  assert min(counts.values()) > 50


def test_groups_are_stable_and_ignore_case_and_spaces():
  assert caption_group('a red dog') == caption_group(' A  red Dog\n')
  assert caption_group('a red dog') != caption_group('a red dogs')
  assert caption_group('a red dog') == 2119145600  # would change the meaning of saved batches


def test_augmentation_differs_by_example_and_epoch():
  rng = np.random.default_rng(0)
  out = io.BytesIO()
  Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(out, 'PNG')
  source = Memory([Record('a', out.getvalue(), captions=('red dog',))])
  transform = Transform(SIZE, 'train', min_scale=0.3, flip=True, colour=0.2)
  images = [batch['image'] for batch in take(iterate(source, transform=transform), 2)]
  assert len({image.tobytes() for image in np.concatenate(images)}) == 8


# --- order, processes, resuming


def test_every_epoch_has_every_record_once_in_another_order():
  epochs = [ids(take(iterator, 3)) for iterator in [iterate(Memory(records(12)))] for _ in range(3)]
  assert all(sorted(epoch) == sorted(f'r{i}' for i in range(12)) for epoch in epochs)
  assert len({tuple(epoch) for epoch in epochs}) == 3


def test_seed_decides_the_order():
  source = Memory(records(40))
  assert_same(take(iterate(source, seed=3), 5), take(iterate(source, seed=3), 5))
  assert ids(take(iterate(source, seed=3), 5)) != ids(take(iterate(source, seed=4), 5))


@pytest.mark.parametrize('threads', [0, 1, 5])
def test_threads_do_not_change_anything(threads):
  class Uneven(Memory):
    def __getitem__(self, index):
      time.sleep(0.002 * (index % 3))
      return super().__getitem__(index)

  broken = records(30)
  broken[4] = None
  broken[9] = dataclasses.replace(broken[9], image=b'')
  transform = Transform(SIZE, 'train', min_scale=0.3, flip=True, colour=0.2)
  want = take(iterate(Memory(broken), transform=transform, threads=2), 10)
  got = take(iterate(Uneven(broken), transform=transform, threads=threads), 10)
  assert_same(want, got)


def test_processes_see_disjoint_records_that_make_up_the_epoch():
  source = Memory(records(96))
  shares = [ids(take(iterate(source, process_index=i, process_count=3), 8)) for i in range(3)]
  assert sorted(name for share in shares for name in share) == sorted(f'r{i}' for i in range(96))


def test_every_process_gets_the_whole_mixture():
  parts = [Part(Memory(records(16, 'a'))), Part(Memory(records(16, 'b')))]
  for index in range(2):
    names = ids(take(iterate(parts, process_index=index, process_count=2), 4))
    assert collections.Counter(name[0] for name in names) == {'a': 8, 'b': 8}


def test_weights_are_shares_of_the_examples():
  parts = [Part(Memory(records(5, 'a')), 3.0), Part(Memory(records(50, 'b')), 1.0)]
  names = ids(take(iterate(parts), 50))
  assert collections.Counter(name[0] for name in names) == {'a': 150, 'b': 50}


def test_the_same_source_twice_is_shuffled_twice():
  source = Memory(records(20))
  names = ids(take(iterate([Part(source), Part(source)]), 10))
  assert names[0::2] != names[1::2]


@pytest.mark.parametrize('threads', [0, 2])
def test_resuming_goes_on_exactly(threads):
  broken = records(23)
  for index in (2, 3, 4, 11):
    broken[index] = None
  parts = [Part(Memory(broken, 'memory:x'), 2.0), Part(Memory(records(7, 'y')))]
  transform = Transform(SIZE, 'train', min_scale=0.5, flip=True)
  first = iterate(parts, threads=threads, batch_size=5, transform=transform)
  want, states = [], []
  for _ in range(9):  # more than two epochs, and every position within a chunk of examples
    states.append(json.loads(json.dumps(first.get_state())))
    want.append(next(first))
  second = iterate(parts, threads=threads, batch_size=5, transform=transform)
  for stop in (4, 0, 7, 1, 6, 3):  # set anew on an iterator that has gone on elsewhere
    second.set_state(states[stop])
    assert second.get_state() == states[stop]
    assert_same(take(second, 2), want[stop : stop + 2])
  fresh = iterate(parts, threads=threads, batch_size=5, transform=transform)
  fresh.set_state(states[5])
  assert_same(take(fresh, 4), want[5:])


def test_state_of_other_data_is_refused():
  state = iterate(Memory(records(12))).get_state()
  for other, name in (
    (iterate(Memory(records(13))), 'records'),
    (iterate(Memory(records(12)), seed=1), 'seed'),
  ):
    with pytest.raises(UserError, match=f'saved with {name}'):
      other.set_state(state)
  with pytest.raises(UserError, match='not a state'):
    iterate(Memory(records(12))).set_state({'next_index': 3})
  # the batch size may change: the position counts examples
  iterate(Memory(records(12)), batch_size=3).set_state(state)


def test_a_single_record_is_enough():
  assert ids(take(iterate(Memory(records(1))), 2)) == ['r0'] * 8


# --- partners


def paired(partner_class=Memory):
  partners = partner_class(records(6, 'p'), 'memory:partners')
  generated = [
    Record(f'g{i}', png(100 + i), ('red dog',), 'generated', f'p{i}' if i < 6 else '')
    for i in range(8)
  ]
  generated[7] = dataclasses.replace(generated[7], pair_id='gone')
  return Memory(generated), partners


@pytest.mark.parametrize('kind', [Memory, Named])
def test_partners_are_found_by_pair_id(kind):
  source, partners = paired(kind)
  iterator = iterate([Part(source, partners=partners)])
  assert partners.reads == (0 if kind is Named else 6)
  for batch in take(iterator, 2):
    assert batch['partner'].dtype == np.uint8 and batch['has_partner'].dtype == bool
    for row, name in enumerate(ids([batch])):
      number = int(name[1:])
      assert batch['has_partner'][row] == (number < 6)
      want = number if number < 6 else 0
      assert (batch['partner'][row, ..., 0] == want).all()


def test_a_partner_has_its_own_augmentation():
  rng = np.random.default_rng(0)
  out = io.BytesIO()
  Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(out, 'PNG')
  record = Record('a', out.getvalue(), ('red dog',), pair_id='a')
  source = Memory([record])
  transform = Transform(SIZE, 'train', min_scale=0.3)
  (batch,) = take(iterate([Part(source, partners=source)], transform=transform), 1)
  assert batch['has_partner'].all()
  assert (batch['partner'] != batch['image']).any(axis=(1, 2, 3)).all()


def test_parts_with_and_without_partners_mix():
  source, partners = paired()
  parts = [Part(source, partners=partners), Part(Memory(records(8)))]
  (batch,) = take(iterate(parts, batch_size=16), 1)
  real = np.array([name[0] == 'r' for name in batch['ids']])
  assert real.sum() == 8
  assert not batch['has_partner'][real].any() and not batch['partner'][real].any()
  assert batch['has_partner'][~real].sum() == 6


def test_a_partner_that_cannot_be_decoded_is_counted():
  source, partners = paired(Named)
  partners.records[2] = dataclasses.replace(partners.records[2], image=b'GIF89a')
  quarantine = Quarantine(None, 0.5, 1000)
  (batch,) = take(
    iterate([Part(source, partners=partners)], batch_size=8, quarantine=quarantine), 1
  )
  assert batch['has_partner'].sum() == 5
  assert quarantine.counts == {'format': 1}
  assert quarantine.total_seen == 8 + 6


def test_partners_that_share_an_id_are_refused():
  source, partners = paired()
  partners.records[1] = partners.records[0]
  with pytest.raises(UserError, match="share the id 'p0'"):
    iterate([Part(source, partners=partners)])


# --- bad records


def test_bad_records_are_skipped_counted_and_listed_once(tmp_path):
  rows = records(12)
  rows[0] = None
  rows[1] = dataclasses.replace(rows[1], image=png(1)[:40])
  rows[2] = dataclasses.replace(rows[2], image=b'text')
  rows[3] = dataclasses.replace(rows[3], image=png(3, 40))
  rows[4] = dataclasses.replace(rows[4], captions=())
  rows[5] = dataclasses.replace(rows[5], captions=('\ud800',))
  path = tmp_path / 'run' / 'quarantine.jsonl'
  want = {
    ('record 0', 'unreadable'),
    ('r1', 'corrupt'),
    ('r2', 'format'),
    ('r3', 'too_large'),
    ('r4', 'no caption'),
    ('r5', 'bad caption'),
  }
  for _ in range(2):  # the second run finds them listed
    quarantine = Quarantine(path, 0.6, 1000)
    names = ids(
      take(iterate(Memory(rows), quarantine=quarantine, max_pixels=1000, batch_size=6), 3)
    )
    assert set(names) == {f'r{i}' for i in range(6, 12)}
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert {(entry['id'], entry['reason']) for entry in entries} == want and len(entries) == 6
    assert {entry['source'] for entry in entries} == {'memory:a'}
    assert set(quarantine.counts) == {reason for _, reason in want}


@pytest.mark.parametrize('threads', [0, 3])
def test_too_many_bad_records_stop_the_consumer(tmp_path, threads):
  rows = records(40)
  for index in range(0, 40, 2):
    rows[index] = dataclasses.replace(rows[index], image=b'')
  path = tmp_path / 'quarantine.jsonl'
  quarantine = Quarantine(path, 0.25, 30)
  iterator = iterate(Memory(rows), quarantine=quarantine, threads=threads)
  with pytest.raises(UserError) as caught:
    take(iterator, 100)
  message = str(caught.value)
  assert 'of 30 records skipped: corrupt 1' in message and '(corrupt)' in message
  assert str(path) in message and '25.00%' in message and '\n' not in message
  assert quarantine.total_seen == 30  # in order: the same place for any number of threads


def test_a_source_that_is_all_bad_stops_whatever_is_allowed():
  rows = [dataclasses.replace(record, captions=()) for record in records(10)]
  with pytest.raises(UserError, match=r'no usable record for a whole epoch.*no caption'):
    next(iterate(Memory(rows), quarantine=Quarantine(None, 1.0, 10**9)))


def test_other_errors_in_threads_reach_the_consumer():
  class Broken(Memory):
    def __getitem__(self, index):
      raise RuntimeError('a defect')

  with pytest.raises(RuntimeError, match='a defect'):
    next(iterate(Broken(records(10)), threads=2))
  wrong = records(3)
  for record in wrong:  # as a source without type checks could hand out
    object.__setattr__(record, 'modality', 'drawn')
  with pytest.raises(UserError, match=r"memory:a: record r. has modality 'drawn'"):
    next(iterate(Memory(wrong), threads=2))


def test_captionless_examples_when_allowed():
  rows = [dataclasses.replace(record, captions=()) for record in records(4)]
  (batch,) = take(iterate(Memory(rows), require_caption=False), 1)
  assert (batch['text'] == TOKENIZER.pad_id).all()
  assert len(set(batch['group'].tolist())) == 4  # nothing makes them alike


def test_bad_settings_are_named():
  source = Memory(records(4))
  for parts, options, match in (
    ([], {}, 'no source'),
    ([Part(Memory([], 'memory:none'))], {}, 'memory:none: the source is empty'),
    ([Part(source, weight=0.0)], {}, 'weight 0'),
    ([Part(source)], {'batch_size': 0}, 'batch size 0'),
    ([Part(source)], {'process_index': 2, 'process_count': 2}, 'process_index 2'),
    ([Part(source)], {'seed': -1}, 'seed -1'),
  ):
    with pytest.raises(UserError, match=match):
      iterate(parts, **options)


def test_local_batch():
  assert local_batch(64, 4) == 16
  with pytest.raises(UserError, match='batch size 65 is not divisible by 4 processes; set 64'):
    local_batch(65, 4)
