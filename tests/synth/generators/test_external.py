import io
import json
import os
import tarfile

import numpy as np
import pytest

from align_jax.data.sources import open_source
from align_jax.errors import UserError
from align_jax.synth.generators.external import ExternalConfig, ExternalImages
from tests import tiny


def png(seed=0, size=32):
  return tiny.png(tiny.picture('red', 'disc', seed, size))


def write_tar(path, members):
  with tarfile.open(path, 'w') as tar:
    for name, data in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))
  return path


def opened(source, **settings):
  return ExternalImages(ExternalConfig(str(source), **settings), 'ext', 'config.generators[1]')


def listed(folder, lines):
  for i, line in enumerate(lines):
    (folder / line['file']).write_bytes(png(i))
  (folder / 'captions.jsonl').write_text('\n'.join(map(json.dumps, lines)))
  return folder


def brief(external):
  return [(r.id, r.category, r.text, r.strategy) for r in external.rows()]


def test_a_listing(tmp_path):
  lines = [
    {'file': 'a.png', 'label': 'apple', 'prompt': 'one red apple', 'generator_id': 'sd:1'},
    {'file': 'b.png', 'label': 'bee', 'caption': 'a bee'},
  ]
  external = opened(listed(tmp_path, lines))
  assert brief(external) == [
    ('ext/a.png', 'apple', 'one red apple', 'external'),
    ('ext/b.png', 'bee', 'a bee', 'external'),
  ]
  assert external.rows()[0].attributes == {'generator': 'sd:1'}
  expected = np.asarray(tiny.picture('red', 'disc', 1))
  np.testing.assert_array_equal(external.image('ext/b.png'), expected)
  assert external.failure('ext/b.png') == ''


def test_texts_beside_images(tmp_path):
  (tmp_path / 'bee').mkdir()
  (tmp_path / 'bee' / 'x.png').write_bytes(png())
  (tmp_path / 'bee' / 'x.txt').write_text(' a bee\n on a flower\n')
  (tmp_path / 'loose.jpg').write_bytes(png())
  with pytest.raises(UserError, match=r'loose\.jpg: no label .* config\.generators\[1\]\.category'):
    opened(tmp_path)
  external = opened(tmp_path, category='thing')
  assert brief(external) == [
    ('ext/bee/x.png', 'bee', 'a bee on a flower', 'external'),
    ('ext/loose.jpg', 'thing', 'thing', 'external'),
  ]
  limited = opened(f'folder:{tmp_path}?limit=1', category='thing')
  assert len(limited.rows()) == 1 and limited.image('ext/bee/x.png').shape == (32, 32, 3)


def test_one_subfolder_a_class(tmp_path):
  tiny.photo_folder(tmp_path, each=1)
  external = opened(tmp_path)
  assert {(r.category, r.text) for r in external.rows()} >= {('red disc', 'a photo of a red disc')}
  assert [r.id for r in external.rows()] == [
    f'ext/{i}' for i in open_source(f'folder:{tmp_path}').ids()
  ]


def test_a_tar(tmp_path):
  members = {'1.png': png(1), '1.txt': b'a bee', '1.cls': b'bee', '2.png': png(2), '2.cls': b'ant'}
  external = opened(write_tar(tmp_path / 'a.tar', members))
  assert brief(external) == [
    ('ext/a/1', 'bee', 'a bee', 'external'),
    ('ext/a/2', 'ant', 'a photo of a ant', 'external'),
  ]
  assert external.image('ext/a/2').shape == (32, 32, 3)


def test_shards_of_generated_images(tmp_path):
  tiny.photo_folder(tmp_path / 'photos', each=1)
  source = open_source(f'folder:{tmp_path}/photos')
  spec = tiny.generated_shards(tmp_path / 'shards', [source[i] for i in range(len(source))])
  external = opened(spec)
  row = external.rows()[0]
  assert row.attributes == {'generator': 'tiny'} and row.category in ('blue disc', 'blue square')
  assert external.settings['source'] == spec and external.settings['licence'] == 'CC0'


def test_images_that_are_none(tmp_path):
  lines = [{'file': f'{n}.png', 'label': 'x'} for n in ('whole', 'cut', 'small', 'text', 'gone')]
  listed(tmp_path, lines)
  (tmp_path / 'cut.png').write_bytes(png()[:200])
  (tmp_path / 'small.png').write_bytes(png(size=8))
  (tmp_path / 'text.png').write_text('no picture')
  external = opened(tmp_path)
  (tmp_path / 'gone.png').unlink()
  reasons = [external.failure(row.id) for row in external.rows()]
  assert reasons == ['', 'corrupt', 'too_small', 'format', 'unreadable']
  assert [external.image(r.id) is None for r in external.rows()] == [bool(r) for r in reasons]
  assert opened(listed(tmp_path, lines), max_pixels=100).failure('ext/whole.png') == 'too_large'


def test_its_version_follows_from_what_it_holds(tmp_path):
  lines = [{'file': 'a.png', 'label': 'x', 'caption': 'one'}]
  first = opened(listed(tmp_path, lines)).generator_id
  assert first == opened(tmp_path).generator_id and first.startswith('external:')
  (tmp_path / 'a.png').write_bytes(png(9))
  second = opened(tmp_path)
  lines[0]['caption'] = 'two'
  listed(tmp_path, lines)
  assert len({first, second.generator_id, opened(tmp_path).generator_id}) == 3
  assert opened(tmp_path, version='2').generator_id == 'external:2'


@pytest.mark.parametrize('layout', ['classes', 'texts', 'text link', 'listing'])
def test_a_link_out_of_the_folder_is_refused(tmp_path, layout):
  secret = tmp_path / 'secret.png'
  secret.write_bytes(png())
  root = tmp_path / 'root'
  (root / 'x').mkdir(parents=True)
  image = root / 'x' / 'a.png'
  if layout == 'text link':
    image.write_bytes(png())
    os.symlink(secret, root / 'x' / 'a.txt')
  else:
    os.symlink(secret, image)
  if layout == 'texts':
    (root / 'x' / 'a.txt').write_text('a')
  if layout == 'listing':
    (root / 'captions.jsonl').write_text(json.dumps({'file': 'x/a.png', 'label': 'x'}))
  with pytest.raises(UserError, match='link'):
    opened(root)


@pytest.mark.parametrize('name', ['../a.png', '/a.png'])
def test_a_path_out_of_the_archive_is_refused(tmp_path, name):
  with pytest.raises(UserError, match='unsafe path'):
    opened(write_tar(tmp_path / 'a.tar', {name: png(), f'{name[:-4]}.cls': b'x'}))
  (tmp_path / 'captions.jsonl').write_text(json.dumps({'file': name, 'label': 'x'}))
  with pytest.raises(UserError, match='leaves the folder'):
    opened(tmp_path)


def test_bad_sources_are_named(tmp_path):
  with pytest.raises(UserError, match=r'config\.generators\[1\]\.source'):
    opened('')
  with pytest.raises(UserError, match='no scheme'):
    opened(tmp_path / 'nowhere')
  with pytest.raises(UserError, match='unknown scheme'):
    opened('nothing:here')
  with pytest.raises(UserError, match='min_side'):
    opened(tmp_path, min_side=0)
  (tmp_path / 'x').mkdir()
  with pytest.raises(UserError, match='no images'):
    opened(tmp_path)
  (tmp_path / 'x' / 'a.png').write_bytes(png())
  (tmp_path / 'x' / 'a.txt').write_bytes(b'caf\xe9')
  with pytest.raises(UserError, match=r'a\.txt: not UTF-8'):
    opened(tmp_path)
