"""Data in a bucket: conversion into it, the streaming cache of shards, reading by ranges."""

import hashlib
import io
import logging
import pickle
import tarfile
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align_jax import storage
from align_jax.data import shards as shards_lib
from align_jax.data.convert import convert
from align_jax.data.finished import look
from align_jax.data.sources import open_source, pair_ids, record_ids, streaming
from align_jax.errors import UserError
from align_jax.train.snapshots import Snapshots
from tests import tiny
from tests.growing import growing

SHARDS = 3


@pytest.fixture
def photos(tmp_path):
  return f'folder:{tiny.photo_folder(tmp_path / "photos", each=2)}'


@pytest.fixture
def spec(photos, bucket, faults):
  """A data set of three shards in the bucket."""
  convert(photos, f'arrayrecord:{bucket}', SHARDS, licence='CC0', workers=1, progress=False)
  faults.clear()
  return f'arrayrecord:{bucket}'


def cached(cache):
  return sorted(p.name for p in (cache / 'shards').iterdir())


def gib(size: float) -> float:
  return size / streaming.GIB


def test_converts_into_a_bucket_the_same_bytes_as_onto_a_disk(photos, bucket, objects, tmp_path):
  convert(photos, f'arrayrecord:{bucket}', SHARDS, workers=1, progress=False)
  convert(photos, f'arrayrecord:{tmp_path}/out', SHARDS, workers=1, progress=False)
  assert objects(bucket) == {p.name: p.stat().st_size for p in (tmp_path / 'out').iterdir()}
  for name in objects(bucket):
    assert storage.read_bytes(f'{bucket}/{name}') == (tmp_path / 'out' / name).read_bytes()


def test_a_conversion_goes_on_after_its_last_shard(photos, bucket, faults, monkeypatch, cache):
  commit, done = shards_lib.ShardWriter.commit, []

  def dies(self, *arguments):
    if done:
      raise KeyboardInterrupt
    done.append(self.file)
    return commit(self, *arguments)

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(shards_lib.ShardWriter, 'commit', dies)
    convert(photos, f'arrayrecord:{bucket}', SHARDS, workers=1, progress=False)
  with pytest.raises(UserError, match='conversion was not finished'):
    open_source(f'arrayrecord:{bucket}')
  first = storage.info(f'{bucket}/{done[0]}')
  faults.clear()
  convert(photos, f'arrayrecord:{bucket}', SHARDS, workers=1, progress=False)
  assert storage.info(f'{bucket}/{done[0]}') == first  # not written again
  assert not faults.downloads('.arrayrecord')  # nor read: its checksum is kept with it
  assert list(open_source(f'arrayrecord:{bucket}')) == list(open_source(photos))
  assert not [p for p in (cache / 'writing').rglob('*') if p.is_file()]


def test_a_folder_that_grows_is_followed(bucket, faults):
  folder = growing(bucket, [3, 4, 2])
  with pytest.raises(UserError, match='no shard was finished'):
    open_source(folder.spec)
  folder.write(0, 1)
  seen = look(bucket)
  folder.write(2)
  assert record_ids(open_source(folder.spec)) == [f'g{i}' for i in range(9)]
  faults.clear()
  then = open_source(f'{folder.spec}&cache_gib=1', {bucket: seen})
  assert record_ids(then) == [f'g{i}' for i in range(7)]
  assert not faults.downloads('.arrayrecord')
  assert [r.id for r in then] == record_ids(then)
  storage.remove(f'{bucket}/{seen.shards[1][0]}')
  with pytest.raises(UserError, match=f'{seen.shards[1][0]}: gone'):
    open_source(folder.spec, {bucket: seen})


def test_a_run_folder_in_a_bucket_keeps_its_snapshots(bucket):
  folder, run = growing(f'{bucket}/shards', [3, 4]), storage.open_path(f'{bucket}/run')
  folder.write(0)
  first = Snapshots(run, [folder.spec], 2, under_way=False)
  folder.write(1)
  assert first.before(1) is None and first.before(2) is not None
  again = Snapshots(run, [folder.spec], 2, under_way=True)
  assert [again.at(step) for step in range(4)] == [first.at(step) for step in range(4)]
  assert again.at(1)[folder.folder].records == 3 and again.at(2)[folder.folder].complete


