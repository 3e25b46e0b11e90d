"""Every source: what it reads, how it splits, and the one line it ends with on bad input."""

import dataclasses
import io
import json
import os
import pickle
import sys
import tarfile
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from align_jax.data.record import Record
from align_jax.data.shards import write_shards
from align_jax.data.sources import (
  ParsedSpec,
  Source,
  open_as,
  open_source,
  pair_ids,
  pair_index,
  parse_spec,
  record_ids,
  split_of,
  with_options,
)
from align_jax.errors import UserError


def png(value: int = 0) -> bytes:
  out = io.BytesIO()
  Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(out, 'PNG')
  return out.getvalue()


def records(count: int, **fields) -> list[Record]:
  return [
    Record(id=f'r{i}', image=png(i), captions=(f'caption {i}',), **fields) for i in range(count)
  ]


def classes_folder(root: Path, per_class: int = 3) -> Path:
  for name in ('cat', 'golden_retriever'):
    (root / name / '.thumbs').mkdir(parents=True)
    for i in range(per_class):
      (root / name / f'{i}.png').write_bytes(png(i))
    (root / name / '.thumbs' / 'x.png').write_bytes(png())
    (root / name / 'notes.txt').write_text('not an image')
  return root


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


# specs


@pytest.mark.parametrize(
  ('text', 'path', 'options'),
  [
    ('folder:a/b', 'a/b', {}),
    ('folder:a?template=a photo of {}!&limit=3', 'a', {'template': 'a photo of {}!', 'limit': '3'}),
    ('webdataset:a-??.tar?split=test', 'a-??.tar', {'split': 'test'}),
    ('webdataset:a-?.tar', 'a-?.tar', {}),
    ('tfds:coco/2014:1.0.0/train[:10%]?limit=2', 'coco/2014:1.0.0/train[:10%]', {'limit': '2'}),
    ('folder:a?template=is it a {}?', 'a', {'template': 'is it a {}?'}),
    ('folder:a?template=b%26c 100%25 x=y', 'a', {'template': 'b&c 100% x=y'}),
  ],
)
def test_parse_spec(text, path, options):
  parsed = parse_spec(text)
  assert (parsed.path, dict(parsed.options), parsed.text) == (path, options, text)
  assert dict(parse_spec(with_options(text)).options) == options


def test_with_options_sets_replaces_and_removes():
  assert with_options('folder:a', limit=3) == 'folder:a?limit=3'
  assert with_options('folder:a?limit=3&split=test', limit=4) == 'folder:a?limit=4&split=test'
  assert with_options('folder:a?limit=3', limit=None, split='test') == 'folder:a?split=test'


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    ('data/cats', 'no scheme'),
    ('foldr:x', "did you mean 'folder'"),
    ('folder:x?limt=3', "did you mean 'limit'"),
    ('folder:x?limit=3&split', 'no value'),
    ('folder:x?limit=3&limit=4', 'given twice'),
    ('folder:nowhere', "no folder 'nowhere'"),
    ('webdataset:nowhere/*.tar', 'no file matches'),
    ('arrayrecord:', 'no path'),
    ('tfds:cifar10', 'no split'),
  ],
)
def test_bad_specs(spec, message):
  with pytest.raises(UserError, match=message):
    open_source(spec)


# generic options


def test_splits_partition_the_records_for_ever(tmp_path):
  write_shards(records(200), str(tmp_path / 's'), 2, '', 'test')
  spec = f'arrayrecord:{tmp_path}/s'
  parts = {s: set(record_ids(open_source(f'{spec}?split={s}'))) for s in ('train', 'extra', 'test')}
  assert sum(map(len, parts.values())) == 200
  assert set.union(*parts.values()) == {f'r{i}' for i in range(200)}
  assert 25 < len(parts['test']) < 55 and 25 < len(parts['extra']) < 55
  assert [split_of(f'r{i}') for i in range(4)] == ['extra', 'train', 'train', 'train']


def test_generated_records_follow_their_partner(tmp_path):
  generated = [
    Record(id=f'g{i}', image=png(), modality='generated', pair_id=f'r{i}') for i in range(50)
  ]
  write_shards(generated, str(tmp_path / 'g'), 1, '', 'test')
  for split in ('train', 'extra', 'test'):
    source = open_source(f'arrayrecord:{tmp_path}/g?split={split}')
    assert {split_of(p) for p in pair_ids(source)} == {split}


