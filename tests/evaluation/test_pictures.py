import dataclasses
import io

import numpy as np
from PIL import Image

from align_jax.evaluation import pictures
from align_jax.evaluation.features import embed_source
from align_jax.evaluation.tasks import Embedded, EvalData


def pixels(png):
  return np.asarray(Image.open(io.BytesIO(png)))


def test_tiny_images_grow_by_whole_pixels():
  image = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
  np.testing.assert_array_equal(
    pixels(pictures.thumbnail(image, 24)), image.repeat(3, 0).repeat(3, 1)
  )


def test_large_images_shrink_and_keep_their_shape():
  image = np.full((300, 600, 3), 200, np.uint8)
  assert pixels(pictures.thumbnail(image, 96)).shape == (48, 96, 3)


def test_thumbnails_leave_out_what_is_missing_or_broken(world, list_source):
  broken = dataclasses.replace(world[0][1], image=b'no')
  source = list_source([world[0][0], broken])
  assert list(pictures.thumbnails(source, ['r1', 'r0', 'r9', 'r0'])) == ['r0']


def test_pair_rows_show_partner_image_and_prompt(world):
  test, generated = world
  (row,) = pictures.pair_rows(generated, test, ['g3'])
  assert row.title == 'a yellow square'
  assert [p.caption for p in row.pictures] == ['real', 'generated']
  assert pixels(row.pictures[0].png).shape == (96, 96, 3)


def test_neighbours_before_and_after(world, encoder):
  test, generated = world
  pairs = Embedded(encoder, EvalData(test, generated)).pairs
  rows = pictures.neighbour_rows({'before': pairs, 'after': pairs}, test, generated, ['r2', 'r3'])
  assert [row.title for row in rows] == ['before', 'after', 'before', 'after']
  assert [p.mark for p in rows[0].pictures].count('partner') == 1
  assert rows[0].pictures[0].mark == 'query'
  assert len(rows[0].pictures) == 6
  cosines = [float(p.caption) for p in rows[0].pictures[1:]]
  assert cosines == sorted(cosines, reverse=True)


def test_failures_show_the_right_image_then_the_wrong_ones(world, encoder):
  test, _ = world
  features = embed_source(encoder, test)
  turned = dataclasses.replace(features, text=-features.text)
  rows = pictures.retrieval_rows(turned, test, which='failures', count=3)
  assert len(rows) == 3
  for row in rows:
    assert [p.mark for p in row.pictures] == ['right', 'wrong', 'wrong', 'wrong']
    assert 'of 24)' in row.title
  assert len({row.title for row in rows}) == 3
  assert pictures.retrieval_rows(features, test, which='failures') == ()  # none to show


def test_examples_mark_shared_captions_right(world, encoder):
  test, _ = world
  rows = pictures.retrieval_rows(embed_source(encoder, test), test, which='examples', count=9)
  assert len(rows) == 6  # one a distinct caption
  assert {p.mark for row in rows for p in row.pictures} == {'right'}


def test_no_captions_no_rows(world, make_features, unit):
  assert pictures.retrieval_rows(make_features(unit(3)), world[0], which='examples') == ()


def test_shorten_cuts_at_a_word():
  assert pictures.shorten('short') == 'short'
  assert pictures.shorten('one two three', 9) == 'one two …'
