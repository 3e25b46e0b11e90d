"""Folders of shards that are still written: what opens of them, and streams that grow."""

import dataclasses
import json
import threading

import pytest

from align_jax.data import finished
from align_jax.data.finished import look
from align_jax.data.pipeline import Part
from align_jax.data.position import CHUNK
from align_jax.data.shards import save_manifest
from align_jax.data.sources import open_as, open_source, pair_ids, record_ids
from align_jax.errors import UserError
from tests.data.test_pipeline import Memory, assert_same, ids, iterate, records, take
from tests.growing import growing


def names(source):
  return [source[i].id for i in range(len(source))]


# --- opening


def test_opens_what_is_finished_and_when_complete_what_the_plain_spec_opens(tmp_path):
  folder = growing(tmp_path / 'shards', [5, 0, 4], pair_id='p')
  plain = f'arrayrecord:{folder.folder}'
  folder.write(0)
  source = open_source(folder.spec)
  assert names(source) == [f'g{i}' for i in range(5)]
  assert (source.licence, source.spec) == ('CC0', folder.spec)
  with pytest.raises(UserError, match=r'conversion was not finished.*follow=1'):
    open_source(plain)
  folder.write(1)
  assert len(open_source(folder.spec)) == 5
  folder.write(2)
  whole = open_source(folder.spec)
  assert names(whole) == names(open_source(plain)) == record_ids(whole)
  assert pair_ids(whole) == ['p'] * 9
  some = open_as('real', f'{folder.spec}&limit=6')
  assert len(some) == 6 and some[0].modality == 'real'


def test_shards_after_a_gap_wait_until_it_is_filled(tmp_path):
  """`convert` with several workers finishes them in any order."""
  folder = growing(tmp_path / 'shards', [2, 2, 2, 2])
  folder.write(0, 2)
  assert len(open_source(folder.spec)) == 2
  seen = look(str(folder.folder))
  folder.write(3)
  assert look(str(folder.folder), seen) == seen
  folder.write(1)
  now = look(str(folder.folder), seen)
  assert now.records == 8 and now.complete and now.shards[:1] == seen.shards


def test_what_was_seen_opens_as_it_was(tmp_path):
  folder = growing(tmp_path / 'shards', [3, 3, 3])
  folder.write(0, 1)
  path = str(folder.folder)
  seen = look(path)
  folder.write(2)
  assert len(open_source(folder.spec, {path: seen})) == 6
  assert len(open_source(folder.spec)) == 9
  # a plain spec of the same folder is not affected
  assert len(open_source(f'arrayrecord:{path}', {path: seen})) == 9


def test_a_shard_that_was_seen_and_is_gone_or_another_is_named(tmp_path):
  folder = growing(tmp_path / 'shards', [3, 3])
  folder.write(0, 1)
  path = str(folder.folder)
  seen = look(path)
  second = f'{path}/{seen.shards[1][0]}'

  def fails(match):
    with pytest.raises(UserError, match=f'{second}: {match}'):
      open_source(folder.spec, {path: seen})

  folder.parts[1][0] = dataclasses.replace(folder.parts[1][0], id='another')
  folder.write(1)
  fails('another shard now')
  with pytest.raises(UserError, match='another shard now'):
    look(path, seen)
  less = dataclasses.replace(folder.manifest, shards=folder.manifest.shards[:1], complete=False)
  save_manifest(path, less)
  fails('gone from the manifest')
  folder.write(1)
  seen = look(path)
  (folder.folder / seen.shards[1][0]).unlink()
  fails('gone, but the manifest names it')