def test_a_shard_that_was_replaced_is_converted_again(photos, bucket):
  convert(photos, f'arrayrecord:{bucket}', SHARDS, workers=1, progress=False)
  name = f'{bucket}/{shards_lib.shard_name(1, SHARDS)}'
  right = storage.read_bytes(name)
  storage.write_object(name, right[:-1] + b'?')
  convert(photos, f'arrayrecord:{bucket}', SHARDS, workers=1, progress=False)
  assert storage.read_bytes(name) == right


def test_a_folder_in_use_is_refused(spec, photos):
  with pytest.raises(UserError, match='choose an empty folder'):
    convert(photos, spec, SHARDS - 1, workers=1, progress=False)


def test_opening_fetches_no_shard_and_asking_fetches_one(spec, photos, faults, cache):
  source, truth = open_source(spec), open_source(photos)
  assert len(source) == len(truth) and source.licence == 'CC0'
  assert record_ids(source) == record_ids(truth) and pair_ids(source) == pair_ids(truth)
  assert not faults.downloads('.arrayrecord') and not (cache / 'shards').exists()
  assert source[0] == truth[0]
  assert len(set(faults.downloads('.arrayrecord'))) == len(cached(cache)) == 1
  assert list(source) == list(truth) and len(cached(cache)) == SHARDS


def test_a_glob_reads_some_shards(spec, photos):
  part = open_source(f'{spec}/shard-00000-*.arrayrecord')
  assert list(part) == list(open_source(photos))[: len(part)]


def test_the_cache_serves_the_next_run_and_other_processes(spec, faults):
  first = list(open_source(spec))
  faults.clear()
  again = pickle.loads(pickle.dumps(open_source(spec)))
  assert list(again) == first and not faults.downloads('.arrayrecord')


def test_an_object_that_changed_is_another_entry(spec, photos, bucket, cache):
  list(open_source(spec))
  name = f'{bucket}/{shards_lib.shard_name(0, SHARDS)}'
  storage.write_object(name, storage.read_bytes(name))
  assert list(open_source(spec)) == list(open_source(photos))
  assert len(cached(cache)) == SHARDS + 1


