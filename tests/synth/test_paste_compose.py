import numpy as np
import pytest

from align_jax.errors import UserError
from align_jax.synth.paste.compose import Instance, Placement, Thing, compose, resize_rgba
from align_jax.synth.paste.objects import Size
from align_jax.synth.paste.placement import PasteConfig, place

GREY = np.full((8, 10, 3), 100, np.uint8)


def instance(height: int, width: int, colour=(200, 10, 20), label: str = 'cat') -> Instance:
  pixels = np.zeros((height, width, 4), np.uint8)
  pixels[...] = (*colour, 255)
  return Instance(f'{label}-0', label, pixels)


def rectangle(x: int, y: int, width: int, height: int) -> np.ndarray:
  mask = np.zeros(GREY.shape[:2], bool)
  mask[y : y + height, x : x + width] = True
  return mask


def test_exact_pixels_box_and_mask():
  cut = instance(2, 3)
  cut.pixels[0, 0] = (1, 2, 3, 0)  # not part of it, whatever colour it has
  out = compose(GREY, [], [Placement(cut, (4, 5, 3, 2))])
  wanted = GREY.copy()
  wanted[5:7, 4:7] = (200, 10, 20)
  wanted[5, 4] = 100
  np.testing.assert_array_equal(out.image, wanted)
  (pasted,) = out.pasted
  mask = rectangle(4, 5, 3, 2)
  mask[5, 4] = False
  np.testing.assert_array_equal(pasted.mask, mask)
  assert (pasted.label, pasted.box, pasted.source) == ('cat', (4, 5, 3, 2), 'cat-0')
  assert (GREY == 100).all(), 'the picture itself is not changed'


def test_mirror():
  cut = instance(2, 3)
  cut.pixels[0, 0, 3] = 0
  out = compose(GREY, [], [Placement(cut, (4, 5, 3, 2), mirror=True)])
  assert out.image[5, 6, 0] == 100 and out.image[5, 4, 0] == 200


def test_what_is_beneath_is_mended():
  things = [
    Thing('half', (0, 0, 4, 2), rectangle(0, 0, 4, 2)),
    Thing('free', (8, 6, 2, 2), rectangle(8, 6, 2, 2)),
    Thing('gone', (2, 0, 2, 2), rectangle(2, 0, 2, 2)),
  ]
  out = compose(GREY, things, [Placement(instance(4, 3), (2, 0, 3, 4))])
  assert [t.label for t in out.things] == ['half', 'free']
  np.testing.assert_array_equal(out.things[0].mask, rectangle(0, 0, 2, 2))
  assert out.things[0].box == (0, 0, 2, 2)
  np.testing.assert_array_equal(out.things[1].mask, things[1].mask)


@pytest.mark.parametrize(('least', 'left'), [(0.0, 1), (0.25, 1), (0.26, 0)])
def test_mostly_covered_objects_are_dropped(least, left):
  """A quarter of it is left."""
  things = [Thing('dog', (0, 0, 4, 2), rectangle(0, 0, 4, 2))]
  out = compose(GREY, things, [Placement(instance(2, 3), (1, 0, 3, 2))], least_visible=least)
  assert len(out.things) == left
  boxes = [Thing('dog', (0, 0, 4, 2))]
  out = compose(GREY, boxes, [Placement(instance(2, 3), (1, 0, 3, 2))], least_visible=least)
  assert [t.box for t in out.things] == [(0, 0, 4, 2)] * left, 'a box stays as it is'


def test_wholly_covered_is_dropped_whatever_the_limit():
  things = [Thing('dog', (0, 0, 2, 2), rectangle(0, 0, 2, 2)), Thing('box', (0, 0, 2, 2))]
  out = compose(GREY, things, [Placement(instance(3, 3), (0, 0, 3, 3))], least_visible=0.0)
  assert out.things == ()


def test_later_ones_lie_on_earlier_ones():
  low, high = instance(2, 4, label='low'), instance(2, 4, (0, 0, 255), 'high')
  out = compose(GREY, [], [Placement(low, (0, 0, 4, 2)), Placement(high, (1, 0, 4, 2))])
  assert [t.label for t in out.pasted] == ['low', 'high']
  np.testing.assert_array_equal(out.pasted[0].mask, rectangle(0, 0, 1, 2))
  np.testing.assert_array_equal(out.pasted[1].mask, rectangle(1, 0, 4, 2))
  assert out.image[0, 1, 2] == 255 and out.image[0, 0, 0] == 200
  out = compose(GREY, [], [Placement(low, (0, 0, 4, 2)), Placement(high, (0, 0, 4, 2))])
  assert [t.label for t in out.pasted] == ['high']


def test_what_reaches_over_the_border_is_cut_off():
  out = compose(GREY, [], [Placement(instance(4, 4), (-2, -1, 4, 4))])
  np.testing.assert_array_equal(out.pasted[0].mask, rectangle(0, 0, 2, 3))
  assert out.pasted[0].box == (0, 0, 2, 3)
  out = compose(GREY, [], [Placement(instance(4, 4), (8, 6, 4, 4))])
  assert out.pasted[0].box == (8, 6, 2, 2)
  for box in ((-4, 0, 4, 4), (10, 0, 4, 4), (0, 8, 4, 4), (9, 7, 4, 4)):  # outside, or one pixel
    out = compose(GREY, [], [Placement(instance(4, 4), box)])
    assert out.pasted == () and (out.image == GREY).all()


