"""The packed sources (shards, tar, Parquet, tfds): what they read and what they refuse."""

import io
import json
import os
import pickle
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from align_jax.data.record import Record
from align_jax.data.shards import write_shards
from align_jax.data.sources import Source, open_source, pair_ids, record_ids
from align_jax.errors import UserError

HF_IMAGE = pa.struct({'bytes': pa.binary(), 'path': pa.string()})


def png(value: int = 0) -> bytes:
  out = io.BytesIO()
  Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(out, 'PNG')
  return out.getvalue()


def records(count: int, **fields) -> list[Record]:
  return [
    Record(id=f'r{i}', image=png(i), captions=(f'caption {i}',), **fields) for i in range(count)
  ]


def noise(count: int) -> list[Record]:
  return [Record(id=f'{i}', image=os.urandom(20_000)) for i in range(count)]


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
  with tarfile.open(path, 'w') as tar:
    for name, data in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))
  return path


def write_parquet(
  path: Path, columns: dict, huggingface: dict | None = None, group: int = 2
) -> Path:
  table = pa.table(columns)
  if huggingface is not None:
    table = table.replace_schema_metadata({'huggingface': json.dumps(huggingface)})
  pq.write_table(table, path, row_group_size=group)
  return path


def read_all(source: Source) -> list[Record]:
  return [source[i] for i in range(len(source))]


# arrayrecord


def test_arrayrecord_reads_what_was_written(tmp_path):
  written = records(5, labels=('x',), source_id='s', truth={'boxes': ((1, 2),)})
  write_shards(written, str(tmp_path), 2, 'CC0', 'test')
  source = open_source(f'arrayrecord:{tmp_path}/*.arrayrecord')
  assert read_all(source) == [written[i] for i in (0, 2, 4, 1, 3)]
  assert source.licence == 'CC0'
  assert record_ids(source) == ['r0', 'r2', 'r4', 'r1', 'r3']


def test_arrayrecord_ids_come_from_the_index_or_else_the_records(tmp_path):
  write_shards(records(5, pair_id='p'), str(tmp_path), 1, '', 'test')
  (index,) = tmp_path.glob('*.ids.jsonl')
  index.write_text(index.read_text().replace('r3', 'from the index'))
  assert record_ids(open_source(f'arrayrecord:{tmp_path}'))[3] == 'from the index'
  index.unlink()
  source = open_source(f'arrayrecord:{tmp_path}')
  assert record_ids(source)[3] == 'r3' and pair_ids(source) == ['p'] * 5


@pytest.mark.parametrize('length', [0, 1000, 70_000])
@pytest.mark.parametrize('with_manifest', [True, False])
def test_truncated_arrayrecord(tmp_path, length, with_manifest):
  write_shards(noise(9), str(tmp_path), 1, '', '')
  (file,) = tmp_path.glob('*.arrayrecord')
  os.truncate(file, length)
  if not with_manifest:
    (tmp_path / 'manifest.json').unlink()
  with pytest.raises(UserError, match=r'shard-00000-of-00001.arrayrecord: .*fetch the file again'):
    open_source(f'arrayrecord:{tmp_path}')


def test_corrupt_arrayrecord_names_the_record(tmp_path):
  write_shards(noise(9), str(tmp_path), 1, '', '')
  (file,) = tmp_path.glob('*.arrayrecord')
  data = bytearray(file.read_bytes())
  data[30_000] ^= 255
  file.write_bytes(data)
  with pytest.raises(UserError, match=r'shard-00000-of-00001.arrayrecord: record \d is corrupt'):
    read_all(open_source(f'arrayrecord:{tmp_path}'))


def test_shards_that_disagree_with_their_manifest(tmp_path):
  write_shards(records(4), str(tmp_path), 2, '', 'test')
  first, second = sorted(tmp_path.glob('*.arrayrecord'))
  moved = first.rename(tmp_path / 'moved')
  with pytest.raises(UserError, match=r'shard-00000-of-00002.arrayrecord: missing'):
    open_source(f'arrayrecord:{tmp_path}')
  moved.rename(tmp_path / 'other.arrayrecord')
  with pytest.raises(UserError, match=r'other.arrayrecord: not in the manifest'):
    open_source(f'arrayrecord:{tmp_path}')
  (tmp_path / 'manifest.json').write_text('{"format": 3')
  with pytest.raises(UserError, match=r'manifest.json: damaged'):
    open_source(f'arrayrecord:{second}')


# webdataset