def in_threads(count, read):
  """Calls `read(i)` in so many threads at once, and waits for them."""
  threads = [threading.Thread(target=read, args=(i,)) for i in range(count)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()


def test_threads_fetch_a_shard_once(spec, photos, faults):
  source, truth, got = open_source(spec), list(open_source(photos)), {}
  barrier = threading.Barrier(8)

  def read(thread: int) -> None:
    barrier.wait()
    got[thread] = list(source)

  in_threads(8, read)
  assert all(records == truth for records in got.values()) and len(got) == 8
  assert len(faults.downloads('.arrayrecord')) == SHARDS


def test_processes_that_fetch_the_same_shard_do_not_disturb_each_other(spec, photos, cache):
  truth, got = list(open_source(photos)), {}
  barrier = threading.Barrier(4)

  def read(number: int) -> None:
    source = open_source(spec)  # with a cache and locks of its own, as in another process
    barrier.wait()
    got[number] = list(source)

  in_threads(4, read)
  assert all(records == truth for records in got.values()) and len(got) == 4
  assert len(cached(cache)) == SHARDS


def test_the_shards_used_least_lately_make_room(spec, cache):
  sizes = [s.bytes for s in shards_lib.load_manifest(spec.partition(':')[2]).shards]
  source = open_source(f'{spec}?cache_gib={gib(sum(sizes) - 1)}')
  each = len(source) // SHARDS
  source[0], source[each]
  before = set(cached(cache))
  source[0]
  source[2 * each]  # there is no room for the third: the second goes
  assert len(cached(cache)) == 2 and len(before & set(cached(cache))) == 1
  assert sum(p.stat().st_size for p in (cache / 'shards').iterdir()) < sum(sizes)


def test_a_shard_in_use_is_not_pulled_from_under_its_reader(spec, photos, cache):
  source, truth = open_source(spec), list(open_source(photos))
  assert source[0] == truth[0]
  for path in (cache / 'shards').iterdir():
    path.unlink()  # as another process does that needs the room
  assert source[1] == truth[1]  # the file is open still
  assert not cached(cache)


def test_a_cache_that_is_too_small_still_reads_and_says_so_once(spec, photos, caplog):
  source = open_source(f'{spec}?cache_gib={gib(1)}')
  with caplog.at_level(logging.WARNING):
    assert list(source) == list(open_source(photos))
    assert 'again and again' not in caplog.text  # each was fetched once
    assert list(source) == list(open_source(photos))
  assert caplog.text.count('again and again') == 1
  assert 'cache_gib' in caplog.text and spec in caplog.text


@pytest.mark.parametrize('value', ['much', '0', '-1', 'nan'])
def test_a_limit_that_is_no_size_is_refused(spec, value):
  with pytest.raises(UserError, match=f'cache_gib={value} is no size'):
    open_source(f'{spec}?cache_gib={value}')


def test_bytes_that_are_not_those_of_the_manifest_are_refused(spec, bucket, cache):
  name = f'{bucket}/{shards_lib.shard_name(0, SHARDS)}'
  data = storage.read_bytes(name)
  storage.write_object(name, bytes([data[0] ^ 1]) + data[1:])
  source = open_source(spec)
  with pytest.raises(UserError, match=f'{name}: its bytes are not those of the manifest'):
    source[0]
  assert not cached(cache)
  storage.write_object(name, data[:-1])
  with pytest.raises(UserError, match=f'{name}: {len(data) - 1} bytes, the manifest says'):
    open_source(spec)


def test_a_missing_shard_or_manifest_is_named(spec, bucket):
  name = f'{bucket}/{shards_lib.shard_name(1, SHARDS)}'
  storage.remove(name)
  with pytest.raises(UserError, match=f'{name}: missing'):
    open_source(spec)
  storage.remove(f'{bucket}/manifest.json')
  with pytest.raises(UserError, match=r'no manifest\.json beside it'):
    open_source(spec)
  with pytest.raises(UserError, match='no object matches'):
    open_source(f'{spec}/nothing')


def test_an_entry_cut_by_a_power_failure_is_fetched_again(spec, photos, cache):
  truth = list(open_source(photos))
  assert list(open_source(spec)) == truth
  for path in (cache / 'shards').iterdir():
    path.write_bytes(b'')
  assert list(open_source(spec)) == truth


def test_tar_and_parquet_files_are_read_by_ranges(bucket, tmp_path, faults):
  images = [tiny.png(tiny.picture('red', 'disc', seed)) for seed in range(4)]
  with tarfile.open(tmp_path / 'a.tar', 'w') as tar:
    for i, image in enumerate(images):
      for name, data in ((f'{i}.png', image), (f'{i}.txt', f'caption {i}'.encode())):
        member = tarfile.TarInfo(name)
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
  table = pa.table({'image': images, 'caption': [f'caption {i}' for i in range(4)]})
  pq.write_table(table, tmp_path / 'a.parquet', row_group_size=2)
  for name in ('a.tar', 'a.parquet'):
    storage.upload(tmp_path / name, f'{bucket}/{name}')
  for scheme, name in (('webdataset', 'a.tar'), ('parquet', 'a.parquet')):
    there = open_source(f'{scheme}:{bucket}/{name}')
    assert list(there) == list(open_source(f'{scheme}:{tmp_path}/{name}'))
    assert list(open_source(f'{scheme}:{bucket}/*.{name[2:]}')) == list(there)
  storage.write_object(f'{bucket}/a.tar', (tmp_path / 'a.tar').read_bytes()[:1500])
  with pytest.raises(UserError, match='truncated'):
    open_source(f'webdataset:{bucket}/a.tar')


def test_a_folder_of_images_in_a_bucket_is_refused(bucket):
  with pytest.raises(UserError, match='convert the folder'):
    open_source(f'folder:{bucket}')


def test_the_name_of_an_entry_tells_address_version_and_checksum():
  shard = shards_lib.Shard('a', 1, 1, hashlib.sha256(b'').hexdigest(), '')
  keys = {
    streaming.RemoteShard(path, version, shard).key for path in ('a', 'b') for version in ('1', '2')
  }
  assert len(keys) == 4
