"""Concepts, the distribution of scenes, what is held out, and what captions say."""

import collections
import itertools

import pytest

from align_jax.data.emoji import class_names
from align_jax.data.emoji.captions import long_caption, noun_phrase, places, short_caption
from align_jax.data.emoji.colours import NATURAL, PALETTE
from align_jax.data.emoji.concepts import Concept, scene_concepts, single_concepts
from align_jax.data.emoji.layout import position_word, relations
from align_jax.data.emoji.scenes import (
  Background,
  Item,
  Sampler,
  Scene,
  World,
  held_out_pairs,
  is_held_out,
)
from align_jax.errors import UserError

COLOURS = (NATURAL, *PALETTE)


def make_world(concepts=60, least=1, most=3, tail=0.0, seed=0, colours=COLOURS):
  return World(scene_concepts(concepts), colours, least, most, tail, seed)


def pairs_of(split, world, count):
  sampler = Sampler(world)
  scenes = [sampler.scene(split, i) for i in range(count)]
  return [[(item.concept, item.colour) for item in scene.items] for scene in scenes]


def test_more_concepts_begin_with_fewer_ones():
  assert class_names(30) == class_names(300)[:30]
  every = class_names(392)
  assert len(set(every)) == len(every)


def test_impossible_number_of_concepts_is_named():
  with pytest.raises(UserError, match='concepts=9999'):
    scene_concepts(9999)


def test_single_concepts_have_no_flags_no_skin_tones_and_unique_names():
  every = single_concepts()
  names = [concept.name for concept in every]
  assert len(every) > 1600
  assert len(set(names)) == len(names)
  assert not any('skin tone' in name or name.startswith('flag:') for name in names)
  assert {'cat', 'apple', 'face with tears of joy'} <= set(names)


def test_a_scene_depends_on_world_split_and_index_alone():
  world = make_world()
  first, second = Sampler(world), Sampler(make_world())
  for _ in range(5):
    first.scene('test', 3)
  assert first.scene('train', 7) == second.scene('train', 7)
  assert first.scene('train', 7) != second.scene('extra', 7)
  assert first.scene('train', 7) != Sampler(make_world(seed=1)).scene('train', 7)


@pytest.mark.parametrize('split', ['train', 'extra', 'test'])
def test_held_out_compositions_are_in_no_other_split(split):
  for scene in pairs_of(split, make_world(), 500):
    assert not any(is_held_out(*pair) for pair in scene)


def test_every_scene_of_compositions_holds_one_never_seen():
  for scene in pairs_of('compositions', make_world(), 300):
    assert sum(is_held_out(*pair) for pair in scene) == 1


def test_held_out_pairs_are_about_a_seventh_and_never_a_natural_colour():
  world = make_world(300)
  pairs = held_out_pairs(world)
  assert 0.10 < len(pairs) / (300 * len(PALETTE)) < 0.16
  assert all(colour != NATURAL and colour not in c.natural for c, colour in pairs)
  fewer = held_out_pairs(make_world(60))
  assert set(fewer) <= set(pairs)


def test_scenes_keep_to_the_limits():
  sampler = Sampler(make_world(least=2, most=4))
  sizes = collections.Counter()
  for i in range(300):
    scene = sampler.scene('train', i)
    sizes[len(scene.items)] += 1
    names = [item.concept.name for item in scene.items]
    assert len(set(names)) == len(names)
    assert sum(item.count for item in scene.items) <= 5
    assert [item.size for item in scene.items] == sorted(
      (item.size for item in scene.items), reverse=True
    )
    for item in scene.items:
      for x, y in item.centres:
        assert item.size / 2 <= x <= 1 - item.size / 2 + 1e-9
        assert item.size / 2 <= y <= 1 - item.size / 2 + 1e-9
  assert set(sizes) == {2, 3, 4}


def test_tail_makes_the_first_concepts_frequent():
  def share(tail):
    drawn = itertools.chain(*pairs_of('train', make_world(tail=tail), 400))
    counts = collections.Counter(concept.name for concept, _ in drawn)
    return sum(counts[name] for name in class_names(6)) / counts.total()

  assert share(0.0) < 0.15
  assert share(1.5) > 0.5


CAT = Concept('cat', '1', (), 'cats')
GRAPES = Concept('grapes', '2', (), '', 'bunch')


@pytest.mark.parametrize(
  'arguments, words',
  [
    ((CAT, 1, NATURAL), 'a cat'),
    ((CAT, 1, 'orange'), 'an orange cat'),
    ((CAT, 2, 'red', 'small'), 'two small red cats'),
    ((GRAPES, 1, 'green'), 'a bunch of green grapes'),
    ((GRAPES, 3, NATURAL), 'three bunches of grapes'),
    ((Concept('unicorn', '3', (), 'unicorns'), 1, NATURAL), 'a unicorn'),
    ((Concept('hourglass', '3', (), 'hourglasses'), 1, NATURAL), 'an hourglass'),
  ],
)
def test_noun_phrases(arguments, words):
  assert noun_phrase(*arguments) == words


def test_plurals():
  plurals = {concept.name: concept.plural for concept in scene_concepts(392)}
  assert plurals['cherry'] == 'cherries'
  assert plurals['mouse'] == 'mice'
  assert plurals['fox'] == 'foxes'
  assert plurals['key'] == 'keys'
  assert plurals['leaf'] == 'leaves'


def test_captions_tell_all_there_is():
  scene = Scene(
    items=(
      Item(CAT, 'blue', 0.84, ((0.2, 0.2),)),
      Item(GRAPES, NATURAL, 0.5, ((0.5, 0.5), (0.9, 0.5), (0.9, 0.55))),
    ),
    background=Background('white', 'light blue', across=True),
  )
  assert short_caption(scene) == 'a blue cat and three bunches of grapes'
  assert long_caption(scene) == (
    'a large blue cat at the top left, and three bunches of grapes in the centre and on the right, '
    'on a background that fades from white to light blue from left to right'
  )


def test_positions_and_relations():
  assert position_word(0.1, 0.9) == 'bottom left'
  assert position_word(0.5, 0.5) == 'centre'
  assert places([(0.5, 0.1), (0.5, 0.2)]) == 'at the top'
  assert relations([[(0.1, 0.5)], [(0.9, 0.5), (0.5, 0.55)]]) == [[0, 'left of', 1]]
  assert relations([[(0.1, 0.5), (0.6, 0.5)], [(0.5, 0.9)]]) == [[0, 'above', 1]]
