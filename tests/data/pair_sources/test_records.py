"""Records of any source as pairs, and several sources as one."""

import dataclasses

import pytest

from align_jax.data.pair_record import PairSource
from align_jax.data.pair_sources import open_pairs
from align_jax.data.pair_sources.joined import JoinedPairs
from align_jax.data.pair_sources.records import RecordPairs, record_label
from align_jax.data.record import Record
from align_jax.data.sources import open_source
from align_jax.errors import UserError
from tests.tiny import generated_shards, photo_folder


class ListSource:
  def __init__(self, records):
    self.records, self.spec, self.licence = records, 'list:', 'CC0'

  def __len__(self):
    return len(self.records)

  def __getitem__(self, index):
    return self.records[index]


@pytest.fixture
def photos(tmp_path):
  return f'folder:{photo_folder(tmp_path / "photos", each=2)}'


def test_images_and_captions(photos):
  records = open_source(photos)
  there, back = (
    open_pairs(f'{photos}?pairs={p}') for p in ('image_to_caption', 'caption_to_image')
  )
  assert isinstance(there, PairSource) and isinstance(back, PairSource)
  assert there.ids() == back.ids() == [r.id for r in records]
  for record, a, b in zip(records, there, back, strict=True):
    assert a.query == b.positive and a.positive == b.query
    assert a.query.images == (record.image,) and a.positive.text == record.captions[0]
    assert a.label == b.label == record.captions[0] and a.candidates == ()
    assert a.task == 'image_to_caption' and a.instruction and b.candidate_instruction
  # two photographs of a class share their caption
  assert len({r.positive.id for r in there}) == 6 and len({r.query.id for r in there}) == 12
  assert len(open_pairs(f'{photos}?limit=3')) == 3


def test_generated_images_and_their_partners(photos, tmp_path):
  real = open_source(photos)
  generated = generated_shards(tmp_path / 'g', list(real)[:4])
  source = open_pairs(f'{generated}?pairs=generated_to_real&partners={photos}')
  assert len(source) == 4
  partner_of = {r.id: r for r in real}
  for record, drawn in zip(source, open_source(generated), strict=True):
    partner = partner_of[drawn.pair_id]
    assert record.positive.images == (partner.image,) and record.positive.id == partner.id
    assert record.query.images == (drawn.image,) and record.id == drawn.id
    assert record.label == partner.captions[0] and record.task == 'generated_to_real'
  with pytest.raises(UserError, match=r'4 of 4 records have no real partner.*partners=SPEC'):
    open_pairs(f'{generated}?pairs=generated_to_real')
  partners = f'{photos}?limit=3'.replace('&', '%26')
  few = open_pairs(f'{generated}?pairs=generated_to_real&missing=skip&partners={partners}')
  assert len(few) == 3 and few.skipped == {'record without a real partner': 1}


def test_records_without_captions():
  records = [Record(id=str(i), image=b'x', captions=('c',) * (i % 2)) for i in range(4)]
  source = RecordPairs(ListSource(records), 'caption_to_image')
  assert source[1].query.text == 'c'
  with pytest.raises(UserError, match="record '0' has no caption"):
    source[0]
  kept = RecordPairs(ListSource(records), 'caption_to_image', skip=True)
  assert kept.ids() == ['1', '3'] and kept.skipped == {'record without a caption': 2}
  with pytest.raises(UserError, match='no pairs in 1 records'):
    RecordPairs(ListSource(records[:1]), 'caption_to_image', skip=True)


def test_labels_say_what_matches():
  record = Record(id='1', image=b'', captions=('A  red Disc',))
  assert record_label(record) == 'a red disc'
  assert record_label(dataclasses.replace(record, captions=())) == ''
  cat = {'label': 'cat', 'colour': 'red', 'count': 1}
  foxes = {'label': 'fox', 'colour': 'blue', 'count': 2}
  scenes = [
    dataclasses.replace(record, truth={'objects': objects})
    for objects in ([cat, foxes], [foxes, cat], [cat], [cat, {**foxes, 'count': 1}])
  ]
  labels = [record_label(scene) for scene in scenes]
  assert labels[0] == labels[1] == '1 red cat; 2 blue fox' and len(set(labels)) == 3


def test_joined_sources(photos):
  source = open_pairs(photos)
  other = RecordPairs(ListSource([Record(id='x', image=b'y', captions=('z',))]), 'image_to_caption')
  both = JoinedPairs('both', [source, other, open_pairs(f'{photos}?pairs=caption_to_image')][:2])
  assert isinstance(both, PairSource)
  assert len(both) == 13 and both[12].id == 'x' and both[0].id == source[0].id
  assert [r.id for r in both] == both.ids() and both.licence == 'CC0'
  with pytest.raises(UserError, match='12 ids are there twice'):
    JoinedPairs('twice', [source, source])


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ('?pairs=image_caption', "did you mean 'image_to_caption'"),
    ('?partners=folder:x', 'partners= is for'),
    ('?missing=no', "missing='no'"),
    ('?mising=skip', "unknown option 'mising'"),
  ],
)
def test_bad_options(photos, options, message):
  with pytest.raises(UserError, match=message):
    open_pairs(photos + options)


def test_an_unknown_scheme():
  with pytest.raises(UserError, match="unknown scheme 'mmbe'; did you mean 'mmeb'"):
    open_pairs('mmbe:DIR')
