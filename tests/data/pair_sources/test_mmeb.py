"""MMEB's layout, as published and as it goes wrong."""

import json
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align_jax.data.pair_record import PairSource, content_ids
from align_jax.data.pair_sources import open_pairs
from align_jax.data.pair_sources.mmeb import find_subsets
from align_jax.data.pair_sources.mmeb_names import (
  META_TASKS,
  NAMES,
  OUT_OF_DISTRIBUTION,
  canonical_name,
)
from align_jax.data.sources.files import MAX_IMAGE_BYTES
from align_jax.errors import UserError
from tests.tiny import picture, png

EVAL = [
  {
    'qry_text': '<|image_1|>\nFind an everyday image like this, but blue\n',
    'qry_img_path': 'images/a.png',
    'tgt_text': ['<|image_1|>\nRepresent the given image.'] * 2 + [''],
    'tgt_img_path': ['images/b.png', 'images/a.png', 'images/c.png'],
  },
  {
    'qry_text': 'A caption',
    'qry_img_path': '',
    'tgt_text': ['one', 'two', 'one'],
    'tgt_img_path': ['', '', ''],
  },
]
TRAIN = [
  {
    'qry': '<|image_1|> What is it?\n',
    'qry_image_path': 'images/a.png',
    'pos_text': 'a disc',
    'pos_image_path': '',
    'neg_text': 'a square',
    'neg_image_path': '',
  },
  {
    'qry': 'A square',
    'qry_image_path': None,
    'pos_text': '<|image_1|>\nRepresent the given image.',
    'pos_image_path': 'images/b.png',
    'neg_text': '',
    'neg_image_path': '',
  },
]


@pytest.fixture
def folder(tmp_path):
  (tmp_path / 'images').mkdir()
  for i, name in enumerate('abc'):
    (tmp_path / 'images' / f'{name}.png').write_bytes(png(picture('red', 'disc', i)))
  return tmp_path


def write(path, rows):
  path.parent.mkdir(exist_ok=True, parents=True)
  if path.suffix == '.jsonl':
    path.write_text('\n'.join(json.dumps(row) for row in rows) + '\n\n')
  else:
    pq.write_table(pa.Table.from_pylist(rows), path)


def everything(source):
  return [(r, list(r.candidates)) for r in (source[i] for i in range(len(source)))]


@pytest.mark.parametrize('name', ['CIRR/test-00000-of-00001.parquet', 'CIRR.jsonl'])
def test_evaluation(folder, name):
  write(folder / name, EVAL)
  source = open_pairs(f'mmeb:{folder}?subset=CIRR')
  assert isinstance(source, PairSource)
  assert len(source) == 2 and source.ids() == ['CIRR-0', 'CIRR-1'] and not source.skipped
  first, second = source[0], source[1]
  assert first.id == 'CIRR-0' and first.task == 'CIRR' and first.label == ''
  assert first.query.text == 'Find an everyday image like this, but blue'
  assert first.query.images == ((folder / 'images/a.png').read_bytes(),)
  assert [c.text for c in first.candidates] == ['Represent the given image.'] * 2 + ['']
  assert first.candidates[0] == first.positive
  assert first.positive.images == ((folder / 'images/b.png').read_bytes(),)
  assert second.query.text == 'A caption' and second.query.images == ()
  # the same text and images are the same content
  names = content_ids(second.candidates)
  assert names[0] == names[2] == second.positive.id != names[1]
  assert everything(pickle.loads(pickle.dumps(source))) == everything(source)
  with pytest.raises(IndexError):
    source[2]


def test_parquet_and_json_give_the_same(folder):
  write(folder / 'p' / 'CIRR.parquet', EVAL)
  write(folder / 'j' / 'CIRR.jsonl', EVAL)
  found = [open_pairs(f'mmeb:{folder}/{k}?images={folder}') for k in 'pj']
  assert everything(found[0]) == everything(found[1])


def test_one_text_stands_for_all_images(folder):
  row = {**EVAL[0], 'tgt_text': '', 'tgt_img_path': ['images/b.png', 'images/c.png']}
  write(folder / 'NIGHTS.jsonl', [row])
  (record,) = open_pairs(f'mmeb:{folder}')
  assert len(record.candidates) == 2 and record.positive.text == '' != record.positive.id