def test_larger_than_the_picture_and_without_pixels():
  out = compose(GREY, [], [Placement(instance(20, 30), (-5, -5, 30, 20))])
  assert out.pasted[0].mask.all() and out.pasted[0].box == (0, 0, 10, 8)
  empty = Instance('e', 'cat', np.zeros((3, 3, 4), np.uint8))
  assert compose(GREY, [], [Placement(empty, (0, 0, 3, 3))]).pasted == ()
  assert compose(GREY, [], []).image.tolist() == GREY.tolist()


def test_feathered_edge():
  """In the middle the instance alone, half of it at the edge, nothing outside."""
  grey = np.full((40, 40, 3), 100, np.uint8)
  out = compose(grey, [], [Placement(instance(24, 24), (8, 8, 24, 24))], feather=1.0)
  row = out.image[20, :, 0].astype(int)
  assert (row[:8] == 100).all() and (row[32:] == 100).all()
  assert (row[12:28] == 200).all()
  inside = row[8:12]
  assert 160 < inside[0] < 180 < inside[1] < 200 == inside[2]
  np.testing.assert_array_equal(row, row[::-1])
  assert out.pasted[0].mask.sum() == 24 * 24, 'the mask is hard'


def test_resizing_lets_no_colour_bleed_in():
  pixels = np.zeros((16, 16, 4), np.uint8)
  pixels[...] = (0, 255, 0, 0)  # transparent green
  pixels[:, :8] = (200, 0, 0, 255)
  small = resize_rgba(pixels, 5, 5)
  solid = small[..., 3] >= 128
  assert solid.any() and small.shape == (5, 5, 4)
  assert small[solid][:, 1].max() <= 2 and small[solid][:, 0].min() >= 195
  assert resize_rgba(pixels, 16, 16) is pixels


def test_a_mask_of_another_size():
  with pytest.raises(UserError, match="object 'dog': a mask of 3 x 2 in a picture of 10 x 8"):
    compose(GREY, [Thing('dog', (0, 0, 1, 1), np.ones((2, 3), bool))], [])


def root_areas(sizes, config, count: int = 400, side: int = 100) -> np.ndarray:
  things = [instance(10, 10)] * count
  placements = place(things, side, side, sizes, config, np.random.default_rng(0))
  for x, y, w, h in (p.box for p in placements):
    assert 0 <= x <= side - w and 0 <= y <= side - h
  return np.array([np.sqrt(w * h) / side for _, _, w, h in (p.box for p in placements)])


def test_sizes_are_those_of_the_class_in_real_pictures():
  found = root_areas({'cat': Size(0.3, 0.05, 100)}, PasteConfig())
  assert found.mean() == pytest.approx(0.3, abs=0.01)
  # a normal distribution clipped at two deviations has a spread of 0.96
  assert found.std() == pytest.approx(0.05 * 0.96, abs=0.005)
  assert found.min() >= 0.195 and found.max() <= 0.405
  assert root_areas({'cat': Size(0.3, 0.0, 1)}, PasteConfig()).std() > 0.05, 'one says no spread'
  assert root_areas({'cat': Size(0.3, 0.0, 9)}, PasteConfig()).std() < 1e-9


def test_sizes_without_real_pictures_are_the_configs():
  found = root_areas({'dog': Size(0.9, 0.0, 9)}, PasteConfig(smallest=0.1, largest=0.4))
  assert found.min() >= 0.095 and found.max() <= 0.405
  assert found.mean() == pytest.approx(0.25, abs=0.02)


def test_size_is_of_the_mask_not_of_its_box():
  cut = instance(10, 10)
  cut.pixels[:, 5:, 3] = 0  # half of the box
  config = PasteConfig(smallest=0.2, largest=0.2)
  (placement,) = place([cut], 100, 100, {}, config, np.random.default_rng(0))
  assert placement.box[2] == pytest.approx(20 * np.sqrt(2), abs=1)


@pytest.mark.parametrize(('height', 'width'), [(10, 500), (500, 10), (300, 300)])
def test_what_is_too_large_is_made_to_fit(height, width):
  config = PasteConfig(smallest=1.0, largest=1.0)
  (placement,) = place([instance(height, width)], 64, 32, {}, config, np.random.default_rng(0))
  x, y, w, h = placement.box
  assert 1 <= w <= 64 and 1 <= h <= 32 and 0 <= x <= 64 - w and 0 <= y <= 32 - h
  assert w == 64 or h == 32


def test_mirrored_half_the_time():
  things = [instance(4, 4)] * 200
  placements = place(things, 64, 64, {}, PasteConfig(mirror=True), np.random.default_rng(0))
  assert 70 < sum(p.mirror for p in placements) < 130
  placements = place(things, 64, 64, {}, PasteConfig(), np.random.default_rng(0))
  assert not any(p.mirror for p in placements)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'least': 3, 'most': 2}, 'config.paste.least'),
    ({'most': 10**6}, 'config.paste.most'),
    ({'smallest': 0.5, 'largest': 0.1}, 'config.paste.smallest'),
    ({'feather': -1.0}, 'config.paste.feather'),
    ({'least_visible': 2.0}, 'config.paste.least_visible'),
  ],
)
def test_bad_configs(changes, message):
  with pytest.raises(UserError, match=message):
    PasteConfig(**changes)
