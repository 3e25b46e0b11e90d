"""SugarCrepe's files and those of SugarCrepe++."""

import json
import pickle

import pytest

from align_jax.data.pair_sources import open_pairs
from align_jax.errors import UserError
from tests.tiny import picture, png

ITEM = {'filename': 'a.jpg', 'caption': 'a red disc', 'negative_caption': 'a blue disc'}
PLUS = {'id': 0, **ITEM, 'caption2': 'a disc that is red'}


@pytest.fixture
def folder(tmp_path):
  (tmp_path / 'val2017').mkdir()
  for i, name in enumerate('ab'):
    (tmp_path / 'val2017' / f'{name}.jpg').write_bytes(png(picture('red', 'disc', i)))
  return tmp_path


def open_folder(folder, options=''):
  return open_pairs(f'sugarcrepe:{folder}?images={folder}/val2017{options}')


def write(folder, category, value):
  (folder / f'{category}.json').write_text(json.dumps(value))


def test_sugarcrepe(folder):
  write(folder, 'swap_obj', {'0': ITEM, '7': {**ITEM, 'filename': 'b.jpg'}})
  write(folder, 'add_att', {'0': ITEM})
  source = open_folder(folder)
  assert source.ids() == ['swap_obj-0', 'swap_obj-7', 'add_att-0']
  assert source.categories == ['swap_obj', 'add_att'] and not source.plus_plus
  first, second, third = source
  assert (first.task, third.task) == ('swap_obj', 'add_att')
  assert [c.text for c in first.candidates] == ['a red disc', 'a blue disc']
  assert first.positive == first.candidates[0]
  assert first.query.id == third.query.id != second.query.id
  assert second.query.images == ((folder / 'val2017/b.jpg').read_bytes(),)
  assert [r.id for r in pickle.loads(pickle.dumps(source))] == source.ids()
  assert open_folder(folder, '&categories=add_att').ids() == ['add_att-0']
  assert open_folder(folder, '&limit=1').ids() == ['swap_obj-0', 'add_att-0']


def test_sugarcrepe_plus_plus(folder):
  write(folder, 'replace_att', [PLUS])
  source = open_folder(folder)
  assert source.plus_plus
  texts = [c.text for c in source[0].candidates]
  assert texts == ['a red disc', 'a disc that is red', 'a blue disc']
  write(folder, 'swap_obj', [ITEM])
  with pytest.raises(UserError, match='put them apart'):
    open_folder(folder)


def test_missing_images_and_bad_items(folder):
  write(folder, 'swap_obj', [ITEM, {**ITEM, 'filename': 'no.jpg'}])
  with pytest.raises(UserError, match=r'item 1: no image .no.jpg.*missing=skip'):
    open_folder(folder)
  source = open_folder(folder, '&missing=skip')
  assert len(source) == 1 and source.skipped == {'image not there': 1}
  for item, message in (
    ({**ITEM, 'filename': '../a.jpg'}, 'leaves'),
    ({**ITEM, 'caption': ' '}, 'no text in "caption"'),
    ({'caption': 'a'}, 'no text in "filename"'),
    ('a', 'expected an object'),
  ):
    write(folder, 'swap_obj', [item])
    with pytest.raises(UserError, match=message):
      open_folder(folder)
  write(folder, 'swap_obj', [ITEM, PLUS])
  with pytest.raises(UserError, match='in some items only'):
    open_folder(folder)
  (folder / 'swap_obj.json').write_text('[')
  with pytest.raises(UserError, match='not JSON'):
    open_folder(folder)
  with pytest.raises(UserError, match="unknown categories 'swap'"):
    open_folder(folder, '&categories=swap')
  with pytest.raises(UserError, match=r'no file such as replace_obj\.json'):
    open_pairs(f'sugarcrepe:{folder}/val2017')