def test_training(folder):
  write(folder / 'ImageNet_1K' / 'original-00000-of-00001.parquet', TRAIN)
  write(folder / 'ImageNet_1K' / 'diverse_instruction-00000-of-00001.parquet', TRAIN[:1])
  write(folder / 'VOC2007' / 'original-00000-of-00001.parquet', TRAIN)
  source = open_pairs(f'mmeb:{folder}?subset=ImageNet-1K')
  first, second = source[0], source[1]
  assert first.task == 'ImageNet-1K' and first.query.text == 'What is it?'
  assert [c.text for c in first.candidates] == ['a disc', 'a square']
  assert first.label == 'a disc'  # a classification set: the class is the label
  assert second.candidates == () and second.query.images == ()
  diverse = open_pairs(f'mmeb:{folder}?subset=ImageNet_1K&split=diverse_instruction')
  assert len(diverse) == 1
  assert len(open_pairs(f'mmeb:{folder}?subset=ImageNet_1K&limit=1')) == 1
  assert len(open_pairs(f'mmeb:{folder}/VOC2007?images={folder}')) == 2
  assert find_subsets(str(folder)) == ['ImageNet_1K', 'VOC2007']


def test_several_data_sets_are_one_source(folder):
  for name in ('ImageNet_1K', 'VOC2007', 'CIRR'):
    write(folder / name / 'original-00000-of-00001.parquet', TRAIN)
  source = open_pairs(f'mmeb:{folder}?subset=all&limit=1&images={folder}')
  assert [source[i].task for i in range(len(source))] == ['CIRR', 'ImageNet-1K', 'VOC2007']
  assert len(set(source.ids())) == 3
  some = open_pairs(f'mmeb:{folder}?subset=VOC2007,CIRR&images={folder}')
  assert [some[i].task for i in range(4)] == ['VOC2007'] * 2 + ['CIRR'] * 2
  again = open_pairs(some.spec)
  assert again.ids() == some.ids() and pickle.loads(pickle.dumps(some)).ids() == some.ids()
  for subset, path, message in (
    ('CIRR,VOC', folder, "no subset 'VOC'; did you mean 'VOC2007'"),
    ('CIRR,CIRR', folder, 'ids are there twice'),
    ('all', folder / 'CIRR', 'is no folder of data sets; leave subset= out'),
    ('all', folder / 'images', 'no data sets in'),
  ):
    with pytest.raises(UserError, match=message):
      open_pairs(f'mmeb:{path}?subset={subset}&images={folder}')


def test_instructions_apart_from_what_they_speak_of(folder):
  row = {'qry_inst': '<|image_1|> Find it.', 'tgt_inst': 'Represent it.', **EVAL[0]}
  other = {'task_instruction': 'Find it', 'represent_prompt': ' As one word', **TRAIN[0]}
  write(folder / 'CIRR.jsonl', [row, other])
  first, second = open_pairs(f'mmeb:{folder}')
  assert (first.instruction, first.candidate_instruction) == ('Find it.', 'Represent it.')
  assert (second.instruction, second.candidate_instruction) == ('Find it', 'As one word')


def test_missing_images(folder):
  rows = [
    {**EVAL[0], 'qry_img_path': 'images/no.png'},
    {**EVAL[0], 'tgt_img_path': ['images/no.png', 'images/a.png', 'images/c.png']},
    {**EVAL[0], 'tgt_img_path': ['images/b.png', 'images/no.png', 'images/c.png']},
    {**EVAL[0], 'qry_img_path': ''},  # the text has a token for it
    {**EVAL[0], 'qry_img_path': '', 'qry_text': ' '},
    EVAL[0],
    {**EVAL[1], 'tgt_text': ['one', 'one', '']},
  ]
  write(folder / 'CIRR.jsonl', rows)
  with pytest.raises(UserError, match=r'CIRR.jsonl:1: query: no image .images/no.png.*skip'):
    open_pairs(f'mmeb:{folder}')
  source = open_pairs(f'mmeb:{folder}?missing=skip')
  assert source.ids() == ['CIRR-2', 'CIRR-5']
  assert [len(record.candidates) for record in source] == [2, 3]
  assert source.skipped == {
    'query without image': 2,
    'query without content': 1,
    'positive without image': 1,
    'candidate without image': 1,
    'query without a wrong candidate': 1,
  }
  write(folder / 'CIRR.jsonl', rows[2:3])
  with pytest.raises(UserError, match='candidate: no image'):
    open_pairs(f'mmeb:{folder}')
  write(folder / 'CIRR.jsonl', rows[:1])
  with pytest.raises(UserError, match='none of 1 rows'):
    open_pairs(f'mmeb:{folder}?missing=skip')


@pytest.mark.parametrize('path', ['../secret.png', 'images/../../secret.png', '/etc/hosts', 'a\0b'])
@pytest.mark.parametrize('missing', ['error', 'skip'])
def test_no_path_leads_out_of_the_root(folder, path, missing):
  write(folder / 'CIRR.jsonl', [{**EVAL[0], 'qry_img_path': path}])
  with pytest.raises(UserError, match='leaves'):
    open_pairs(f'mmeb:{folder}?missing={missing}')


