"""Evaluation reads every usable record once, in order."""

import dataclasses
import io
import time

import numpy as np
import pytest
from PIL import Image

from align_jax.data.pipeline import eval_batches
from align_jax.data.quarantine import Quarantine
from align_jax.data.record import Record
from align_jax.data.transforms import Transform
from align_jax.errors import UserError


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


def records(count: int) -> list:
  out = []
  for i in range(count):
    data = io.BytesIO()
    Image.new('RGB', (8, 8), (i % 256, 7, 9)).save(data, 'PNG')
    out.append(Record(f'r{i}', data.getvalue()))
  return out


def test_eval_batches_are_in_order_and_complete(tmp_path):
  class Uneven(Memory):
    def __getitem__(self, index):
      time.sleep(0.002 * (index % 5 == 0))
      return super().__getitem__(index)

  rows = records(50)
  rows[3] = None
  rows[20] = dataclasses.replace(rows[20], image=b'?')
  quarantine = Quarantine(tmp_path / 'q.jsonl', 0.5, 1000)
  out = list(eval_batches(Uneven(rows), Transform(4), 7, quarantine=quarantine, threads=3))
  assert [len(images) for images, _ in out] == [7] * 6 + [6]
  names = [record.id for _, found in out for record in found]
  assert names == [f'r{i}' for i in range(50) if i not in (3, 20)]
  pixels = np.concatenate([images for images, _ in out])
  assert pixels.shape == (48, 4, 4, 3) and pixels.dtype == np.uint8
  np.testing.assert_array_equal(pixels[:, 0, 0, 0], [int(name[1:]) for name in names])
  assert quarantine.counts == {'unreadable': 1, 'format': 1} and quarantine.total_seen == 50


def test_eval_batches_without_a_usable_record():
  with pytest.raises(UserError, match='memory:a: no usable record among 2'):
    list(eval_batches(Memory([None, None]), Transform(4), 7))


def test_eval_batches_can_be_left_half_way():
  source = Memory(records(2000))
  batches = eval_batches(source, Transform(4), 4)
  next(batches)
  batches.close()
  assert source.reads < 500
  with pytest.raises(UserError, match=r'transform\.mode'):
    next(eval_batches(source, Transform(4, 'train'), 4))
