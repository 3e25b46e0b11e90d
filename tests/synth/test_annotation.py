import numpy as np
import pytest
from pycocotools import mask as coco

from align_jax.data.emoji.masks import decode_mask
from align_jax.data.images import decode_image
from align_jax.data.sources import open_source
from align_jax.errors import UserError
from align_jax.synth.annotation import regions, rle
from align_jax.synth.annotation.annotate import AnnotationConfig, annotate_part, make_masker
from align_jax.synth.annotation.grabcut import grabcut_mask
from align_jax.synth.annotation.matte import background_distance, matte_mask
from align_jax.synth.annotation.sam import corner_points
from align_jax.synth.hashes import perceptual_hash

DISC = np.hypot(*np.mgrid[-20:44, -24:40]) < 14  # 64 x 64, off the middle


def disc(background, colour=(200, 40, 30), seed: int | None = 0):
  """A disc before a background, with a little noise."""
  image = np.where(DISC[..., None], colour, background).astype(np.float32)
  if seed is not None:
    image += np.random.default_rng(seed).normal(0, 3, image.shape)
  return np.clip(np.round(image), 0, 255).astype(np.uint8)


FADE = np.linspace(90, 240, 64)[:, None, None] * np.ones((1, 64, 3))


def iou(a, b) -> float:
  return float((a & b).sum() / (a | b).sum())


def test_run_lengths_are_those_of_coco():
  rng = np.random.default_rng(0)
  for shape in ((7, 5), (1, 9), (40, 33)):
    mask = rng.random(shape) < 0.4
    text = rle.encode(mask)
    np.testing.assert_array_equal(rle.decode(text, *shape), mask)
    found = coco.toBbox({'size': list(shape), 'counts': text.encode()})
    np.testing.assert_array_equal(rle.box_of(mask), found)
  assert rle.box_of(np.zeros((3, 3), bool)) == (0, 0, 0, 0)


def test_unpacking_agrees_with_coco():
  rng = np.random.default_rng(1)
  for shape, chance in (((600, 500), 0.5), ((300, 7), 0.01), ((5, 900), 0.999), ((1, 1), 1.0)):
    mask = rng.random(shape) < chance
    text = rle.encode(mask)
    assert rle.area_of(text, *shape) == coco.area({'size': shape, 'counts': text}) == mask.sum()
    flat = np.repeat(np.arange(len(runs := rle.run_lengths(text, *shape))) % 2 == 1, runs)
    np.testing.assert_array_equal(flat.reshape(shape[::-1]).T, mask)
  # runs of no length, as other programs write them
  loose = coco.frPyObjects({'size': [2, 3], 'counts': [1, 2, 0, 1, 2, 0]}, 2, 3)['counts'].decode()
  assert rle.area_of(loose, 2, 3) == 3 and rle.decode(loose, 2, 3).sum() == 3


@pytest.mark.parametrize(
  'text', ['é', '', '~', '0', 'oooooooo', 'o' * 40 + '0', '{', '/', ' ', 'O']
)
def test_damaged_run_lengths(text):
  """Without a check some of these let pycocotools return whatever lies in memory."""
  with pytest.raises(UserError, match=r'mask of 4 x 3 pixels: damaged run lengths'):
    rle.decode(text, 3, 4)


def test_every_cut_is_noticed():
  text = rle.encode(DISC)
  for stop in range(len(text)):
    with pytest.raises(UserError, match='damaged run lengths'):
      rle.decode(text[:stop], 64, 64)
  with pytest.raises(UserError, match='damaged run lengths'):
    rle.decode(text, 64, 63)


def test_largest_part_and_holes():
  mask = np.zeros((8, 8), bool)
  mask[:2, :2] = True
  mask[3:8, 3:8] = True
  mask[5, 5] = False
  large = regions.largest_part(mask)
  assert large.sum() == 24 and not large[0, 0] and not large[5, 5]
  assert regions.fill_holes(large)[5, 5]
  mask[2, 2] = True  # corners touch
  assert regions.largest_part(mask).sum() == 29
  empty = np.zeros((4, 4), bool)
  assert not regions.largest_part(empty).any()


def test_crops():
  image = np.arange(10 * 12 * 3).reshape(10, 12, 3).astype(np.uint8)
  mask = np.zeros((10, 12), bool)
  mask[2:5, 3:8] = True
  mask[2, 3] = False
  cut = regions.crop_rgba(image, mask)
  assert cut.shape == (3, 5, 4) and cut[0, 0, 3] == 0 and cut[1, 1, 3] == 255
  np.testing.assert_array_equal(cut[..., :3], image[2:5, 3:8])
  black = regions.crop_on_black(image, mask)
  assert not black[0, 0].any() and (black[1] == image[3, 3:8]).all()
  assert regions.padded((3, 2, 5, 3), 1.0, 12, 10) == (0, 0, 12, 10)
  assert regions.padded((3, 2, 5, 3), 0.2, 12, 10) == (2, 1, 9, 6)
  soft = regions.crop_blurred(image, mask, (3, 2, 5, 3))
  assert soft.shape == (5, 7, 3) and (soft[2, 2] == image[3, 4]).all()
  np.testing.assert_array_equal(regions.crop_blurred(image, None, (3, 2, 5, 3)), image[1:6, 2:9])


