"""A run in a bucket: checkpoints, and training, resuming and evaluating by the commands."""

import json
import os
import re

import numpy as np
import pytest

from align_jax import storage
from align_jax.data.convert import convert
from align_jax.data.quarantine import Quarantine
from align_jax.data.tokenizer import load_tokenizer, train_tokenizer
from align_jax.errors import UserError
from align_jax.train.checkpoints import Checkpoints, load_params
from tests import tiny
from tests.storage.test_faults import same, trained
from tests.test_entries import SMALL, command


def test_checkpoints_are_saved_restored_and_the_old_ones_deleted(bucket, objects):
  workdir = storage.open_path(bucket)
  saved = Checkpoints(workdir, keep=2)
  assert saved.restore(trained(0)) is None
  states = [trained(steps) for steps in (1, 2, 3)]
  for state in states:
    saved.save(state, {'position': int(state.step)})
    saved.wait()
  saved.close()
  restored, data = Checkpoints(workdir).restore(trained(0))
  assert data == {'position': 3} and same(restored, states[-1])
  assert same(load_params(workdir, step=2), states[1].params)
  steps = {name.split('/')[1] for name in objects(bucket)}
  assert {'2', '3'} <= steps and '1' not in steps
  with pytest.raises(UserError, match='holds no checkpoint of step 1'):
    load_params(workdir, step=1)


def test_a_save_that_was_cut_off_is_not_taken_for_a_checkpoint(bucket, objects):
  workdir = storage.open_path(bucket)
  saved = Checkpoints(workdir)
  states = [trained(steps) for steps in (1, 2)]
  for state in states:
    saved.save(state, {})
  saved.close()
  marker = next(n for n in objects(bucket) if re.fullmatch(r'checkpoints/2/commit_success.*', n))
  storage.remove(f'{bucket}/{marker}')  # it is written last
  restored, _ = Checkpoints(workdir).restore(trained(0))
  assert same(restored, states[0])


def test_a_tokenizer_is_kept_in_a_bucket(bucket):
  folder = storage.open_path(bucket) / 'tokenizer'
  tokenizer = train_tokenizer(['a red disc', 'a blue square'] * 5, 300)
  tokenizer.save(folder)
  tokenizer.save(folder)
  texts = ['a red square', 'something else']
  assert np.array_equal(load_tokenizer(folder).encode(texts, 12), tokenizer.encode(texts, 12))
  with pytest.raises(UserError, match=f'{bucket}/nothing: no such tokenizer folder'):
    load_tokenizer(folder.parent / 'nothing')
  storage.write_object(f'{folder}/tokenizer.json', b'{')
  with pytest.raises(UserError, match=f'{folder}/tokenizer.json: cannot be read'):
    load_tokenizer(folder)


def test_a_quarantine_in_a_bucket_lists_each_record_once(bucket):
  path = storage.open_path(bucket) / 'quarantine.jsonl'
  for names in (['a', 'b'], ['b', 'c']):
    quarantine = Quarantine(path, max_share=1.0, min_seen=1)
    for name in names:
      quarantine.seen()
      quarantine.add(name, 'folder:x', 'corrupt')
    quarantine.close()
  lines = [json.loads(line) for line in storage.read_bytes(path).splitlines()]
  assert [line['id'] for line in lines] == ['a', 'b', 'c']


def test_a_run_lives_in_a_bucket_from_data_to_scores(bucket, tmp_path, objects):
  photos = f'folder:{tiny.photo_folder(tmp_path / "photos", each=4)}'
  convert(photos, f'arrayrecord:{bucket}/data', 2, workers=1, progress=False)
  train = [
    'align_jax.main',
    '--config=configs/clip.py',
    f'--workdir={bucket}/run',
    f'--config.data.real=arrayrecord:{bucket}/data?cache_gib=1',
    *SMALL,
  ]
  done = command(*train)
  assert 'begins' in done.stdout
  there = objects(f'{bucket}/run')
  assert {'config.json', 'metrics.jsonl', 'tokenizer/tokenizer.json'} <= there.keys()
  assert any(name.startswith('tensorboard/') for name in there)
  # as if the run had been cut off after step 2
  for name in there:
    if name.startswith('checkpoints/4/'):
      storage.remove(f'{bucket}/run/{name}')
  done = command(*train)
  assert 'goes on after step 2' in done.stdout
  lines = storage.read_bytes(f'{bucket}/run/metrics.jsonl').splitlines()
  assert [json.loads(line)['step'] for line in lines] == [2, 4]
  command(
    'align_jax.evaluate',
    f'--checkpoint={bucket}/run',
    f'--data=arrayrecord:{bucket}/data',
    '--tasks=retrieval',
    f'--output={bucket}/scores/metrics.json',
  )
  scores = json.loads(storage.read_bytes(f'{bucket}/scores/metrics.json'))['scores']
  assert scores and all(value >= 0 for value in scores.values())
  export = [f'--checkpoint={bucket}/run', f'--output={bucket}/exported', '--format=stablehlo']
  assert f'exported: {bucket}/exported' in command('align_jax.export', *export).stdout
  assert {'image.stablehlo', 'tokenizer/tokenizer.json'} <= objects(f'{bucket}/exported').keys()
  assert not [name for name in os.listdir(tmp_path) if name.startswith('gs')]
