"""A run follows folders of shards that are still written, and resumes exactly."""

import dataclasses
import functools
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from align_jax.data.shards import save_manifest, write_shards
from align_jax.errors import UserError
from align_jax.objectives import make_objective
from align_jax.train import loop
from align_jax.train.inputs import make_iterator, open_inputs
from align_jax.train.loop import train
from align_jax.train.plan import plan
from align_jax.train.snapshots import SNAPSHOTS
from tests import tiny
from tests.growing import growing, records
from tests.train.test_faults import FreshStates

SIZES = [20, 8, 8, 8]


class Cut(Exception):
  pass


def config(generated, **changes):
  data = {'generated': generated, 'follow': 2, **changes.pop('data', {})}
  return tiny.config('', steps=8, batch_size=8, model=tiny.SMALL_MODEL, data=data, **changes)


@functools.cache
def shared_plan(real=loop.plan):
  """One for all runs here, so that the step is traced once; on one device, which saves faster."""
  made = config('nowhere')
  return real(made, make_objective(made.objective), jax.devices()[:1])


fresh_state = FreshStates()


def run(made, folder, at=None):
  """Trains; `at`: what to do once the batch of a step is drawn, by step."""
  at = dict(at or {})
  seen = []
  real_put = loop.put_batch

  def put(batch, mesh):
    seen.append(batch)
    step = start + len(seen)
    if step in at:
      at.pop(step)()
    return real_put(batch, mesh)

  checkpoints = folder / 'checkpoints'
  start = (
    max((int(p.name) for p in checkpoints.iterdir()), default=0) if checkpoints.exists() else 0
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, 'put_batch', put)
    patch.setattr(loop, 'plan', lambda *args: shared_plan())
    patch.setattr(loop, 'create_state', fresh_state)
    return train(made, make_objective(made.objective), folder)


def cut():
  raise Cut


def equal(a, b):
  return set(a) == set(b) and all(np.array_equal(a[k], b[k]) for k in a)


def lines(folder):
  return [json.loads(line) for line in (folder / SNAPSHOTS).read_text().splitlines()]


