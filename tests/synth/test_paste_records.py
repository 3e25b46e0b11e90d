"""From records to pasted records: the bank, the transform, the shards, the COCO file."""

import dataclasses
import json
import math
import os

import grain
import numpy as np
import pytest
from pycocotools.coco import COCO

from align_jax.data.emoji.masks import encode_mask
from align_jax.data.images import decode_image
from align_jax.data.pipeline import Part, train_iterator
from align_jax.data.quarantine import Quarantine
from align_jax.data.record import Record
from align_jax.data.shards import MANIFEST, load_manifest
from align_jax.data.sources import open_source
from align_jax.data.tokenizer import train_tokenizer
from align_jax.data.transforms import Transform
from align_jax.errors import UserError
from align_jax.synth.annotation import rle
from align_jax.synth.generate import encode_png
from align_jax.synth.paste.instances import class_chances, open_bank
from align_jax.synth.paste.objects import measure_sizes, outlines
from align_jax.synth.paste.placement import PasteConfig
from align_jax.synth.paste.shards import write_pasted
from align_jax.synth.paste.transform import CopyPaste, PasteSource, to_record

COLOURS = {'cat': (250, 0, 0), 'dog': (0, 250, 0), 'owl': (0, 0, 250)}


class Records:
  """A source over a list."""

  spec, licence = 'list:', 'CC0'

  def __init__(self, records):
    self.records = records

  def __len__(self):
    return len(self.records)

  def __getitem__(self, index):
    return self.records[index]


def generated(number: int, label: str, side: int = 16, **annotation) -> Record:
  """A square of the label's colour, 4 + number pixels wide, as the engine writes it."""
  mask = np.zeros((side, side), bool)
  mask[2 : 6 + number, 3 : 7 + number] = True
  image = np.where(mask[..., None], COLOURS[label], 255).astype(np.uint8)
  box = list(rle.box_of(mask))
  found = {'rle': rle.encode(mask), 'box': box, 'area': float(mask.mean()), 'size': [side, side]}
  return Record(
    id=f'{label}-{number}',
    image=encode_png(image),
    captions=(f'a photo of a {label}',),
    modality='generated',
    labels=(label,),
    truth={'annotation': {**found, **annotation}},
  )


def real(number: int, size: int = 32) -> Record:
  """A grey picture of a white square, in the form of the built-in scenes."""
  mask = np.zeros((size, size), bool)
  mask[4 : 4 + 8, number : number + 8] = True
  image = np.where(mask[..., None], 255, 90).astype(np.uint8) * np.ones(3, np.uint8)
  objects = [{'label': 'box', 'boxes': [[number, 4, number + 8, 12], [0, 0, 0, 0]]}]
  hidden = np.zeros((size, size), bool)
  return Record(
    id=f'real-{number}',
    image=encode_png(image),
    captions=('A box.', 'one white box on grey'),
    labels=('box',),
    truth={'objects': objects, 'masks': [encode_mask(mask), encode_mask(hidden)], 'split': 'x'},
  )


@pytest.fixture
def bank():
  cats = [generated(i, 'cat') for i in range(6)]
  return open_bank(Records([*cats, generated(0, 'dog'), generated(1, 'owl')]))


@pytest.fixture
def pictures():
  return Records([real(i) for i in range(6)])


def test_the_bank_cuts_out_what_the_mask_shows(bank):
  assert bank.labels == ('cat', 'dog', 'owl') and len(bank) == 8
  assert bank.counts() == {'cat': 6, 'dog': 1, 'owl': 1}
  assert bank.missing(['dog', 'bird']) == ['bird']
  for number, (label, width) in {
    0: ('cat', 4),
    5: ('cat', 9),
    6: ('dog', 4),
    7: ('owl', 5),
  }.items():
    cut = bank.load(number)
    assert cut.label == label and cut.pixels.shape == (width, width, 4)
    assert (cut.pixels == (*COLOURS[label], 255)).all()