def test_webdataset(tmp_path):
  write_tar(
    tmp_path / 'a.tar',
    {
      'x/001.jpg': png(1), 'x/001.txt': b'first\n', 'x/001.json': b'{"caption": "other", "url": 3}',
      '002.png': png(2), '002.cls': b'cat', '003.webp': png(3), '003.cls': b'7',
      'only.json': b'{}', '._002.png': b'junk', 'x/.hidden.png': b'junk',
    },
  )  # fmt: skip
  write_tar(tmp_path / 'b.tar', {'002.json': b'{"pair_id": "a/002"}', '002.PNG': png(4)})
  source = open_source(f'webdataset:{tmp_path}/*.tar')
  assert record_ids(source) == ['a/x/001', 'a/002', 'a/003', 'b/002']
  assert source[0].image == png(1) and source[0].captions == ('first', 'other')
  assert source[1].labels == ('cat',) and source[1].captions == ('a photo of a cat',)
  assert source[2].labels == ('7',) and source[2].captions == ()
  assert source[3].pair_id == 'a/002' and source[3].image == png(4)
  assert pair_ids(source) == ['', '', '', 'a/002']


def unsafe_member(name: str, kind: bytes = tarfile.REGTYPE, target: str = '') -> tarfile.TarInfo:
  info = tarfile.TarInfo(name)
  info.type, info.linkname = kind, target
  return info


@pytest.mark.parametrize(
  ('member', 'message'),
  [
    (unsafe_member('../evil.jpg'), "'../evil.jpg' has an unsafe path"),
    (unsafe_member('a/../../evil.jpg'), 'unsafe path'),
    (unsafe_member('/etc/evil.jpg'), 'unsafe path'),
    (unsafe_member('s.jpg', tarfile.SYMTYPE, '/etc/passwd'), 'is a link'),
    (unsafe_member('h.jpg', tarfile.LNKTYPE, 'a.jpg'), 'is a link'),
    (unsafe_member('d.jpg', tarfile.CHRTYPE), 'no plain file'),
    (unsafe_member('f.jpg', tarfile.FIFOTYPE), 'no plain file'),
    (unsafe_member('a.jpg'), 'is there twice'),
  ],
)
def test_unsafe_tar_members(tmp_path, member, message):
  path = tmp_path / 'bad.tar'
  with tarfile.open(path, 'w') as tar:
    for info in (unsafe_member('a.jpg'), member):
      tar.addfile(info)
  with pytest.raises(UserError, match=r'bad.tar: member .*' + message):
    open_source(f'webdataset:{path}')


@pytest.mark.parametrize('length', [0, 100, 512, 600, 1024, 1300, 1536, 1700])
def test_truncated_tar(tmp_path, length):
  path = write_tar(tmp_path / 'cut.tar', {'a.png': png(), 'b.png': png()})
  os.truncate(path, length)
  with pytest.raises(UserError, match=r'cut.tar: truncated'):
    open_source(f'webdataset:{path}')


def test_damaged_tars(tmp_path):
  path = write_tar(tmp_path / 'a.tar', {'a.png': png(), 'b.png': png()})
  data = bytearray(path.read_bytes())
  data[1024] ^= 255  # in the second header
  path.write_bytes(data)
  with pytest.raises(UserError, match=r'a.tar: truncated or damaged after 1024 bytes'):
    open_source(f'webdataset:{path}')
  with tarfile.open(tmp_path / 'b.tar', 'w:gz'):
    pass
  with pytest.raises(UserError, match='no plain tar'):
    open_source(f'webdataset:{tmp_path}/b.tar')
  write_tar(tmp_path / 'c.tar', {'a.txt': b'no image'})
  with pytest.raises(UserError, match='no images'):
    open_source(f'webdataset:{tmp_path}/c.tar')


def test_member_names_are_utf8(tmp_path):
  with tarfile.open(tmp_path / 'a.tar', 'w', format=tarfile.GNU_FORMAT, encoding='latin-1') as tar:
    tar.addfile(tarfile.TarInfo('é.png'))
  with pytest.raises(UserError, match=r'a.tar: .* is not UTF-8'):
    open_source(f'webdataset:{tmp_path}/a.tar')


def test_a_tar_may_end_with_a_folder(tmp_path):
  with tarfile.open(tmp_path / 'a.tar', 'w') as tar:
    info = tarfile.TarInfo('a.png')
    info.size = len(png())
    tar.addfile(info, io.BytesIO(png()))
    tar.addfile(unsafe_member('folder', tarfile.DIRTYPE))
  assert len(open_source(f'webdataset:{tmp_path}/a.tar')) == 1


# parquet


def test_parquet_as_hugging_face_writes_it(tmp_path):
  columns = {
    'image': [{'bytes': png(i), 'path': None} for i in range(5)],
    'text': [f'text {i}' for i in range(5)],
    'label': [0, 1, 0, 1, -1],
  }
  names = {'info': {'features': {'label': {'names': ['cat', 'dog'], '_type': 'ClassLabel'}}}}
  write_parquet(tmp_path / 'a.parquet', columns, names)
  source = open_source(f'parquet:{tmp_path}/*.parquet')
  assert [r.labels for r in source] == [('cat',), ('dog',), ('cat',), ('dog',), ()]
  assert source[4] == Record(id='a-4', image=png(4), captions=('text 4',))
  assert record_ids(source) == [r.id for r in source]


