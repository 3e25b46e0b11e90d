"""A store that fails for a while costs time and no byte; one that stays away ends in one line."""

import jax
import numpy as np
import pytest

from align_jax import storage
from align_jax.data.convert import convert
from align_jax.data.sources import open_source
from align_jax.errors import UserError
from align_jax.parallel.mesh import MeshConfig, make_mesh
from align_jax.train.checkpoints import Checkpoints, load_params
from tests import tiny
from tests.train.test_state import _setup
from tests.train.toy import toy_batch


@pytest.fixture
def photos(tmp_path):
  return f'folder:{tiny.photo_folder(tmp_path / "photos", each=2)}'


def trained(steps):
  mesh = make_mesh(MeshConfig(), jax.devices()[:1])
  state, step = _setup(mesh, ema=0.9)
  for i in range(steps):
    state, _ = step(state, toy_batch(i))
  return state


def same(a, b):
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return all(np.array_equal(x, y) for x, y in pairs)


def test_shards_survive_503_and_cut_connections(photos, bucket, faults, hasty):
  truth = list(open_source(photos))
  faults.every = 3
  convert(photos, f'arrayrecord:{bucket}', 3, workers=1, progress=False)
  source = open_source(f'arrayrecord:{bucket}')
  faults.cut = 3
  assert list(source) == truth
  assert faults.failed > 10 and faults.cut == 0


def test_a_cut_that_lasts_leaves_no_half_shard(photos, bucket, faults, hasty, cache):
  convert(photos, f'arrayrecord:{bucket}', 3, workers=1, progress=False)
  source = open_source(f'arrayrecord:{bucket}')
  faults.cut = 1_000_000
  with pytest.raises(UserError, match=rf'{bucket}/shard-00000.*; run the same command') as error:
    source[0]
  assert '\n' not in str(error.value)
  assert not list((cache / 'shards').iterdir())
  faults.clear()
  assert source[0] == open_source(photos)[0]  # the same source goes on when the store is back


def test_a_store_that_stays_away_ends_in_one_line(photos, bucket, faults, hasty, objects):
  convert(photos, f'arrayrecord:{bucket}', 3, workers=1, progress=False)
  faults.down = True
  for attempt in (
    lambda: open_source(f'arrayrecord:{bucket}'),
    lambda: convert(photos, f'arrayrecord:{bucket}/other', 3, workers=1, progress=False),
    lambda: storage.write_object(f'{bucket}/x', b'1'),
    lambda: storage.is_folder(storage.open_path(bucket)),
  ):
    with pytest.raises(UserError, match=bucket) as error:
      attempt()
    assert '\n' not in str(error.value)
  assert not [name for name in objects(bucket) if name.startswith(('other', 'x'))]


def test_a_conversion_cut_off_by_the_store_goes_on(photos, bucket, faults, hasty, monkeypatch):
  upload, calls = storage.upload, []

  def breaks(*arguments):
    calls.append(arguments)
    faults.down = len(calls) > 3
    upload(*arguments)

  with monkeypatch.context() as patch, pytest.raises(UserError, match='run the same command'):
    patch.setattr(storage, 'upload', breaks)
    convert(photos, f'arrayrecord:{bucket}', 3, workers=1, progress=False)
  faults.clear()
  convert(photos, f'arrayrecord:{bucket}', 3, workers=1, progress=False)
  assert list(open_source(f'arrayrecord:{bucket}')) == list(open_source(photos))


def test_checkpoints_survive_503_and_cut_connections(bucket, faults, hasty):
  workdir = storage.open_path(bucket)
  first, second = trained(1), trained(2)
  faults.every = 4
  saved = Checkpoints(workdir)
  saved.save(first, {'position': 1})
  saved.save(second, {'position': 2})
  saved.close()
  faults.cut = 2
  restored, data = Checkpoints(workdir).restore(trained(0))
  assert data == {'position': 2} and same(restored, second)
  assert same(load_params(workdir, step=1), first.params)
  assert faults.failed > 5 and faults.cut == 0


def test_a_store_that_stays_away_during_a_save_ends_in_one_line(bucket, faults, hasty):
  workdir = storage.open_path(bucket)
  first = trained(1)
  saved = Checkpoints(workdir)
  saved.save(first, {'position': 1})
  saved.wait()
  faults.down = True
  with pytest.raises(UserError, match=f'{bucket}/checkpoints') as error:
    saved.save(trained(2), {'position': 2})
    saved.wait()
  assert '\n' not in str(error.value)
  for attempt in (lambda: Checkpoints(workdir).restore(trained(0)), lambda: load_params(workdir)):
    with pytest.raises(UserError, match=f'{bucket}/checkpoints') as error:
      attempt()
    assert '\n' not in str(error.value)
  faults.clear()
  restored, data = Checkpoints(workdir).restore(trained(0))
  assert data == {'position': 1} and same(restored, first)