def test_balance_of_classes(bank):
  rng = np.random.default_rng(0)

  def shares(chances):
    drawn = np.searchsorted(bank.starts, bank.draw(4000, rng, chances), side='right') - 1
    return np.bincount(drawn, minlength=3) / len(drawn)

  np.testing.assert_allclose(shares(None), [1 / 3] * 3, atol=0.03)
  inverse = class_chances(bank, 'inverse', {'cat': 80, 'dog': 20, 'bird': 1})
  np.testing.assert_allclose(inverse, np.array([1, 4, 80]) / 85)  # of the owl there is none: one
  np.testing.assert_allclose(shares(inverse), inverse, atol=0.03)
  np.testing.assert_allclose(class_chances(bank, 'instance'), [0.75, 0.125, 0.125])
  assert class_chances(bank, 'category').sum() == pytest.approx(1)
  with pytest.raises(UserError, match='inverse needs the counts'):
    class_chances(bank, 'inverse')


def test_draws_of_the_first_do_not_depend_on_how_many(bank):
  few, many = (bank.draw(n, np.random.default_rng(3)) for n in (2, 9))
  assert few == many[:2] and set(bank.draw(200, np.random.default_rng(3))) == set(range(8))
  assert bank.draw(0, np.random.default_rng(3)) == []


def test_a_bank_of_some_classes_and_of_none(pictures):
  source = Records([generated(0, 'cat'), generated(0, 'dog')])
  assert open_bank(source, labels=['dog', 'owl']).labels == ('dog',)
  with pytest.raises(UserError, match=r"list:: no instance of the classes asked for.*mean 'cat'"):
    open_bank(source, labels=['cats'])
  for records in ([], [Record(id='a', image=b'')], [generated(0, 'cat', rle='')]):
    with pytest.raises(UserError, match='no record with a mask'):
      open_bank(Records(records))
  with pytest.raises(UserError, match='no record with a mask of 17 pixels'):
    open_bank(source, least_pixels=17)
  assert open_bank(pictures).labels == ('box',), 'real objects can be pasted as well'


def test_damaged_instances_say_where(bank):
  broken = Records([generated(0, 'cat')])
  opened = open_bank(broken)
  for record, message in (
    (dataclasses.replace(broken[0], image=b'\x89PNG\r\n\x1a\n'), 'record cat-0: corrupt'),
    (dataclasses.replace(generated(0, 'cat', 20), truth=broken[0].truth), 'not of the size'),
    (generated(0, 'dog'), "holds no 'cat' any more"),
    (generated(0, 'cat', size=[16]), 'nothing sound'),
    (dataclasses.replace(broken[0], labels=()), 'no label'),
  ):
    broken.records = [record]
    with pytest.raises(UserError, match=message):
      opened.load(0)


def test_objects_of_a_scene_and_their_sizes(pictures):
  (box,) = outlines(pictures[3])  # of the hidden one nothing is seen
  assert (box.label, box.box, box.area) == ('box', (3, 4, 8, 8), 64)
  assert box.mask().sum() == 64 and box.mask()[4, 3]
  assert outlines(Record(id='a', image=b'')) == []
  sizes = measure_sizes(Records([*pictures.records, generated(0, 'cat'), generated(2, 'cat')]))
  assert sizes['box'].count == 6
  assert sizes['box'].mean == pytest.approx(0.25) and sizes['box'].spread < 1e-6
  roots = [4 / 16, 6 / 16]
  assert sizes['cat'].mean == pytest.approx(np.mean(roots))
  assert sizes['cat'].spread == pytest.approx(np.std(roots))


def test_the_built_in_scenes_are_understood():
  source = open_source('emoji:scenes?size=32&count=8&concepts=12')
  for i in range(8):
    record = source[i]
    for outline in outlines(record):
      assert outline.label in record.labels
      assert rle.box_of(outline.mask()) == outline.box


def test_a_pasted_record_says_what_is_in_it(bank, pictures):
  paste = CopyPaste(bank, PasteConfig(least=2, most=2, smallest=0.2, largest=0.3))
  record = PasteSource(pictures, paste, seed=2)[2]
  image = decode_image(record.image)
  found = outlines(record)
  assert len(found) == 3 and found[0].label == 'box'
  for outline in found:
    colour = np.array(COLOURS.get(outline.label, (255, 255, 255)))
    np.testing.assert_allclose(image[outline.mask()], np.tile(colour, (outline.area, 1)), atol=2)
    assert rle.box_of(outline.mask()) == outline.box
  rest = ~np.logical_or.reduce([o.mask() for o in found])
  assert (image[rest] == 90).all()
  assert record.labels == ('box', *dict.fromkeys(o.label for o in found[1:]))
  assert record.modality == 'real' and record.captions == pictures[2].captions
  assert record.truth['pasted'] == {'onto': 'real-2', 'count': 2}
  assert set(record.truth) == {'instances', 'size', 'pasted'}
  assert all(o.source.startswith(o.label) for o in found[1:])