def test_parquet_with_bytes_and_pairs(tmp_path):
  columns = {
    'id': ['x', 'y'], 'picture': [png(1), png(2)], 'captions': [['a', 'b'], None],
    'pair_id': ['p', None], 'modality': ['generated', 'real'],
  }  # fmt: skip
  write_parquet(tmp_path / 'a.parquet', columns, group=1)
  source = open_source(f'parquet:{tmp_path}/a.parquet?image=picture')
  assert source[0] == Record(
    id='x', image=png(1), captions=('a', 'b'), modality='generated', pair_id='p'
  )
  assert source[1] == Record(id='y', image=png(2))
  assert record_ids(source) == ['x', 'y'] and pair_ids(source) == ['p', '']


def test_bad_parquet(tmp_path):
  path = write_parquet(tmp_path / 'a.parquet', {'picture': [png()], 'text': ['x']})
  with pytest.raises(UserError, match=r"no column 'image' of bytes.*picture, text"):
    open_source(f'parquet:{path}')
  with pytest.raises(UserError, match=r"no column 'pictur'.*did you mean 'picture'"):
    open_source(f'parquet:{path}?image=pictur')
  with pytest.raises(UserError, match="no column 'image' of bytes"):
    open_source(f'parquet:{path}?image=text')
  write_parquet(tmp_path / 'b.parquet', {'picture': [png()], 'words': ['x']})
  with pytest.raises(UserError, match=r'b.parquet: its columns differ'):
    open_source(f'parquet:{tmp_path}/*.parquet?image=picture')
  os.truncate(path, 100)
  with pytest.raises(UserError, match=r'a.parquet: truncated'):
    open_source(f'parquet:{path}?image=picture')


def test_parquet_without_embedded_image(tmp_path):
  path = write_parquet(
    tmp_path / 'a.parquet', {'image': pa.array([{'bytes': None, 'path': 'x.jpg'}], HF_IMAGE)}
  )
  with pytest.raises(UserError, match='row 0: no image bytes'):
    open_source(f'parquet:{path}')[0]


# tfds


@pytest.fixture(scope='module')
def tfds_folder(tmp_path_factory) -> Path:
  import tensorflow_datasets as tfds

  class TinyScenes(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(
          {
            'image': tfds.features.Image(shape=(None, None, 3)),
            'label': tfds.features.ClassLabel(names=['cat', 'dog']),
            'captions': tfds.features.Sequence({'text': tfds.features.Text()}),
          }
        ),
        redistribution_info={'license': 'CC0'},
      )

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples()}

    def _generate_examples(self):
      for i in range(6):
        captions = [{'text': f'caption {i}'}, {'text': 'two'}] if i else []
        yield i, {'image': io.BytesIO(png(i)), 'label': i % 2, 'captions': captions}

  TinyScenes.__module__ = 'tiny_scenes'  # of a package, tfds would look for files beside it
  folder = tmp_path_factory.mktemp('tfds')
  TinyScenes(data_dir=folder, file_format='array_record').download_and_prepare()
  return folder


def test_tfds(tfds_folder):
  source = open_source(f'tfds:tiny_scenes/train?data_dir={tfds_folder}')
  found = sorted(read_all(source), key=lambda r: png_value(r.image))
  assert [r.labels for r in found] == [('cat',), ('dog',)] * 3
  assert found[0].captions == ('a photo of a cat',) and found[3].captions == ('caption 3', 'two')
  assert found[3].image == png(3) and source.licence == 'CC0'
  assert [r.id for r in source] == list(record_ids(source))
  assert read_all(pickle.loads(pickle.dumps(source))) == read_all(source)
  assert len(open_source(f'tfds:tiny_scenes:1.0.0/train[:2]?data_dir={tfds_folder}')) == 2
  assert 'tensorflow' not in sys.modules


def png_value(data: bytes) -> int:
  return int(np.asarray(Image.open(io.BytesIO(data)))[0, 0, 0])


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('tiny_scenes/test', "Unknown split 'test'"),
    ('tiny_scnes/train', 'tiny_scnes'),
    ('cifar10/train', 'download_and_prepare'),
    ('tiny_scenes/train?caption=captoins', "did you mean 'captions'"),
    ('tiny_scenes/train?image=label', 'no image feature'),
  ],
)
def test_bad_tfds(tfds_folder, name, message):
  joint = '&' if '?' in name else '?'
  with pytest.raises(UserError, match=message) as caught:
    open_source(f'tfds:{name}{joint}data_dir={tfds_folder}')
  assert '\n' not in str(caught.value)
