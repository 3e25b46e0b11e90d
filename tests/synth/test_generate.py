import io

import numpy as np
import pytest
from PIL import Image

from align_jax.data import shards as shards_lib
from align_jax.data.record import Record
from align_jax.data.sources import open_source
from align_jax.errors import UserError
from align_jax.synth.generate import Prompt, generate


class FlatSampler:
  """Draws one flat colour per image, told by seed, index and caption; counts its batches."""

  def __init__(self, fail_at=None, weights='abc'):
    self.settings = {'weights': weights, 'steps': 1}
    self.batches = []
    self.fail_at = fail_at

  def __call__(self, captions, indices, seed):
    if len(self.batches) == self.fail_at:
      raise KeyboardInterrupt
    self.batches.append(list(indices))
    colours = [(seed % 256, i % 256, len(c)) for i, c in zip(indices, captions, strict=True)]
    return np.broadcast_to(np.asarray(colours, np.uint8)[:, None, None], (len(captions), 4, 4, 3))


PROMPTS = [
  Prompt.of(
    Record(
      id=f'real-{i}',
      image=b'',
      captions=(f'a long caption of number {i}', f'number {i}'),
      labels=('apple', 'red'),
      source_id='openmoji',
    ),
    paired=i != 2,
  )
  for i in range(5)
]


def run(directory, sampler=None, **changes):
  settings = {
    'batch_size': 3,
    'seed': 9,
    'generator_id': 'dit-rf:100',
    'shards': 2,
    'licence': 'CC BY-SA 4.0',
    'images_per_prompt': 2,
    'progress': False,
  }
  prompts = changes.pop('prompts', PROMPTS)
  return generate(sampler or FlatSampler(), prompts, directory, **{**settings, **changes})


def contents(directory):
  return {p.name: p.read_bytes() for p in sorted(directory.iterdir()) if p.suffix != '.json'}


def test_records_hold_the_image_the_pair_and_where_they_come_from(tmp_path):
  run(tmp_path)
  source = open_source(f'arrayrecord:{tmp_path}')
  assert len(source) == 10 and source.licence == 'CC BY-SA 4.0'
  record = source[6]  # the second image of prompt 1: all prompts come round before
  assert record.modality == 'generated'
  assert record.prompt == 'number 1'
  assert record.captions == ('a long caption of number 1', 'number 1')
  assert record.labels == ('apple', 'red')
  assert record.pair_id == 'real-1'
  assert record.generator_id == 'dit-rf:100'
  assert record.source_id == 'openmoji'
  assert record.truth['provenance'] == {
    'weights': 'abc',
    'steps': 1,
    'seed': 9,
    'index': 6,
    'prompt_id': 'real-1',
  }
  pixels = np.asarray(Image.open(io.BytesIO(record.image)))
  np.testing.assert_array_equal(pixels, np.full((4, 4, 3), (9, 6, len('number 1'))))


def test_prompts_without_a_real_partner_have_no_pair(tmp_path):
  run(tmp_path)
  source = open_source(f'arrayrecord:{tmp_path}')
  assert [source[i].pair_id for i in range(3)] == ['real-0', 'real-1', '']
  assert source[2].truth['provenance']['prompt_id'] == 'real-2'


def test_ids_are_unique_also_between_seeds(tmp_path):
  run(tmp_path / 'a')
  run(tmp_path / 'b', seed=10)
  ids = [r for name in 'ab' for r in open_source(f'arrayrecord:{tmp_path / name}').ids()]
  assert len(set(ids)) == 20


def test_images_do_not_depend_on_shards_or_batches(tmp_path):
  run(tmp_path / 'a')
  run(tmp_path / 'b', shards=3, batch_size=7)
  a, b = (open_source(f'arrayrecord:{tmp_path / name}') for name in 'ab')
  assert [a[i] for i in range(10)] == [b[i] for i in range(10)]


def test_every_batch_has_the_same_size_so_that_one_program_serves_all(tmp_path):
  sampler = FlatSampler()
  run(tmp_path, sampler, shards=3, batch_size=3)  # ranges of 3, 3 and 4 images
  assert {len(batch) for batch in sampler.batches} == {2}


@pytest.mark.parametrize('batches', [0, 1, 2, 3])
def test_a_killed_run_goes_on_and_ends_alike(tmp_path, batches):
  run(tmp_path / 'whole')
  with pytest.raises(KeyboardInterrupt):
    run(tmp_path / 'killed', FlatSampler(fail_at=batches))
  assert not [p for p in (tmp_path / 'killed').iterdir() if '.tmp-' in p.name]
  rest = FlatSampler()
  manifest = run(tmp_path / 'killed', rest)
  assert manifest.complete and manifest.total == 10
  assert len(rest.batches) == (4 if batches < 2 else 2)  # finished shards are not drawn again
  assert contents(tmp_path / 'killed') == contents(tmp_path / 'whole')


def test_a_finished_folder_is_left_alone(tmp_path):
  first = run(tmp_path)
  before = contents(tmp_path)
  sampler = FlatSampler()
  assert run(tmp_path, sampler) == first
  assert not sampler.batches and contents(tmp_path) == before


def test_a_damaged_shard_is_drawn_again(tmp_path):
  run(tmp_path)
  before = contents(tmp_path)
  (tmp_path / shards_lib.shard_name(1, 2)).write_bytes(b'damaged')
  sampler = FlatSampler()
  run(tmp_path, sampler)
  assert len(sampler.batches) == 2 and contents(tmp_path) == before


@pytest.mark.parametrize(
  'changes',
  [
    {'seed': 1},
    {'sampler': FlatSampler(weights='other')},
    {'prompts': PROMPTS[:4]},
    {'prompts': PROMPTS[::-1]},
    {'shards': 1},
    {'images_per_prompt': 3},
    {'generator_id': 'other'},
  ],
)
def test_a_folder_of_something_else_is_refused(tmp_path, changes):
  run(tmp_path)
  before = contents(tmp_path)
  with pytest.raises(UserError, match='choose an empty folder'):
    run(tmp_path, **changes)
  assert contents(tmp_path) == before


@pytest.mark.parametrize(
  ('changes', 'named'),
  [
    ({'prompts': []}, 'nothing to generate'),
    ({'images_per_prompt': 0}, 'nothing to generate'),
    ({'shards': 11}, 'shards: 11'),
    ({'shards': 0}, 'shards: 0'),
    ({'batch_size': 0}, 'batch_size'),
    ({'seed': -1}, 'seed'),
  ],
)
def test_bad_arguments_are_named_and_write_nothing(tmp_path, changes, named):
  with pytest.raises(UserError, match=named):
    run(tmp_path / 'out', **changes)
  assert not (tmp_path / 'out').exists()


def test_a_record_without_captions_is_no_prompt():
  with pytest.raises(UserError, match='real-9'):
    Prompt.of(Record(id='real-9', image=b''), paired=True)