def test_captions_and_labels_follow(bank, pictures):
  config = PasteConfig(least=1, most=1, captions='add')
  record = PasteSource(pictures, CopyPaste(bank, config), seed=0)[0]
  label = record.labels[-1]
  article = 'an' if label == 'owl' else 'a'
  assert record.captions[0] == f'A box, with {article} {label}'
  # what covers all leaves nothing of the box
  config = PasteConfig(least=1, most=1, smallest=1.0, largest=1.0)
  record = PasteSource(pictures, CopyPaste(bank, config), seed=0)[0]
  assert 'box' not in record.labels and len(record.labels) == 1
  config = PasteConfig(most=0)
  record = PasteSource(pictures, CopyPaste(bank, config), seed=0)[0]
  assert record.labels == ('box',)
  np.testing.assert_array_equal(decode_image(record.image), decode_image(pictures[0].image))


def test_pasting_twice_keeps_the_first(bank, pictures):
  config = PasteConfig(least=2, most=2, smallest=0.1, largest=0.2, captions='add')
  once = PasteSource(pictures, CopyPaste(bank, config), seed=0)
  twice = PasteSource(once, CopyPaste(bank, config), seed=5)[1]
  assert len(outlines(twice)) == 5 and twice.truth['pasted']['count'] == 2


def test_a_source_is_the_same_in_any_order(bank, pictures):
  paste = CopyPaste(bank, PasteConfig(mirror=True))
  source = PasteSource(pictures, paste, seed=7, times=2)
  assert len(source) == 12 and len(set(source.ids())) == 12
  assert source.ids() == [source[i].id for i in range(12)]
  assert list(source.pair_ids()) == [''] * 12
  backwards = [source[i] for i in reversed(range(12))][::-1]
  assert backwards == [source[i] for i in range(12)]
  assert source[0].image != source[6].image and source[6].id == 'real-0-paste1'
  other = PasteSource(pictures, paste, seed=8, times=2)
  assert other[0].image != source[0].image and other.spec != source.spec
  with pytest.raises(IndexError):
    source[12]
  pictures.licence, bank.source.licence = 'CC0', 'CC BY 4.0'
  assert PasteSource(pictures, CopyPaste(bank), seed=7).licence == 'CC0 and CC BY 4.0'
  for changes in ({'seed': -1}, {'seed': 0, 'times': 0}):
    with pytest.raises(UserError, match='paste: '):
      PasteSource(pictures, paste, **changes)


def test_as_a_transform_of_grain(bank, pictures):
  """Anew each epoch, and alike however many threads read."""
  paste = CopyPaste(bank, PasteConfig(least=1, most=4))
  dataset = grain.MapDataset.source(pictures).seed(0).repeat(2).random_map(paste)
  first = [to_record(dataset[i]) for i in range(len(dataset))]
  assert first[0].image != first[6].image
  threads = dataset.to_iter_dataset(grain.ReadOptions(num_threads=3))
  assert [to_record(picture) for picture in threads] == first


def test_training_reads_it_and_resumes(bank, pictures, tmp_path):
  source = PasteSource(pictures, CopyPaste(bank, PasteConfig()), seed=0)
  tokenizer = train_tokenizer([c for r in pictures.records for c in r.captions], 270)

  def iterator():
    return train_iterator(
      [Part(source)],
      batch_size=4,
      length=8,
      tokenizer=tokenizer,
      transform=Transform(32, 'train'),
      seed=0,
      quarantine=Quarantine(tmp_path / 'q.jsonl', 0.0, 1),
    )

  batches = iterator()
  next(batches)
  state = batches.get_state()
  wanted = next(batches)
  again = iterator()
  again.set_state(state)
  np.testing.assert_array_equal(next(again)['image'], wanted['image'])