def test_no_link_leads_out_of_the_root(folder, tmp_path_factory):
  outside = tmp_path_factory.mktemp('outside')
  (outside / 'x.png').write_bytes(b'secret')
  (folder / 'images' / 'link.png').symlink_to(outside / 'x.png')
  (folder / 'linked').symlink_to(outside)
  (folder / 'images' / 'inside.png').symlink_to(folder / 'images' / 'a.png')
  for path in ('images/link.png', 'linked/x.png'):
    write(folder / 'CIRR.jsonl', [{**EVAL[0], 'qry_img_path': path}])
    with pytest.raises(UserError, match='through a link'):
      open_pairs(f'mmeb:{folder}')
  write(folder / 'CIRR.jsonl', [{**EVAL[0], 'qry_img_path': 'images/inside.png'}])
  assert open_pairs(f'mmeb:{folder}')[0].query.images[0] == (folder / 'images/a.png').read_bytes()


def test_an_image_may_not_be_too_large(folder):
  with open(folder / 'images' / 'large.png', 'wb') as file:
    file.truncate(MAX_IMAGE_BYTES + 1)
  write(folder / 'CIRR.jsonl', [{**EVAL[0], 'qry_img_path': 'images/large.png'}])
  with pytest.raises(UserError, match='over the limit'):
    open_pairs(f'mmeb:{folder}')[0]


def test_an_image_that_vanishes(folder):
  write(folder / 'CIRR.jsonl', EVAL)
  source = open_pairs(f'mmeb:{folder}')
  (folder / 'images' / 'a.png').unlink()
  with pytest.raises(UserError, match='put it back'):
    source[0]


@pytest.mark.parametrize(
  ('row', 'message'),
  [
    ({'query': 'a'}, 'not in MMEB'),
    ({'qry_text': 'a'}, 'not in MMEB'),
    ({'qry_text': 'a', 'tgt_text': []}, '0 targets'),
    ({'qry_text': ['a', 'b'], 'tgt_text': ['a']}, '2 queries'),
    ({'qry_text': 3, 'tgt_text': ['a']}, 'expected a text'),
    ({'qry_text': 'a', 'tgt_text': ['a', {}]}, 'expected a text'),
    ({'qry_text': 'a', 'tgt_text': ['a', 'b'], 'tgt_img_path': ['', '', '']}, '2 texts.*3 paths'),
    ({'qry_text': 'a', 'tgt_text': ['', 'b']}, 'neither text nor image'),
    ({'qry_text': 'a', 'tgt_text': ['b', 'b']}, 'no wrong candidate'),
    ({'qry': 'a', 'pos_text': ''}, 'neither text nor image'),
  ],
)
def test_bad_rows(folder, row, message):
  write(folder / 'CIRR.jsonl', [row])
  with pytest.raises(UserError, match=message):
    open_pairs(f'mmeb:{folder}')


def test_bad_files_and_options(folder):
  (folder / 'CIRR.jsonl').write_text('{"qry": \n')
  with pytest.raises(UserError, match=r'CIRR.jsonl:1: not JSON'):
    open_pairs(f'mmeb:{folder}')
  (folder / 'CIRR.jsonl').unlink()
  (folder / 'CIRR.parquet').write_bytes(b'PAR1 and no more')
  with pytest.raises(UserError, match='no Parquet file'):
    open_pairs(f'mmeb:{folder}')
  write(folder / 'CIRR.parquet', EVAL)
  write(folder / 'EDIS.jsonl', EVAL)
  for options, message in (
    ('', '2 data sets.*choose one'),
    ('?subset=CIR', "no subset 'CIR'; did you mean 'CIRR'"),
    ('?subset=CIRR&split=train', "no files of split 'train'"),
    ('?subset=CIRR&missing=maybe', "missing='maybe'"),
    ('?subset=CIRR&limit=0', 'no whole number'),
    ('?subset=CIRR&sub=1', "unknown option 'sub'"),
    ('?subset=CIRR&images=/nowhere', 'no folder of images'),
    ('?subset=CIRR&images=gs://b/images', 'bucket'),
  ):
    with pytest.raises(UserError, match=message):
      open_pairs(f'mmeb:{folder}{options}')
  with pytest.raises(UserError, match='no file or folder'):
    open_pairs('mmeb:/nowhere')


def test_the_names_are_the_published_ones():
  assert [len(tasks) for tasks in META_TASKS.values()] == [10, 10, 12, 4]
  assert len(set(NAMES)) == 36 and len(OUT_OF_DISTRIBUTION) == 16
  assert set(NAMES) > OUT_OF_DISTRIBUTION
  assert canonical_name('ImageNet_1K') == 'ImageNet-1K'
  assert canonical_name('MSCOCO_t2i') == 'MSCOCO_t2i' != canonical_name('MSCOCO')
  assert canonical_name('mine') == 'mine'
