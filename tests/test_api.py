"""`align_jax.load`: a run or a folder, images of any kind."""

import numpy as np
import pytest
from PIL import ExifTags, Image

import align_jax
from align_jax.api import nearest, open_picture
from align_jax.encoder import load_run
from align_jax.errors import UserError
from align_jax.objectives import make_objective
from align_jax.train.loop import train
from tests import tiny


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp('api')
  photos = f'folder:{tiny.photo_folder(folder / "photos", size=48)}'
  config = tiny.config(photos, steps=2, model=tiny.TRACKS)
  train(config, make_objective(config.objective), folder / 'run')
  return folder


def test_every_kind_of_image_gives_the_same_vector(run):
  encoder = align_jax.load(f'run:{run / "run"}')
  path = next((run / 'photos').rglob('*.jpg'))
  picture = Image.open(path)
  pixels = np.asarray(picture.convert('RGB'))
  vectors = encoder.embed_images([path, str(path), path.read_bytes(), picture, pixels])
  assert vectors.shape == (5, 16)
  assert vectors.dtype == np.float32
  np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
  np.testing.assert_array_equal(vectors, np.repeat(vectors[:1], 5, axis=0))


@pytest.mark.parametrize('count', [1, 9, 40])
def test_a_vector_does_not_depend_on_its_neighbours(run, count):
  encoder = align_jax.load(str(run / 'run'))
  pictures = [tiny.picture('red', 'disc', i) for i in range(count)]
  texts = [f'{i} red discs' for i in range(count)]
  for embed, inputs in ((encoder.embed_images, pictures), (encoder.embed_texts, texts)):
    alone = np.concatenate([embed([one]) for one in inputs[:: max(1, count - 1)]])
    np.testing.assert_allclose(embed(inputs)[:: max(1, count - 1)], alone, atol=1e-5)


@pytest.mark.parametrize('kind', ['clear', 'turned'])
def test_a_picture_of_pillow_is_read_as_its_file_is(kind, tmp_path):
  picture = tiny.picture('red', 'disc', 0)
  if kind == 'clear':
    picture.putalpha(Image.linear_gradient('L').resize(picture.size))
    picture.save(tmp_path / 'a.png')
  else:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    picture.crop((0, 0, 20, 30)).save(tmp_path / 'a.png', exif=exif)
  found = open_picture(Image.open(tmp_path / 'a.png'))
  assert found.mode == 'RGB'
  np.testing.assert_array_equal(np.asarray(found), np.asarray(open_picture(tmp_path / 'a.png')))
  assert found.size == (picture.size if kind == 'clear' else (30, 20))
  if kind == 'clear':  # the top row is all but transparent: white
    assert np.asarray(found)[0].min() > 250


def test_tracks_are_the_encoders_tracks(run):
  picture = tiny.picture('red', 'disc', 0)
  pixels = np.asarray(picture)[None]
  whole = load_run(run / 'run')
  for track in ('real', 'generated'):
    found = align_jax.load(str(run / 'run'), track=track).embed_images([picture])
    np.testing.assert_allclose(found, whole.embed_images(pixels, track), atol=1e-6)


def test_nearest_is_a_sort_of_cosines():
  rng = np.random.default_rng(0)
  queries, candidates = rng.normal(size=(3, 8)), rng.normal(size=(20, 8))
  places, cosines = nearest(queries.astype(np.float32), candidates.astype(np.float32), 4)
  for row, query in enumerate(queries):
    expected = sorted(range(20), key=lambda i: -float(query @ candidates[i]))[:4]
    assert places[row].tolist() == expected
    np.testing.assert_allclose(cosines[row], candidates[expected] @ query, rtol=1e-5)
  assert nearest(queries, candidates[:2], 4)[0].shape == (3, 2)


def test_mistakes_name_the_image(run, tmp_path):
  encoder = align_jax.load(str(run / 'run'))
  (tmp_path / 'odd.jpg').write_bytes(b'no picture')
  whole = next((run / 'photos').rglob('*.jpg')).read_bytes()
  (tmp_path / 'torn.jpg').write_bytes(whole[: len(whole) // 2])
  for image, said in [
    (tmp_path / 'none.jpg', 'image 1: no file'),
    (tmp_path / 'odd.jpg', r'image 1: cannot be decoded \(format\)'),
    (Image.open(tmp_path / 'torn.jpg'), r'image 1: cannot be decoded \(corrupt\)'),
    (np.zeros((4, 4, 3), np.float32), r'image 1: an array of float32 \(4, 4, 3\)'),
  ]:
    with pytest.raises(UserError, match=said):
      encoder.embed_images([tiny.picture('red', 'disc', 0), image])
  with pytest.raises(UserError, match='the list of images is empty'):
    encoder.embed_images([])
  with pytest.raises(UserError, match='holds one track'):
    align_jax.load('hf:somewhere', track='generated')
