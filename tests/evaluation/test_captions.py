"""Captions of images, by every measure at once."""

import dataclasses

import numpy as np
import pytest

from align_jax.data.images import decode_image
from align_jax.data.questions import DESCRIBE
from align_jax.data.record import Record
from align_jax.data.sources import open_source
from align_jax.data.transforms import Transform
from align_jax.errors import UserError
from align_jax.evaluation.captions import (
  caption_all,
  check_tasks,
  evaluate_writer,
  limited,
  score_captions,
)

SCENES = 'emoji:scenes?size=32&concepts=24&max_objects=2&count=60&split=test'
SHARES = ('object', 'colour', 'count', 'attributes', 'exact')


class Writer:
  """Says the first caption of each image."""

  def __init__(self, source, size=32, say=lambda text: text):
    self.transform = Transform(size)
    self.asked = []
    self.known = {
      decode_image(record.image).tobytes(): say(record.captions[0])
      for record in (source[i] for i in range(len(source)))
    }

  def answer(self, images, questions, *, modality='real'):
    self.asked += [(modality, question) for question in questions]
    return [self.known[image.tobytes()] for image in images]


@pytest.fixture(scope='module')
def scenes():
  pytest.importorskip('resvg_py')
  pytest.importorskip('sacrebleu')
  return open_source(SCENES)


def test_who_says_what_is_known_is_perfect(scenes):
  writer = Writer(scenes)
  scores = evaluate_writer(writer, scenes, ('captions',), limit=40)
  assert scores['captions.asked'] == 40
  assert scores['captions.bleu4'] == pytest.approx(1)
  assert scores['captions.cider'] > 5
  assert all(scores[f'captions.{name}'] == 1 for name in SHARES)
  assert scores['captions.invented'] == 0
  assert 'captions.clip_score' not in scores
  assert set(writer.asked) == {('real', DESCRIBE)}
  # the long caption of a scene is asked for by another question, and is no reference
  longs = {scenes[i].truth['caption_long'] for i in range(len(scenes))}
  for each in caption_all(writer, scenes, modality='generated'):
    assert len(each.references) == 1 and not set(each.references) & longs
  assert writer.asked[-1] == ('generated', DESCRIBE)
  wrong = evaluate_writer(Writer(scenes, say=lambda text: 'a sofa'), scenes, ('captions',))
  assert wrong['captions.asked'] == 60
  assert all(wrong[f'captions.{name}'] == 0 for name in SHARES)


def test_a_judge_prefers_the_right_colour(world, encoder):
  pytest.importorskip('sacrebleu')
  source, _ = world
  right = score_captions(caption_all(Writer(source, 8), source), source, encoder)
  assert (None, None) not in encoder.calls and set(encoder.calls) == {('real', None)}
  wrong = caption_all(Writer(source, 8, lambda text: 'a white square'), source)
  less = score_captions(wrong, source, encoder)
  for name in ('captions.clip_score', 'captions.ref_clip_score'):
    assert 0 <= less[name] < right[name] <= 2.5
  # row by row, against the formula, wherever the source leaves the images
  assert score_captions(wrong[::-1], source, encoder) == pytest.approx(less)
  image = encoder.embed_images(np.stack([decode_image(r.image) for r in source.records]))
  text = encoder.embed_texts(['a white square'])[0]
  assert less['captions.clip_score'] == pytest.approx(
    2.5 * np.maximum(0, image @ text).mean(), rel=1e-5
  )
  # no emoji scenes: nothing is told object by object
  assert 'captions.object' not in right


def test_images_without_captions_are_left_out(world, list_source):
  source, _ = world
  bare = [dataclasses.replace(r, captions=()) for r in source.records[1:]]
  said = caption_all(Writer(source, 8), list_source([source.records[0], *bare]))
  assert [each.record_id for each in said] == ['r0']
  with pytest.raises(UserError, match='no record of list: has a caption to compare with'):
    caption_all(Writer(source, 8), list_source(bare))


def test_a_limit_takes_some_of_everything(world):
  source, _ = world
  assert limited(source, None) is source
  chosen = limited(source, 3)
  assert [chosen[i].id for i in range(len(chosen))] == ['r0', 'r12', 'r23']
  assert isinstance(chosen[0], Record)


def test_tasks_of_other_models_are_refused():
  check_tasks(None, '--tasks')
  check_tasks(('answers', 'captions'), '--tasks')
  for wrong in (('retrieval',), ('answers', 'retrieval')):
    with pytest.raises(UserError, match='--tasks: retrieval; of a model that answers, set answers'):
      check_tasks(wrong, '--tasks')
  with pytest.raises(UserError, match='--tasks: none; of a model'):
    check_tasks((), '--tasks')