def counts(folder):
  """(step, shards, records) of all snapshots of a run that follows one folder."""
  found = [(line['step'], *line['folders'].values()) for line in lines(folder)]
  return [(step, entry['shards'], entry['records']) for step, entry in found]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A run that is never disturbed; its folder grows while steps 1, 5 and 7 are taken."""
  path = tmp_path_factory.mktemp('whole')
  folder = growing(path / 'shards', SIZES)
  folder.write(0)
  grows = {1: lambda: folder.write(1), 5: lambda: folder.write(2), 7: lambda: folder.write(3)}
  return folder, path / 'run', run(config(folder.spec), path / 'run', grows)


def test_takes_in_what_came_at_the_next_look(whole):
  folder, path, _ = whole
  assert counts(path) == [(0, 1, 20), (2, 2, 28), (6, 3, 36), (8, 4, 44)]
  last = lines(path)[-1]['folders'][str(folder.folder)]
  shard = folder.manifest.shards[3]
  assert last['complete'] and last['added'] == [[shard.file, shard.sha256]]


def test_cut_off_and_resumed_it_ends_as_the_run_that_saw_the_same(whole, tmp_path):
  folder, path = growing(tmp_path / 'shards', SIZES), tmp_path / 'run'
  folder.write(0)
  made = config(folder.spec)
  with pytest.raises(Cut):
    run(made, path, {1: cut})  # before its first checkpoint
  folder.write(1)  # taken in at step 2, not at the new start
  with pytest.raises(Cut):
    run(made, path, {5: lambda: folder.write(2), 6: cut})  # noted for step 6, saved after 4
  folder.write(3)  # taken in at step 8: at 6 there is what was noted
  got = run(made, path)
  assert counts(path) == counts(whole[1])
  assert equal(got, whole[2])


def test_resumed_after_growth_it_goes_on_with_what_it_had(whole, tmp_path):
  folder, path = growing(tmp_path / 'shards', SIZES), tmp_path / 'run'
  folder.write(0)
  made = config(folder.spec)
  with pytest.raises(Cut):
    run(made, path, {1: lambda: folder.write(1), 5: cut})
  folder.write(2)  # resumed after step 4, it looks again at 6
  assert equal(run(made, path, {7: lambda: folder.write(3)}), whole[2])
  assert counts(path) == counts(whole[1])


def test_snapshots_alone_repeat_a_run_on_the_finished_folder(whole, tmp_path):
  """What was seen when is all that the moments of growth decide."""
  folder, path, want = whole
  (tmp_path / SNAPSHOTS).write_text((path / SNAPSHOTS).read_text())
  assert equal(run(config(folder.spec), tmp_path), want)
  assert lines(tmp_path) == lines(path)


def test_a_complete_folder_is_trained_on_like_the_plain_spec(whole, tmp_path):
  folder, _, other = whole
  plain = config(f'arrayrecord:{folder.folder}', data={'follow': 0})
  want = run(plain, tmp_path / 'plain')
  got = run(config(folder.spec, data={'follow': 1}), tmp_path / 'run')
  assert equal(got, want) and not equal(got, other)
  assert counts(tmp_path / 'run') == [(0, 4, 44)]
  assert not (tmp_path / 'plain' / SNAPSHOTS).exists()


def test_without_looks_it_keeps_what_it_began_with(tmp_path):
  folder = growing(tmp_path / 'shards', [20, 8])
  folder.write(0)
  made = config(folder.spec, data={'follow': 0}, checkpoint={'every': 4})
  with pytest.raises(Cut):
    run(made, tmp_path / 'run', {5: cut})
  folder.write(1)
  run(made, tmp_path / 'run')
  assert counts(tmp_path / 'run') == [(0, 1, 20)]


def test_what_the_snapshot_needs_and_is_gone_is_named(tmp_path):
  folder = growing(tmp_path / 'shards', [20, 8, 8])
  folder.write(0)
  made, path = config(folder.spec), tmp_path / 'run'
  with pytest.raises(Cut):
    run(made, path, {1: lambda: folder.write(1), 5: cut})
  second = folder.folder / folder.manifest.shards[1].file
  aside = second.rename(tmp_path / 'aside')
  with pytest.raises(UserError, match=f'{second}: gone'):
    run(made, path)
  aside.rename(second)
  folder.parts[1][:] = records(100, 108)
  folder.write(1)
  with pytest.raises(UserError, match=f'{second}: another shard now'):
    run(made, path)

  file = path / SNAPSHOTS
  text = file.read_text()
  file.write_text(text.replace('"shards": 2', '"shards": 3'))
  with pytest.raises(UserError, match=f'{file}: line 2: damaged'):
    run(made, path)
  file.unlink()
  with pytest.raises(UserError, match=f'{file}: missing'):
    run(made, path)


def test_a_shard_that_is_replaced_while_training_stops_the_run(tmp_path):
  folder = growing(tmp_path / 'shards', [20, 8])
  folder.write(0)

  def replace():
    folder.parts[0][:] = records(100, 120)
    folder.write(0)

  with pytest.raises(UserError, match=r'shard-00000-of-00002\.arrayrecord: another shard now'):
    run(config(folder.spec), tmp_path / 'run', {3: replace})


def test_bad_input_is_named_before_anything_is_trained(tmp_path):
  folder = growing(tmp_path / 'shards', [20, 8])
  for spec, changes, match in (
    (folder.spec, {}, 'no shard was finished'),
    (f'folder:{tiny.photo_folder(tmp_path / "photos")}', {}, r'config\.data\.follow: 2, but no'),
    (folder.spec, {'follow': -1}, r'config\.data\.follow'),
  ):
    with pytest.raises(UserError, match=match):
      run(config(spec, data=changes), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()
  # with no checkpoint to go on from, another folder is a new beginning
  folder.write(0)
  with pytest.raises(Cut):
    run(config(folder.spec), tmp_path / 'run', {1: cut})
  other = growing(tmp_path / 'other', [16, 8])
  other.write(0)
  with pytest.raises(Cut):
    run(config(other.spec), tmp_path / 'run', {1: cut})
  assert counts(tmp_path / 'run') == [(0, 1, 16)]


def test_the_generated_part_of_pairs_and_mixtures_grows(tmp_path):
  write_shards(records(0, 30, 'r', modality='real'), str(tmp_path / 'real'), 1, '', 'tests')
  folder = growing(tmp_path / 'shards', [24, 24], pair_id='r3')
  folder.write(0)
  real = f'arrayrecord:{tmp_path}/real'
  for objective, model in ((tiny.GMAIL, tiny.TRACKS), (tiny.CONTRASTIVE, {})):
    made = tiny.config(
      real,
      steps=4,
      batch_size=8,
      objective=objective,
      model={**tiny.SMALL_MODEL, **model},
      data={'generated': folder.spec, 'follow': 1},
    )
    method = make_objective(objective)
    path = tmp_path / method.__class__.__name__
    path.mkdir()
    inputs = open_inputs(made, path, method, plan(made, method).model, init=None)
    batches = make_iterator(inputs, made, path)
    partners = [part.partners for part in inputs.parts]
    next(batches)
    folder.write(1)
    grown = inputs.snapshots.before(1)
    parts = inputs.open_parts(grown, None)
    assert [len(p.source) for p in parts] == ([48] if method.generated_only else [30, 48])
    # what does not grow is not opened again
    assert all(new.partners is old for new, old in zip(parts, partners, strict=True))
    batches.go_on_with(parts)
    more = next(batches)
    assert ('has_partner' in more) == method.needs_partner
    assert not method.needs_partner or more['has_partner'].all()
    assert inputs.snapshots.before(2) is None  # it is complete
    # back to what it was, for the other method
    less = folder.manifest.shards[:1]
    folder.manifest = dataclasses.replace(folder.manifest, shards=less, complete=False)
    save_manifest(str(folder.folder), folder.manifest)


SCRIPT = """
import json, sys
from pathlib import Path
from align_jax.parallel.distributed import DistributedConfig, initialize
initialize(DistributedConfig(heartbeat_seconds=10, start_seconds=120))
import jax
from align_jax.errors import UserError
from align_jax.train.snapshots import Snapshots
from tests.growing import growing, records
first = jax.process_index() == 0
folder = growing(sys.argv[1], [3] * 200)
if first:
  folder.write(0)