def test_waits_for_the_first_record(tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(finished, '_PAUSE', 0.02)
  folder = growing(tmp_path / 'shards', [0, 2, 1])
  spec = f'arrayrecord:{folder.folder}?follow=1&wait=30'
  timers = [threading.Timer(0.1 * (i + 1), folder.write, [i]) for i in range(2)]
  for timer in timers:
    timer.start()
  assert names(open_source(spec)) == ['g0', 'g1']
  assert caplog.text.count('no finished shard yet; waiting for one, up to 30 s') == 1
  for timer in timers:
    timer.join()


@pytest.mark.parametrize(
  ('spec', 'match'),
  [
    ('arrayrecord:{}?follow=1&wait=0', 'no shard was finished in .* within 0 s'),
    ('arrayrecord:{}?follow=yes', 'write follow=1'),
    ('arrayrecord:{}?follow=1&wait=soon', 'wait=soon is no time'),
    ('arrayrecord:{}/*.arrayrecord?follow=1', 'a whole folder'),
    ('arrayrecord:{}?wait=3', "unknown option 'wait'"),
    ('arrayrecord:{}?folow=1', "did you mean 'follow'"),
    ('folder:{}?follow=1', "unknown option 'follow'"),
  ],
)
def test_what_cannot_be_followed_is_refused(tmp_path, spec, match):
  with pytest.raises(UserError, match=match):
    open_source(spec.format(tmp_path))


def test_a_complete_folder_without_records_is_not_waited_for(tmp_path):
  folder = growing(tmp_path / 'shards', [0])
  folder.write(0)
  with pytest.raises(UserError, match='no records in 1 files'):
    open_source(f'arrayrecord:{folder.folder}?follow=1')


# --- streams


def mixture(generated, real=40):
  return [
    Part(Memory(records(generated, 'g'), 'memory:g'), 2.0),
    Part(Memory(records(real, 'r'), 'memory:r')),
  ]


@pytest.mark.parametrize('threads', [0, 2])
def test_what_does_not_grow_goes_on_as_if_nothing_had(threads):
  want = take(iterate(mixture(30), batch_size=6, threads=threads), 12)
  iterator = iterate(mixture(30), batch_size=6, threads=threads)
  got = take(iterator, 5)
  iterator.go_on_with(mixture(30))
  assert_same(got + take(iterator, 7), want)

  iterator.set_state(iterate(mixture(30)).get_state())
  got = take(iterator, 5)
  iterator.go_on_with(mixture(50))
  got += take(iterator, 7)
  assert_same(got[:5], want[:5])
  assert [n for n in ids(got) if n[0] == 'r'] == [n for n in ids(want) if n[0] == 'r']
  assert {n for n in ids(got) if n[0] == 'g'} - {f'g{i}' for i in range(30)}


def test_a_state_after_growth_goes_on_with_what_it_was_in():
  first = iterate(mixture(30), batch_size=5)
  take(first, 4)  # within a chunk
  before = json.loads(json.dumps(first.get_state()))
  first.go_on_with(mixture(50))
  want = take(first, 3)
  state = json.loads(json.dumps(first.get_state()))
  want += take(first, 6)
  for parts, start, skipped in ((mixture(50), state, 3), (mixture(30), before, 0)):
    second = iterate(parts, batch_size=5)
    second.set_state(start)
    if not skipped:
      second.go_on_with(mixture(50))
    assert_same(take(second, 9 - skipped), want[skipped:])
  with pytest.raises(UserError, match=r'saved with records \[50, 40\], now \[30, 40\]'):
    iterate(mixture(30), batch_size=5).set_state(state)


def test_every_record_comes_in_the_epochs_after_growth():
  iterator = iterate(Memory(records(12)))
  take(iterator, 5)  # 20 examples: position 20 of epochs of 20 is the start of one
  iterator.go_on_with([Part(Memory(records(20)))])
  epochs = [ids(take(iterator, 5)) for _ in range(2)]
  assert all(sorted(epoch) == sorted(f'r{i}' for i in range(20)) for epoch in epochs)


def test_processes_share_out_what_has_grown():
  def run(processes, batches, state=None, grow_after=None):
    out, positions = [], []
    for process in range(processes):
      iterator = iterate(
        mixture(300 if grow_after is None else 30, 300),
        batch_size=CHUNK,
        process_index=process,
        process_count=processes,
      )
      if state is not None:
        iterator.set_state(state)
      if grow_after is not None:
        take(iterator, grow_after)
        iterator.go_on_with(mixture(300, 300))
      out += take(iterator, batches)
      positions.append(iterator.get_state()['positions'][process])
    return ids(out), {**iterator.get_state(), 'positions': positions}

  alone, _ = run(1, 6, grow_after=4)
  shared, state = run(2, 3, grow_after=2)
  assert sorted(alone) == sorted(shared) and len(set(shared)) == 6 * CHUNK
  further, _ = run(3, 3, state)  # goes on with other processes: nothing comes twice in an epoch
  assert len(set(further)) == 9 * CHUNK and not set(further) & set(shared)


def test_partners_are_looked_up_again_only_where_they_changed():
  partners = Memory(records(6, 'p'), 'memory:partners')
  parts = [Part(Memory(records(4, 'g', pair_id='p1')), partners=partners)]
  iterator = iterate(parts)
  assert partners.reads == 6
  iterator.go_on_with([Part(Memory(records(8, 'g', pair_id='p2')), partners=partners)])
  assert partners.reads == 6
  assert next(iterator)['has_partner'].all()
