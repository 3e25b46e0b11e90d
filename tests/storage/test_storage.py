"""Paths, objects and staged folders, with the real client against the emulator."""

import importlib.util
import logging

import pytest
from etils import epath

from align_jax import storage
from align_jax.errors import UserError
from align_jax.files import write_file


def test_a_local_path_is_expanded(monkeypatch):
  monkeypatch.setenv('HOME', '/somewhere')
  assert str(storage.open_path('~/runs/a')) == '/somewhere/runs/a'
  assert isinstance(storage.open_path('runs'), epath.Path)
  assert not storage.is_remote('runs/gs')


@pytest.mark.parametrize(
  ('text', 'said'),
  [
    ('s3://bucket/a', 's3:// is not supported'),
    ('https://host/a', 'https:// is not supported'),
    ('gs://', 'names no bucket'),
    ('gs:/bucket/a', 'names no bucket'),
    ('', 'empty path'),
  ],
)
def test_other_schemes_are_refused_in_one_line(text, said):
  with pytest.raises(UserError, match=said):
    storage.open_path(text)


def test_a_missing_client_is_named(monkeypatch):
  find = importlib.util.find_spec
  monkeypatch.setattr(importlib.util, 'find_spec', lambda n: None if n == 'gcsfs' else find(n))
  storage.filesystem.cache_clear()
  with pytest.raises(UserError, match=r"pip install 'align_jax\[gcs\]'"):
    storage.open_path('gs://bucket/a')


def test_an_object_is_written_read_found_and_removed(bucket):
  path = storage.open_path(bucket) / 'a' / 'config.json'
  with pytest.raises(FileNotFoundError):
    storage.read_bytes(path)
  assert storage.info(str(path)) is None and not storage.is_folder(path.parent)
  write_file(path, 'one')
  write_file(path, 'zwei ä')
  assert storage.read_bytes(path) == path.read_bytes() == 'zwei ä'.encode()
  assert storage.is_folder(path.parent) and not storage.is_folder(path)
  found = storage.find(f'{bucket}/*/*.json')
  assert list(found) == [str(path)] and found[str(path)].size == 7
  assert found[str(path)] == storage.info(str(path))
  storage.remove(str(path))
  storage.remove(str(path))
  assert not path.exists()


def test_another_version_has_another_name(bucket):
  versions = []
  for text in ('one', 'two'):
    storage.write_object(f'{bucket}/x', text.encode())
    versions.append(storage.info(f'{bucket}/x').version)
  assert versions[0] != versions[1]


def test_what_another_client_writes_is_seen_at_once(store, bucket):
  path = storage.open_path(bucket)
  write_file(path / 'one', '1')
  assert [p.name for p in path.iterdir()] == ['one']
  import gcsfs

  other = gcsfs.GCSFileSystem(skip_instance_cache=True)
  other.pipe_file(f'{bucket}/two', b'2')
  assert sorted(p.name for p in path.iterdir()) == ['one', 'two']


def test_a_missing_bucket_is_named(store):
  with pytest.raises(UserError, match='gs://nowhere/x: no such bucket'):
    write_file('gs://nowhere/x', 'text')


def test_a_large_file_goes_up_and_down_in_parts(bucket, tmp_path, monkeypatch):
  monkeypatch.setattr(storage, '_CHUNK', 1 << 20)
  data = bytes(range(256)) * (6 << 12)  # 6 MiB: over the limit of one request
  (tmp_path / 'up').write_bytes(data)
  storage.upload(tmp_path / 'up', f'{bucket}/x', sha256='abc')
  found = storage.info(f'{bucket}/x')
  assert found.size == len(data) and found.sha256 == 'abc'
  storage.download(f'{bucket}/x', tmp_path / 'down', found.size)
  assert (tmp_path / 'down').read_bytes() == data
  with pytest.raises(UserError, match='ends after'):
    storage.download(f'{bucket}/x', tmp_path / 'down', found.size + 1)


def test_a_local_folder_is_staged_as_itself(tmp_path):
  staged = storage.Staged(tmp_path)
  assert staged.local == tmp_path and not staged.fetch('a')
  (tmp_path / 'a').write_text('x')
  assert staged.fetch('a')
  staged.sync(force=True)
  staged.close()
  assert (tmp_path / 'a').exists()


def test_a_staged_folder_follows_what_is_appended(bucket, objects):
  storage.write_object(f'{bucket}/metrics.jsonl', b'1\n')
  staged = storage.Staged(storage.open_path(bucket), every=0.05)
  assert staged.fetch('metrics.jsonl') and not staged.fetch('other')
  with (staged.local / 'metrics.jsonl').open('a') as file:
    file.write('2\n')
    file.flush()
    staged.sync(force=True)
    assert storage.read_bytes(f'{bucket}/metrics.jsonl') == b'1\n2\n'
    file.write('3\n')
  (staged.local / 'tensorboard').mkdir()
  (staged.local / 'tensorboard' / 'events').write_bytes(b'e')
  staged.sync()
  staged.close()
  assert objects(bucket) == {'metrics.jsonl': 6, 'tensorboard/events': 1}
  assert not staged.local.exists()
  staged.close()  # once is enough


def test_the_background_upload_happens_without_another_call(bucket, faults):
  staged = storage.Staged(storage.open_path(bucket), every=0.05)
  for text in ('1', '2'):
    (staged.local / 'a').write_text(text)
    staged.sync()
    for _ in range(200):
      if storage.info(f'{bucket}/a') and storage.read_bytes(f'{bucket}/a') == text.encode():
        break
    else:
      pytest.fail('not uploaded')
  uploads = sum(method == 'POST' for method, _, _ in faults.seen)
  staged.sync(force=True)
  assert uploads == sum(method == 'POST' for method, _, _ in faults.seen)  # nothing had changed
  staged.close()


def test_training_outlives_an_outage_of_the_store(bucket, faults, hasty, caplog):
  staged = storage.Staged(storage.open_path(bucket), every=0.01)
  (staged.local / 'metrics.jsonl').write_text('1\n')
  faults.down = True
  with caplog.at_level(logging.WARNING):
    staged.sync(force=True)
  assert f'{bucket}/metrics.jsonl' in caplog.text and 'tried again' in caplog.text
  faults.down = False
  staged.close()
  assert storage.read_bytes(f'{bucket}/metrics.jsonl') == b'1\n'


def test_what_cannot_be_uploaded_at_the_end_is_named_and_kept(bucket, faults, hasty):
  staged = storage.Staged(storage.open_path(bucket))
  (staged.local / 'metrics.jsonl').write_text('1\n')
  faults.down = True
  with pytest.raises(UserError, match=f'{bucket}: not uploaded: metrics.jsonl') as error:
    staged.close()
  assert str(staged.local) in str(error.value) and '\n' not in str(error.value)
  assert (staged.local / 'metrics.jsonl').read_text() == '1\n'