snapshots = Snapshots(Path(sys.argv[2]), [folder.spec], 2, False)
out = [[0, snapshots.describe(0)]]
for step in range(1, 8):
  if first and step in (2, 3, 7):
    folder.write(*range(1, {2: 2, 3: 150, 7: 151}[step]))  # of 150 shards a message is a long one
  if snapshots.before(step) is not None:
    out.append([step, snapshots.describe(step)])
if first:
  folder.parts[0][:] = records(900, 903)
  folder.write(0)
try:
  snapshots.before(8)
except UserError as error:
  out.append([8, str(error)])
Path(sys.argv[2], f'{jax.process_index()}.json').write_text(json.dumps(out))
"""


def test_processes_go_by_what_the_first_one_finds(tmp_path):
  command = [sys.executable, '-m', 'launch.local', '--processes=2', '--devices=1', '--']
  command += [sys.executable, '-c', SCRIPT, str(tmp_path / 'shards'), str(tmp_path)]
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': os.getcwd()}
  done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
  assert done.returncode == 0, done.stdout + done.stderr
  first, second = (json.loads((tmp_path / f'{i}.json').read_text()) for i in range(2))
  path = tmp_path / 'shards'
  assert first == second
  assert first[:3] == [
    [step, f'{path}: {shards} shards, {3 * shards} records']
    for step, shards in ((0, 1), (2, 2), (4, 150))
  ]
  assert first[3][0] == 8 and 'another shard now' in first[3][1]
  assert [step for step, *_ in counts(tmp_path)] == [0, 2, 4]
