"""Conversion: order, manifest, going on after a kill, records left out, full disks."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from align_jax.data import convert as convert_lib
from align_jax.data import shards as shards_lib
from align_jax.data.convert import convert
from align_jax.data.record import Record
from align_jax.data.shards import load_manifest, write_shards
from align_jax.data.sources import open_source, record_ids
from align_jax.errors import UserError
from align_jax.files import disk_errors


def png(value: int, size: int = 8) -> bytes:
  pixels = np.random.default_rng(value).integers(0, 256, (size, size, 3), np.uint8)
  out = io.BytesIO()
  Image.fromarray(pixels).save(out, 'PNG')
  return out.getvalue()


def folder(root: Path, count: int = 10, size: int = 8) -> str:
  (root / 'cat').mkdir(parents=True)
  for i in range(count):
    (root / 'cat' / f'{i:04d}.png').write_bytes(png(i, size))
  return f'folder:{root}'


def files_of(directory: Path) -> dict[str, bytes]:
  return {p.name: p.read_bytes() for p in sorted(directory.iterdir())}


def run(*arguments: str, **options) -> subprocess.CompletedProcess:
  command = [sys.executable, '-m', 'align_jax.data.convert', *arguments]
  return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_convert_keeps_order_and_says_what_it_wrote(tmp_path):
  spec = folder(tmp_path / 'in')
  manifest = convert(
    spec, f'arrayrecord:{tmp_path}/out', 3, licence='CC-BY', workers=1, progress=False
  )
  out = open_source(f'arrayrecord:{tmp_path}/out')
  assert list(out) == list(open_source(spec))
  assert out.licence == 'CC-BY'
  values = json.loads((tmp_path / 'out' / 'manifest.json').read_text())
  assert values['total'] == 10 and values['complete'] and values['spec'] == spec
  assert [s['count'] for s in values['shards']] == [3, 3, 4]
  assert values['versions']['array_record'] and values['schema'] == 1
  assert manifest == load_manifest(str(tmp_path / 'out'))
  assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == [
    'manifest.json',
    *(f'shard-0000{i}-of-00003.{e}' for i in range(3) for e in ('arrayrecord', 'ids.jsonl')),
  ]


def test_convert_of_a_split_and_onward(tmp_path):
  spec = folder(tmp_path / 'in', 30)
  convert(f'{spec}?split=train', f'arrayrecord:{tmp_path}/a', 2, workers=1, progress=False)
  source = open_source(f'arrayrecord:{tmp_path}/a')
  assert record_ids(source) == record_ids(open_source(f'{spec}?split=train'))
  assert record_ids(open_source(f'arrayrecord:{tmp_path}/a?split=train')) == record_ids(source)


def test_corrupt_images_are_left_out_and_listed(tmp_path):
  spec = folder(tmp_path / 'in')
  broken = {'0002.png': png(2)[:60], '0007.png': b'GIF89a', '0008.png': b''}
  for name, data in broken.items():
    (tmp_path / 'in' / 'cat' / name).write_bytes(data)
  manifest = convert(spec, f'arrayrecord:{tmp_path}/out', 2, workers=1, progress=False)
  assert (manifest.total, manifest.source_records) == (7, 10)
  assert manifest.skipped == {'corrupt': 2, 'format': 1}
  lines = [json.loads(x) for x in (tmp_path / 'out' / 'quarantine.jsonl').read_text().splitlines()]
  assert [x['id'] for x in lines] == [f'cat/{name}' for name in broken]
  assert lines[1]['reason'] == 'format' and lines[1]['source'] == spec
  assert len(open_source(f'arrayrecord:{tmp_path}/out')) == 7


def test_nothing_readable(tmp_path):
  spec = folder(tmp_path / 'in', 1)
  (tmp_path / 'in' / 'cat' / '0000.png').write_bytes(b'nothing')
  with pytest.raises(UserError, match='no record can be read'):
    convert(spec, f'arrayrecord:{tmp_path}/out', 1, workers=1, progress=False)
  with pytest.raises(UserError, match='not finished'):
    open_source(f'arrayrecord:{tmp_path}/out')


def test_goes_on_where_it_stopped(tmp_path, monkeypatch):
  spec, to = folder(tmp_path / 'in'), f'arrayrecord:{tmp_path}/out'
  seen = []

  def decode(data: bytes):
    seen.append(data)
    if len(seen) == 6:
      raise KeyboardInterrupt

  monkeypatch.setattr(convert_lib, 'decode_image', decode)
  with pytest.raises(KeyboardInterrupt):
    convert(spec, to, 5, workers=1, progress=False)
  first = load_manifest(str(tmp_path / 'out'))
  assert [s.count for s in first.shards] == [2, 2] and not first.complete
  assert not list((tmp_path / 'out').glob('.*'))
  with pytest.raises(UserError, match='not finished; run the same command again'):
    open_source(f'arrayrecord:{tmp_path}/out')
  # the other shards, and the one whose bytes changed meanwhile
  with open(tmp_path / 'out' / first.shards[0].file, 'r+b') as file:
    file.write(b'x')
  seen[:] = [b''] * 10
  assert convert(spec, to, 5, workers=1, progress=False).complete
  assert len(seen) == 10 + 8
  assert list(open_source(f'arrayrecord:{tmp_path}/out')) == list(open_source(spec))
  seen.clear()
  convert(spec, to, 5, workers=1, progress=False)
  assert not seen


def test_killed_command_ends_with_the_same_shards(tmp_path):
  spec = folder(tmp_path / 'in', 120, size=96)
  arguments = (f'--from={spec}', '--shards=8', '--workers=2')
  process = subprocess.Popen(
    [sys.executable, '-m', 'align_jax.data.convert', *arguments, f'--to=arrayrecord:{tmp_path}/a'],
    stderr=subprocess.DEVNULL,
    stdout=subprocess.DEVNULL,
  )
  while process.poll() is None and not list((tmp_path / 'a').glob('shard-*.arrayrecord')):
    time.sleep(0.005)
  process.send_signal(signal.SIGKILL)
  process.wait()
  done = run(*arguments, f'--to=arrayrecord:{tmp_path}/a')
  assert done.returncode == 0, done.stderr
  assert '120 records in 8 shards' in done.stdout
  assert 'records/s' in done.stderr
  convert(spec, f'arrayrecord:{tmp_path}/b', 8, workers=1, progress=False)
  assert list(open_source(f'arrayrecord:{tmp_path}/a')) == list(open_source(spec))
  assert files_of(tmp_path / 'a') == files_of(tmp_path / 'b')


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (('--to=arrayrecord:{out}', '--shards=1'), 'from'),
    (('--from=folder:{out}/no', '--to=arrayrecord:{out}', '--shards=1'), 'no folder'),
  ],
)
def test_command_errors_are_one_line(tmp_path, arguments, message):
  done = run(*(a.format(out=tmp_path / 'out') for a in arguments))
  assert done.returncode != 0 and message in done.stderr
  assert 'Traceback' not in done.stderr
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
  ('to', 'shards', 'workers', 'message'),
  [
    ('parquet:x', 1, 1, 'write --to=arrayrecord:DIR'),
    ('arrayrecord:a/*', 1, 1, 'write --to=arrayrecord:DIR'),
    ('arrayrecord:', 1, 1, 'write --to=arrayrecord:DIR'),
    ('arrayrecord:OUT', 0, 1, '--shards=0'),
    ('arrayrecord:OUT', 11, 1, '--shards=11: .* has 10 records'),
    ('arrayrecord:OUT', 1, 0, '--workers=0'),
  ],
)
def test_bad_arguments(tmp_path, to, shards, workers, message):
  spec = folder(tmp_path / 'in')
  with pytest.raises(UserError, match=message):
    convert(spec, to.replace('OUT', f'{tmp_path}/out'), shards, workers=workers, progress=False)
  assert not (tmp_path / 'out').exists()


def test_refuses_a_folder_in_use(tmp_path):
  spec, to = folder(tmp_path / 'in'), f'arrayrecord:{tmp_path}/out'
  convert(spec, to, 2, workers=1, progress=False)
  before = files_of(tmp_path / 'out')
  with pytest.raises(UserError, match=r'in 2 shards of 10 records, not .* in 3 of 10'):
    convert(spec, to, 3, workers=1, progress=False)
  with pytest.raises(UserError, match='choose an empty folder'):
    write_shards([Record(id='x', image=b'')], str(tmp_path / 'out'), 1, '', 'other')
  assert files_of(tmp_path / 'out') == before
  (tmp_path / 'out' / 'manifest.json').unlink()
  with pytest.raises(UserError, match='without a manifest; choose an empty folder'):
    convert(spec, to, 2, workers=1, progress=False)


def full_disk(*_):
  raise OSError(errno.ENOSPC, 'No space left on device')


def test_full_disk_keeps_finished_shards_only(tmp_path, monkeypatch):
  spec, to = folder(tmp_path / 'in'), f'arrayrecord:{tmp_path}/out'
  sync, calls = shards_lib.sync, []

  def fails_later(path: str) -> None:
    calls.append(path)
    sync(path) if len(calls) < 5 else full_disk()

  monkeypatch.setattr(shards_lib, 'sync', fails_later)
  with pytest.raises(UserError, match='no space left on the disk'):
    convert(spec, to, 5, workers=1, progress=False)
  assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == [
    'manifest.json', 'shard-00000-of-00005.arrayrecord', 'shard-00000-of-00005.ids.jsonl',
  ]  # fmt: skip
  monkeypatch.setattr(shards_lib, 'sync', sync)
  assert convert(spec, to, 5, workers=1, progress=False).total == 10


def test_full_disk_under_the_record_writer():
  with pytest.raises(UserError, match='there: no space left'), disk_errors('there'):
    writer = ArrayRecordWriter('/dev/full', 'group_size:1')
    writer.write(os.urandom(1000))
    writer.close()


def test_write_shards_writes_all_or_nothing(tmp_path, monkeypatch):
  records = [Record(id=f'{i}', image=png(i), pair_id=f'p{i}') for i in range(5)]
  manifest = write_shards(iter(records), str(tmp_path / 'a'), 2, 'CC0', 'generator v1')
  assert manifest.total == 5 and manifest.complete and manifest.spec == 'generator v1'
  assert record_ids(open_source(f'arrayrecord:{tmp_path}/a')) == ['0', '2', '4', '1', '3']
  with pytest.raises(UserError, match='no records to write'):
    write_shards([], str(tmp_path / 'b'), 2, '', 'none')
  monkeypatch.setattr(os, 'fsync', full_disk)
  with pytest.raises(UserError, match='no space left'):
    write_shards(records, str(tmp_path / 'b'), 2, '', 'none')
  assert not list((tmp_path / 'b').iterdir())


def test_write_shards_replaces_what_a_kill_left_of_it(tmp_path, monkeypatch):
  records = [Record(id=f'{i}', image=png(i)) for i in range(5)]
  replace, calls = os.replace, []

  def killed(source: str, target: str) -> None:
    calls.append(target)
    if len(calls) == 4:  # manifest, index and data of shard 0, then the kill
      raise KeyboardInterrupt
    replace(source, target)

  monkeypatch.setattr(os, 'replace', killed)
  with pytest.raises(KeyboardInterrupt):
    write_shards(records, str(tmp_path), 3, '', 'generator v1')
  monkeypatch.setattr(os, 'replace', replace)
  with pytest.raises(UserError, match='choose an empty folder'):
    write_shards(records, str(tmp_path), 3, '', 'generator v2')
  write_shards(records, str(tmp_path), 2, '', 'generator v1')
  assert len(open_source(f'arrayrecord:{tmp_path}')) == 5
  assert len(list(tmp_path.glob('*.arrayrecord'))) == 2
