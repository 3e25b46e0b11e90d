"""The quarantine by itself: counts from threads, one line per record, mended after a kill."""

import json
import threading

import pytest

from align_jax.data.quarantine import Quarantine
from align_jax.errors import UserError


def test_quarantine_counts_from_many_threads(tmp_path):
  quarantine = Quarantine(tmp_path / 'q.jsonl', 1.0, 1)

  def work(thread):
    for index in range(50):
      quarantine.seen()
      quarantine.add(f'{thread}-{index}', 's', 'corrupt')

  workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
  for worker in workers:
    worker.start()
  for worker in workers:
    worker.join()
  assert quarantine.counts == {'corrupt': 200} and quarantine.total_seen == 200
  assert len({json.loads(line)['id'] for line in (tmp_path / 'q.jsonl').open()}) == 200


def test_quarantine_mends_a_torn_last_line(tmp_path):
  path = tmp_path / 'q.jsonl'
  path.write_text('{"id": "a", "source": "s", "reason": "corrupt"}\n{"id": "b", "so')
  quarantine = Quarantine(path, 1.0, 1)
  for name in ('a', 'b'):
    quarantine.seen()
    quarantine.add(name, 's', 'corrupt')
  assert [json.loads(line)['id'] for line in path.open()] == ['a', 'b']


def test_quarantine_refuses_a_file_that_is_not_its_own(tmp_path):
  (tmp_path / 'q.jsonl').write_text('hello\n')
  with pytest.raises(UserError, match='line 1 is no quarantine entry'):
    Quarantine(tmp_path / 'q.jsonl', 0.1, 1)
  with pytest.raises(UserError, match='max_share 2'):
    Quarantine(None, 2.0, 1)