FLOOR = np.where(np.arange(64) < 40, 200, 110)[:, None, None] * np.ones((1, 64, 3))
METHODS = pytest.mark.parametrize('method', [matte_mask, grabcut_mask])


@METHODS
@pytest.mark.parametrize(
  'background',
  [(250, 250, 250), (30, 90, 160), FADE, FLOOR],
  ids=['white', 'blue', 'fade', 'floor'],
)
def test_a_disc_is_found(method, background):
  assert iou(method(disc(background)), DISC) > 0.95
  assert iou(method(disc(background, seed=None)), DISC) > 0.95


@pytest.mark.parametrize('background', [(250, 250, 250), FADE, FLOOR], ids=['one', 'fade', 'floor'])
def test_backgrounds_are_background(background):
  distance, threshold = background_distance(disc(background, seed=None))
  assert distance[~DISC].max() < 5 < 8 <= threshold <= 20 < distance[DISC].min()


def test_what_touches_the_border_is_no_background():
  for background in ((250, 250, 250), FADE):
    image = disc(background, seed=None)
    rolled, wanted = np.roll(image, 26, axis=1), np.roll(DISC, 26, axis=1)
    rolled[~wanted] = image[0, 0] if background is not FADE else FADE[~wanted]
    assert wanted[:, -1].any() and iou(matte_mask(rolled), wanted) > 0.95


def test_the_edge_is_where_a_pixel_is_half_object():
  """Drawn eight times as large, then made smaller: pixels of the edge are blends."""
  big = np.hypot(*np.mgrid[-200:312, -220:292]) < 130
  share = big.reshape(64, 8, 64, 8).mean(axis=(1, 3))
  image = np.round(share[..., None] * (20, 120, 40) + (1 - share[..., None]) * (240, 230, 250))
  assert iou(matte_mask(image.astype(np.uint8)), share >= 0.5) > 0.98


def test_inside_of_an_open_outline():
  """Drawn in the colour of the background, in a line with a gap of a pixel."""
  radius = np.hypot(*np.mgrid[-32:32, -32:32])
  line = (radius < 20) & (radius > 17)
  line[32, 40:] = False
  image = np.where(line[..., None], (30, 30, 30), 255).astype(np.uint8)
  assert iou(matte_mask(image), radius < 20) > 0.97


@METHODS
def test_large_images_are_worked_on_small(method):
  large = np.repeat(np.repeat(disc((250, 250, 250)), 16, axis=0), 16, axis=1)
  wanted = np.repeat(np.repeat(DISC, 16, axis=0), 16, axis=1)
  assert large.shape == (1024, 1024, 3)
  assert iou(method(large, 128), wanted) > 0.95


@METHODS
@pytest.mark.parametrize(
  'image',
  [
    np.full((64, 64, 3), 128),
    np.zeros((8, 20, 3)),
    np.full((1, 1, 3), 7),
    np.arange(60).reshape(1, 20, 3),
    FADE,
    np.random.default_rng(0).integers(0, 256, (48, 48, 3)),
    np.random.default_rng(0).integers(0, 256, (9, 2, 3)),
    np.eye(32)[..., None] * np.ones(3) * 255,
  ],
  ids=['grey', 'tiny', 'one', 'row', 'fade', 'noise', 'thin', 'line'],
)
def test_anything_is_taken_and_gives_the_same_twice(method, image):
  image = image.astype(np.uint8)
  first = method(image)
  assert first.shape == image.shape[:2] and first.dtype == bool
  np.testing.assert_array_equal(first, method(image))


@pytest.mark.parametrize(('method', 'least'), [('matte', 0.95), ('grabcut', 0.94)])
def test_emoji_with_known_masks(method, least):
  """See docs/synth.md for the table over more of them."""
  source = open_source('emoji:concepts?size=64&concepts=40')
  config = AnnotationConfig(method=method)
  images = [decode_image(source[i].image) for i in range(0, 40, 2)]
  rows = annotate_part(config, [str(i) for i in range(20)], images)
  scores = []
  for i, row in enumerate(rows):
    truth = np.logical_or.reduce(
      [decode_mask(m) for per_object in source[2 * i].truth['masks'] for m in _flat(per_object)]
    )
    scores.append(iou(rle.decode(row.rle, 64, 64), truth))
  assert np.mean(scores) > least


def _flat(masks):
  return masks if isinstance(masks, list | tuple) else [masks]


