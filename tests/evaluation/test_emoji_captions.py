"""Captions of emoji scenes, read by the grammar that writes them."""

import itertools

import pytest

from align_jax.data.emoji.captions import long_caption, noun_phrase, short_caption
from align_jax.data.emoji.colours import NATURAL, PALETTE
from align_jax.data.emoji.concepts import scene_concepts
from align_jax.data.emoji.scenes import Sampler, World
from align_jax.errors import UserError
from align_jax.evaluation.emoji_captions import Mention, caption_accuracy, scene_reader

TRUTH = {
  'objects': [
    {'label': 'cat', 'colour': 'red', 'count': 1},
    {'label': 'grapes', 'colour': 'blue', 'count': 2},
    {'label': 'fish', 'colour': 'natural', 'count': 3},
  ]
}
RIGHT = 'a red cat, two bunches of blue grapes and three fish'


def score(*captions, truth=TRUTH):
  found = caption_accuracy(captions, [truth] * len(captions))
  return {k: round(v, 4) for k, v in found.items()}


def test_every_phrase_of_the_pack_is_read():
  with pytest.raises(UserError):  # the reader knows them all
    scene_concepts(393)
  read = scene_reader().read
  some = itertools.cycle(
    [(NATURAL, 1, ''), ('red', 2, 'small'), ('grey', 3, ''), ('blue', 1, 'large')]
  )
  for concept, (colour, count, size) in zip(scene_concepts(392), some, strict=False):
    phrase = noun_phrase(concept, count, colour, size)
    told = f'{phrase} at the top left, on a light blue background'
    assert read(told) == [Mention(concept.name, colour, count)], phrase


def test_whole_captions_are_read():
  sampler = Sampler(World(scene_concepts(392), (NATURAL, *PALETTE), 1, 4, 0.0, 0))
  for index in range(200):
    scene = sampler.scene('test', index)
    there = [Mention(i.concept.name, i.colour, i.count) for i in scene.items]
    assert scene_reader().read(short_caption(scene)) == there
    assert scene_reader().read(long_caption(scene)) == there


@pytest.mark.parametrize(
  ('caption', 'mentions'),
  [
    ('A RED  cat!', [('cat', 'red', 1)]),
    ('a ball of blue yarn and a ball', [('yarn', 'blue', 1), ('ball', NATURAL, 1)]),
    ('a fire engine, a hot dog', [('fire engine', NATURAL, 1), ('hot dog', NATURAL, 1)]),
    ('one large purple t-shirt', [('t-shirt', 'purple', 1)]),
    ('two cat', [('cat', NATURAL, 2)]),  # bad grammar is still understood
    ('a catfish, the cat, a brown cat, four cats, a red a red', []),
    ('a light blue background', []),
    ('a piece of broccoli', []),
    ('', []),
  ],
)
def test_odd_captions(caption, mentions):
  assert scene_reader().read(caption) == [Mention(*m) for m in mentions]


def test_accuracy():
  perfect = {
    'object': 1, 'colour': 1, 'count': 1, 'attributes': 1, 'invented': 0, 'exact': 1,
    'objects': 3, 'captions': 1,
  }  # fmt: skip
  assert score(RIGHT) == perfect
  # the order does not matter, nor do sizes and places
  other = 'three small fish on the left, a red cat, two bunches of blue grapes'
  assert score(other) == perfect
  assert score('')['object'] == score('')['exact'] == score('')['invented'] == 0
  wrong = score('a blue cat, three bunches of blue grapes and a dog')
  assert wrong == {
    **perfect, 'object': 0.6667, 'colour': 0.3333, 'count': 0.3333, 'attributes': 0,
    'invented': 0.3333, 'exact': 0,
  }  # fmt: skip
  twice = score(f'{RIGHT} and a red cat')
  assert twice['exact'] == 0 and twice['invented'] == 0.25 and twice['attributes'] == 1
  both = score(RIGHT, '')
  assert both['exact'] == both['object'] == 0.5 and both['captions'] == 2


def test_what_goes_wrong():
  with pytest.raises(UserError, match='ground truth of 0 scenes'):
    caption_accuracy(['a'], [])
  with pytest.raises(UserError, match='no ground truth of emoji scenes'):
    caption_accuracy(['a'], [{}])
