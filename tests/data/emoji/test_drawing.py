"""Sprites, recolouring, boxes and masks against the pixels themselves."""

import numpy as np
import pytest

from align_jax.data.emoji import decode_mask, encode_mask
from align_jax.data.emoji.colours import BACKGROUNDS, NATURAL, PALETTE, PaintPlan, paint
from align_jax.data.emoji.concepts import scene_concepts
from align_jax.data.emoji.drawing import Painter
from align_jax.data.emoji.scenes import Background, Item, Sampler, Scene, World, portrait

CONCEPTS = {concept.name: concept for concept in scene_concepts(120)}


@pytest.fixture(scope='module')
def painter():
  return Painter(64)


def main_colour(image, mask):
  """Returns the palette's name for the middle of the bright pixels under a mask."""
  pixels = image[mask].astype(float) / 255
  pixels = pixels[pixels.max(1) > 0.35]
  middle = np.median(pixels, axis=0)
  high = max(middle.max(), 1e-6)

  def distance(name):
    target = PALETTE[name]
    tone = 1 - target.saturation * (1 - np.array(target.pure))
    return np.abs(middle / high - tone).sum()

  return min(PALETTE, key=distance)


@pytest.mark.parametrize('colour', PALETTE)
@pytest.mark.parametrize('name', ['banana', 'apple', 'elephant', 'egg', 'bear', 'bat', 'pig'])
def test_the_colour_is_seen_whatever_the_drawing(painter, name, colour):
  drawing = painter.draw(portrait(CONCEPTS[name], colour))
  assert main_colour(drawing.image, decode_mask(drawing.masks[0])) == colour


def test_painting_keeps_black_outlines_and_the_order_of_shades():
  rgb = np.array([[[0, 0, 0], [0.5, 0.4, 0], [1, 0.9, 0]]], np.float32)
  out = paint(rgb, 'blue', PaintPlan('all', 0.0, 1.0))
  assert out[0, 0].max() == 0
  assert out[0, 1].max() < out[0, 2].max()
  assert (out >= 0).all() and (out <= 1).all()


def test_main_hue_alone_is_painted_where_it_is_large(painter):
  natural = painter.draw(portrait(CONCEPTS['strawberry'], NATURAL)).image
  blue = painter.draw(portrait(CONCEPTS['strawberry'], 'blue')).image
  green = (natural[..., 1] > natural[..., 0] + 30) & (natural[..., 1] > natural[..., 2] + 30)
  assert green.sum() > 20
  assert (natural[green] == blue[green]).all(-1).mean() > 0.9


def test_masks_survive_their_code():
  rng = np.random.default_rng(0)
  for shape in [(5, 7), (1, 1), (8, 3)]:
    for mask in (rng.random(shape) < 0.4, np.zeros(shape, bool), np.ones(shape, bool)):
      code = encode_mask(mask)
      assert sum(code['counts']) == mask.size
      np.testing.assert_array_equal(decode_mask(code), mask)


def test_masks_run_down_the_columns_as_in_coco():
  mask = np.array([[0, 0], [1, 0], [1, 1]], bool)
  assert encode_mask(mask) == {'size': [3, 2], 'counts': [1, 2, 2, 1]}


def test_mask_of_a_wrong_length_is_refused():
  with pytest.raises(ValueError, match='runs sum to 3'):
    decode_mask({'size': [2, 2], 'counts': [1, 2]})


def test_boxes_and_masks_show_what_is_visible(painter):
  apple = Item(CONCEPTS['apple'], NATURAL, 0.6, ((0.4, 0.5),))
  egg = Item(CONCEPTS['egg'], NATURAL, 0.5, ((0.7, 0.5),))
  white = Background('white', 'white')
  alone = painter.draw(Scene((apple,), white))
  both = painter.draw(Scene((apple, egg), white))
  whole, covered, cover = map(decode_mask, [alone.masks[0], *both.masks])
  assert not (covered & cover).any()
  assert (covered <= whole).all()
  np.testing.assert_array_equal(covered, whole & ~cover)
  (x0, y0, x1, y1) = both.boxes[0][0]
  assert covered[y0:y1, x0:x1].sum() == covered.sum()
  assert covered[:, x0].any() and covered[:, x1 - 1].any()
  assert covered[y0].any() and covered[y1 - 1].any()


def test_outside_the_objects_is_background(painter):
  scene = Scene((Item(CONCEPTS['apple'], 'red', 0.5, ((0.3, 0.3),)),), Background('beige', 'beige'))
  image = painter.draw(scene).image
  assert tuple(image[-1, -1]) == BACKGROUNDS['beige']
  fade = painter.background(Background('white', 'beige', across=True))
  assert tuple(fade[0, 0]) == BACKGROUNDS['white']
  assert tuple(fade[0, -1]) == BACKGROUNDS['beige']
  assert (fade[0] == fade[-1]).all()


@pytest.mark.parametrize('size', [32, 256])
def test_objects_overlap_little_at_every_size(size):
  sampler = Sampler(World(tuple(CONCEPTS.values()), (NATURAL, 'blue'), 1, 4, 0.0, 0))
  painter = Painter(size)
  shares = []
  for i in range(25):
    scene = sampler.scene('train', i)
    masks = iter(painter.draw(scene).masks)
    for item in scene.items:
      whole = painter.sprite(item.concept, item.colour, round(item.size * size)).solid.sum()
      shares += [decode_mask(next(masks)).sum() / whole for _ in item.centres]
  assert min(shares) > 0.3
  assert np.mean(shares) > 0.95