def test_shuffle_is_an_order_of_its_own_and_limits_are_nested(tmp_path):
  classes_folder(tmp_path)
  every = record_ids(open_source(f'folder:{tmp_path}'))
  ids = record_ids(open_source(f'folder:{tmp_path}?shuffle=1'))
  assert sorted(ids) == sorted(every)
  assert ids != every
  assert record_ids(open_source(f'folder:{tmp_path}?shuffle=1&limit=3')) == ids[:3]


def test_limit_and_modality(tmp_path):
  classes_folder(tmp_path)
  source = open_source(f'folder:{tmp_path}?limit=2&modality=generated')
  assert [r.modality for r in source] == ['generated'] * 2
  assert record_ids(source) == ['cat/0.png', 'cat/1.png']
  assert len(open_source(f'folder:{tmp_path}?limit=99')) == 6


def test_the_place_of_a_spec_says_the_modality_unless_the_spec_does(tmp_path):
  classes_folder(tmp_path)
  assert open_as('generated', f'folder:{tmp_path}')[0].modality == 'generated'
  assert open_as('generated', f'folder:{tmp_path}?modality=real')[0].modality == 'real'


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ('split=tset', "did you mean 'test'"),
    ('limit=0', 'limit=0 is no whole number from 1 on'),
    ('limit=-1', 'no whole number'),
    ('shuffle=x', 'shuffle=x is no whole number from 0 on'),
    ('modality=fake', 'known: generated, real'),
    ('limit=1&split=extra&template=x', 'has no {}'),
  ],
)
def test_bad_generic_options(tmp_path, options, message):
  classes_folder(tmp_path)
  with pytest.raises(UserError, match=message):
    open_source(f'folder:{tmp_path}?{options}')


def test_a_split_may_be_empty(tmp_path):
  (tmp_path / 'a').mkdir()
  (tmp_path / 'a' / '0.png').write_bytes(png())
  empty = next(s for s in ('train', 'test', 'extra') if s != split_of('a/0.png'))
  with pytest.raises(UserError, match='no records left'):
    open_source(f'folder:{tmp_path}?split={empty}')


def test_pair_index_needs_unique_ids():
  @dataclasses.dataclass
  class Plain:
    spec: str = 'plain:'
    licence: str = ''
    names: tuple[str, ...] = ('a', 'b')

    def __len__(self) -> int:
      return len(self.names)

    def __getitem__(self, index: int) -> Record:
      return Record(id=self.names[index], image=b'')

  assert pair_index(Plain()) == {'a': 0, 'b': 1}
  with pytest.raises(UserError, match="0 and 1 share the id 'a'"):
    pair_index(Plain(names=('a', 'a')))


# emoji


def test_the_pack_says_what_to_install(monkeypatch):
  pack = types.ModuleType('align_jax.data.emoji')

  def open_emoji(spec: ParsedSpec) -> Source:
    raise ModuleNotFoundError("No module named 'resvg_py'", name='resvg_py')

  pack.open_emoji = open_emoji
  monkeypatch.setitem(sys.modules, 'align_jax.data.emoji', pack)
  with pytest.raises(UserError, match=r'resvg_py is missing; pip install align_jax\[demo\]'):
    open_source('emoji:scenes')


# folder


def test_folder_of_classes(tmp_path):
  source = open_source(f'folder:{classes_folder(tmp_path)}')
  assert len(source) == 6
  assert source[0] == Record(
    id='cat/0.png', image=png(0), captions=('a photo of a cat',), labels=('cat',)
  )
  assert source[5].captions == ('a photo of a golden retriever',)
  assert open_source(f'folder:{tmp_path}?template=one {{}}')[0].captions == ('one cat',)
  assert open_source(f'folder:{tmp_path}?template=')[0].captions == ()


