"""A run goes on with any number of processes: nothing of its data comes twice, nothing is lost."""

import json

import pytest

from align_jax.data.pipeline import Part
from align_jax.data.position import CHUNK, Start, shared_anew
from align_jax.errors import UserError
from tests.data.test_pipeline import Memory, assert_same, ids, iterate, records, take


def mixture():
  """Two sources of unequal size and weight, with records that cannot be used."""
  first, second = records(900, 'a'), records(500, 'b')
  for index in range(0, 900, 7):
    first[index] = None
  return [Part(Memory(first, 'memory:a'), 2.0), Part(Memory(second, 'memory:b'))]


def go_on(state, processes, batches, batch_size=5):
  """Runs all processes from a state (None: from the start); returns the ids and the new state."""
  names, positions = [], []
  for process in range(processes):
    iterator = iterate(
      mixture(), process_index=process, process_count=processes, batch_size=batch_size, threads=0
    )
    if state is not None:
      iterator.set_state(json.loads(json.dumps(state)))
    names += ids(take(iterator, batches))
    out = iterator.get_state()
    positions.append(out['positions'][process])
  return names, {**out, 'positions': positions}


@pytest.mark.parametrize('ways', [(3, 2, 4, 1), (1, 4, 1), (2, 5, 3, 1)])
def test_another_number_of_processes_repeats_and_skips_nothing(ways):
  seen, state = [], None
  for processes in ways:
    # at the end one process alone takes what others left, and then goes on in order
    names, state = go_on(state, processes, 7 if processes > 1 else 40)
    seen += names
  assert len(seen) == len(set(seen)), 'a record came twice'
  want = ids(take(iterate(mixture(), batch_size=len(seen), threads=0), 1))
  assert set(seen) == set(want)


def test_the_same_number_of_processes_goes_on_as_if_never_stopped():
  start = go_on(None, 3, 4)[1]
  for process in range(3):
    whole = iterate(mixture(), process_index=process, process_count=3, batch_size=5)
    take(whole, 4)
    again = iterate(mixture(), process_index=process, process_count=3, batch_size=5)
    again.set_state(start)
    assert_same(take(whole, 6), take(again, 6))


def test_a_whole_batch_is_of_the_same_records_for_any_number_of_processes():
  parts = [Part(Memory(records(400, 'a')), 2.0), Part(Memory(records(400, 'b')))]
  alone = take(iterate(parts, batch_size=4 * CHUNK), 5)
  shares = [
    take(iterate(parts, batch_size=CHUNK, process_index=i, process_count=4), 5) for i in range(4)
  ]
  for step, batch in enumerate(alone):
    assert set(ids([batch])) == set(ids(share[step] for share in shares))


def test_sharing_out_again():
  # process 0 has finished two chunks and begun its third, process 1 has finished none
  start = shared_anew(Start(), [(2, 3), (0, 1)])
  assert start.left == (*range(17, 32), *range(48, 64), *range(67, 80))
  assert start.chunk == 5
  # of three chunks of left-over examples the first is done: the others stay, and come first
  again = shared_anew(start, [(1, 0)])
  assert again == Start(start.left[16:], 5)
  assert list(again.examples(2)) == list(range(80, 96))


def test_a_position_that_is_not_known_is_refused():
  iterator = iterate(mixture(), process_count=2)
  with pytest.raises(UserError, match='not a state'):
    iterate(mixture(), process_count=3).set_state(iterator.get_state())