def test_damaged_pictures_are_named(bank):
  paste = CopyPaste(bank, PasteConfig(least=1, most=1))
  rng = np.random.default_rng(0)
  with pytest.raises(UserError, match='record x: format'):
    paste.random_map(Record(id='x', image=b'GIF89a'), rng)
  wrong = dataclasses.replace(real(0), image=encode_png(np.zeros((8, 8, 3), np.uint8)))
  with pytest.raises(UserError, match='real-0: objects in a picture of 32 x 32'):
    paste.random_map(wrong, rng)


def test_coco_round_trip(bank, pictures, tmp_path):
  config = PasteConfig(most=5, smallest=0.1, largest=0.3)
  source = PasteSource(pictures, CopyPaste(bank, config), seed=0, times=2)
  folder = tmp_path / 'pasted'
  manifest = write_pasted(source, folder, shards=3, categories=['owl', 'box'], progress=False)
  assert manifest.complete and manifest.total == 12
  assert sorted(os.listdir(folder))[0] == 'annotations.json'
  coco = COCO(str(folder / 'annotations.json'))
  names = {c['id']: c['name'] for c in coco.loadCats(coco.getCatIds())}
  assert names[1] == 'owl' and names[2] == 'box' and set(names.values()) == {'box', *COLOURS}
  shards = open_source(f'arrayrecord:{folder}')
  by_id = {shards[i].id: shards[i] for i in range(len(shards))}
  assert len(coco.getImgIds()) == 12
  for image in coco.loadImgs(coco.getImgIds()):
    record = by_id[image['record_id']]
    assert (image['width'], image['height']) == (32, 32)
    found = coco.loadAnns(coco.getAnnIds(image['id']))
    wanted = outlines(record)
    assert [names[a['category_id']] for a in found] == [o.label for o in wanted]
    for annotation, outline in zip(found, wanted, strict=True):
      np.testing.assert_array_equal(coco.annToMask(annotation), outline.mask())
      assert annotation['area'] == outline.mask().sum() and annotation['iscrowd'] == 0
      assert tuple(annotation['bbox']) == rle.box_of(outline.mask())
  assert json.loads((folder / 'annotations.json').read_text())['licenses'][0]['name'] == 'CC0'
  with pytest.raises(UserError, match='holds the shards of'):
    write_pasted(source, folder, shards=3, progress=False)
  COCO(str(folder / 'annotations.json'))  # and is not harmed by the attempt


def test_a_failure_leaves_nothing_behind(bank, pictures, tmp_path, monkeypatch):
  source = PasteSource(pictures, CopyPaste(bank), seed=0)
  folder = tmp_path / 'pasted'
  pictures.records[4] = dataclasses.replace(real(4), image=b'')
  with pytest.raises(UserError, match='real-4'):
    write_pasted(source, folder, shards=2, progress=False)
  assert os.listdir(folder) == []
  pictures.records[4] = real(4)
  # a kill between the annotations and the shards: the next run takes over
  monkeypatch.setattr('align_jax.storage.remove', lambda path: None)
  with monkeypatch.context() as patch:
    patch.setattr('align_jax.data.shards.ShardWriter.commit', lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      write_pasted(source, folder, shards=2, progress=False)
  assert sorted(os.listdir(folder)) == ['annotations.json', MANIFEST]
  monkeypatch.undo()
  assert write_pasted(source, folder, shards=2, progress=False).complete
  assert load_manifest(str(folder)).total == 6


def test_boxes_without_masks(tmp_path, bank):
  """A record of which only boxes are known."""
  record = dataclasses.replace(
    real(0),
    truth={'size': [32, 32], 'instances': [{'label': 'box', 'box': [0, 4, 8, 8], 'rle': ''}]},
  )
  source = PasteSource(Records([record]), CopyPaste(bank, PasteConfig(most=0)), seed=0)
  (outline,) = outlines(source[0])
  assert outline.mask() is None and outline.area == 64
  assert outline.root_area == pytest.approx(math.sqrt(64 / 1024))
  write_pasted(source, tmp_path / 'out', shards=1, progress=False)
  (entry,) = json.loads((tmp_path / 'out/annotations.json').read_text())['annotations']
  assert entry['segmentation'] == [] and entry['bbox'] == [0, 4, 8, 8] and entry['area'] == 64