def test_folder_with_captions(tmp_path):
  (tmp_path / 'images').mkdir()
  (tmp_path / 'images' / 'a.png').write_bytes(png(1))
  (tmp_path / 'b.png').write_bytes(png(2))
  lines = [
    {'file': 'images/a.png', 'captions': ['one', ' two '], 'labels': ['cat', 'dog']},
    {'file': 'b.png', 'caption': 'three', 'modality': 'generated', 'pair_id': 'images/a.png',
     'generator_id': 'g1', 'prompt': 'draw three', 'truth': {'seed': 3}},
    {'file': 'b.png', 'id': 'again', 'label': 'bird'},
  ]  # fmt: skip
  (tmp_path / 'captions.jsonl').write_text('\n\n'.join(map(json.dumps, lines)))
  source = open_source(f'folder:{tmp_path}')
  assert source[0].captions == ('one', 'two') and source[0].labels == ('cat', 'dog')
  assert source[1] == Record(
    id='b.png', image=png(2), captions=('three',), modality='generated', pair_id='images/a.png',
    generator_id='g1', prompt='draw three', truth={'seed': 3},
  )  # fmt: skip
  assert source[2].captions == ('a photo of a bird',)
  assert pair_index(source)[source[1].pair_id] == 0


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ('{"file": "../secret.png"}', 'captions.jsonl:2: file .* leaves the folder'),
    ('{"file": "/etc/passwd"}', 'leaves the folder'),
    ('{"file": "link.png"}', 'through a link'),
    ('{"file": "linked/secret.png"}', 'through a link'),
    ('{"file": "missing.png"}', "no file 'missing.png'"),
    ('{"caption": "x"}', 'no file; write'),
    ('{"file": "a.png", "captoin": "x"}', "did you mean 'caption'"),
    ('{"file": "b.png", "caption": 3.5}', 'caption: expected a text'),
    ('{"file": "b.png", "modality": "fake"}', "modality 'fake'"),
    ('{"file": "a.png", "caption": "x"}', 'is on line 1 already'),
    ('{"file": "a.png"', 'not JSON'),
    ('["a.png"]', 'expected a JSON object'),
  ],
)
def test_bad_caption_lines(tmp_path, line, message):
  outside, root = tmp_path / 'outside', tmp_path / 'data'
  outside.mkdir()
  root.mkdir()
  (outside / 'secret.png').write_bytes(png())
  (root / 'link.png').symlink_to(outside / 'secret.png')
  (root / 'linked').symlink_to(outside)
  (root / 'a.png').write_bytes(png())
  (root / 'b.png').write_bytes(png())
  (root / 'captions.jsonl').write_text('{"file": "a.png"}\n' + line)
  with pytest.raises(UserError, match=message):
    open_source(f'folder:{root}')


def test_bad_folders(tmp_path):
  with pytest.raises(UserError, match='no images'):
    open_source(f'folder:{tmp_path}')
  (tmp_path / 'a.png').write_bytes(png())
  with pytest.raises(UserError, match=r'a.png: an image outside a class folder'):
    open_source(f'folder:{tmp_path}')


def test_file_names_are_utf8(tmp_path):
  (tmp_path / 'a').mkdir()
  with open(os.fsencode(tmp_path / 'a') + b'/\xe9.png', 'wb') as file:
    file.write(png())
  with pytest.raises(UserError, match='is not UTF-8; rename'):
    open_source(f'folder:{tmp_path}')


def test_a_vanished_image_is_named(tmp_path):
  source = open_source(f'folder:{classes_folder(tmp_path)}')
  (tmp_path / 'cat' / '0.png').unlink()
  with pytest.raises(UserError, match=r'cat/0.png: cannot read'):
    source[0]


# what all of them promise


def test_sources_pickle_and_are_thread_safe(tmp_path):
  classes_folder(tmp_path / 'f', per_class=20)
  write_shards(records(40), str(tmp_path / 's'), 3, '', 'test')
  write_tar(tmp_path / 'a.tar', {f'{i}.png': png(i) for i in range(40)})
  write_parquet(tmp_path / 'a.parquet', {'image': [png(i) for i in range(40)]}, group=3)
  for spec in (
    f'folder:{tmp_path}/f?split=train',
    f'arrayrecord:{tmp_path}/s',
    f'webdataset:{tmp_path}/a.tar',
    f'parquet:{tmp_path}/a.parquet',
  ):
    source = open_source(spec)
    assert isinstance(source, Source) and source.spec == spec
    want = read_all(source)
    assert [r.id for r in want] == list(record_ids(source))
    order = np.random.default_rng(0).permutation(len(source)).tolist() * 3
    with ThreadPoolExecutor(4) as pool:
      assert list(pool.map(source.__getitem__, order)) == [want[i] for i in order]
    assert read_all(pickle.loads(pickle.dumps(source))) == want
    with pytest.raises(IndexError):
      source[len(source)]