def test_rows_say_what_is_wrong():
  images = [
    disc((250, 250, 250)),
    np.full((64, 64, 3), 9, np.uint8),
  ]
  seen = []
  good, blank = annotate_part(AnnotationConfig(), ['a', 'b'], images, seen.append)
  assert seen == [1, 1]
  assert (good.id, good.failure, good.width) == ('a', '', 64)
  assert good.area == pytest.approx(DISC.mean(), rel=0.05)
  assert rle.decode(good.rle, 64, 64).mean() == pytest.approx(good.area, abs=1e-6)
  assert (blank.failure, blank.box, blank.rle) == ('empty', (0, 0, 0, 0), '')
  (whole,) = annotate_part(AnnotationConfig(whole=0.1), ['a'], images[:1])
  assert whole.failure == 'whole_image' and whole.area > 0.1 and not whole.rle
  (none,) = annotate_part(AnnotationConfig(method='none'), ['a'], images[:1])
  assert none.failure == 'none'
  assert none.phash == good.phash == whole.phash == perceptual_hash(images[0]) != blank.phash


def test_parts_and_holes_are_a_choice():
  mask = np.zeros((64, 64), bool)
  mask[10:30, 10:30] = True
  mask[15:20, 15:20] = False
  mask[40:50, 40:50] = True
  image = np.where(mask[..., None], (200, 40, 30), 255).astype(np.uint8)

  def area(**changes) -> float:
    config = AnnotationConfig(work_size=64, **changes)
    return round(64 * 64 * annotate_part(config, ['a'], [image])[0].area)

  assert abs(area() - 400) < 12
  assert abs(area(holes='keep') - 375) < 12
  assert abs(area(parts='all') - 500) < 16


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'method': 'sam'}, 'folder: method sam needs one'),
    ({'folder': 'x'}, 'folder: method sam needs one'),
    ({'whole': 0.0}, 'whole'),
    ({'work_size': 8}, 'work_size'),
    ({'iterations': 0}, 'iterations'),
  ],
)
def test_bad_configs(changes, message):
  with pytest.raises(UserError, match=message):
    AnnotationConfig(**changes)


@pytest.fixture(scope='module')
def sam_folder(tmp_path_factory):
  """A tiny SAM of random weights."""
  torch = pytest.importorskip('torch')
  from transformers import (
    SamConfig,
    SamImageProcessorPil,
    SamMaskDecoderConfig,
    SamModel,
    SamPromptEncoderConfig,
    SamVisionConfig,
  )

  torch.manual_seed(0)
  vision = SamVisionConfig(
    hidden_size=16,
    output_channels=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    image_size=64,
    patch_size=8,
    mlp_dim=32,
    window_size=4,
    global_attn_indexes=[0],
    num_pos_feats=8,
  )
  prompt = SamPromptEncoderConfig(
    hidden_size=16, image_size=64, patch_size=8, mask_input_channels=4, image_embedding_size=8
  )
  decoder = SamMaskDecoderConfig(
    hidden_size=16, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16
  )
  folder = tmp_path_factory.mktemp('sam')
  config = SamConfig(
    vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder
  )
  SamModel(config).save_pretrained(folder)
  SamImageProcessorPil(
    size={'longest_edge': 64}, pad_size={'height': 64, 'width': 64}
  ).save_pretrained(folder)
  return str(folder)


def test_sam_runs(sam_folder):
  config = AnnotationConfig(method='sam', folder=sam_folder)
  images = [disc((250, 250, 250)), disc(FADE)[:40]]
  rows = annotate_part(config, ['a', 'b'], images)
  assert [(r.height, r.width) for r in rows] == [(64, 64), (40, 64)]


def test_sam_background_points_at_the_corners_and_inverts(sam_folder, monkeypatch):
  """The third mask is what SAM calls the background; what is left is the object."""
  import torch
  from transformers import SamModel

  asked = {}

  def forward(self, *, input_points, input_labels, multimask_output, pixel_values):
    asked.update(points=input_points[0, 0].numpy(), labels=input_labels, multi=multimask_output)
    masks = torch.full((1, 1, 3, 16, 16), 9.0)
    masks[0, 0, 2, 4:12, 4:8] = -9.0  # the object: 32 to 96 and 32 to 64 of 128 pixels
    return type('Outputs', (), {'pred_masks': masks})

  masker = make_masker(AnnotationConfig(method='sam', folder=sam_folder))
  monkeypatch.setattr(SamModel, 'forward', forward)
  mask = masker(np.zeros((128, 128, 3), np.uint8))
  truth = np.zeros((128, 128), bool)
  truth[32:96, 32:64] = True
  assert iou(mask, truth) > 0.9
  assert asked['multi'] and asked['labels'].shape == (1, 1, 4) and (asked['labels'] == 1).all()
  np.testing.assert_allclose(asked['points'], corner_points(128, 128) / 2, atol=1e-4)
  assert corner_points(128, 64).tolist()[3] == pytest.approx([125.72, 62.36])


def test_no_sam(tmp_path):
  with pytest.raises(UserError, match=r"folder: '.*' has no config.json"):
    make_masker(AnnotationConfig(method='sam', folder=str(tmp_path)))
