"""Eval pixels equal Hugging Face's processors; train draws stay within their bounds."""

import colorsys
import io
import math

import numpy as np
import pytest
from PIL import Image

from align_jax.data.images import decode_image
from align_jax.data.transforms import (
  Transform,
  apply,
  apply_to_bytes,
  apply_to_picture,
  colour_matrix,
)
from align_jax.errors import UserError


def noise(height: int, width: int) -> np.ndarray:
  rng = np.random.default_rng(height * 1000 + width)
  return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def rng(seed: int = 0) -> np.random.Generator:
  return np.random.default_rng(seed)


SHAPES = [(32, 32), (40, 60), (61, 33), (17, 90), (33, 32), (9, 9), (224, 100), (13, 21)]


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('size', [32, 21])
def test_crop_equals_clip_processor(shape, size):
  clip = pytest.importorskip('transformers.models.clip.image_processing_pil_clip')
  processor = clip.CLIPImageProcessorPil(
    size={'shortest_edge': size},
    crop_size={'height': size, 'width': size},
    do_normalize=False,
    do_rescale=False,
  )
  image = noise(*shape)
  want = np.moveaxis(processor(Image.fromarray(image))['pixel_values'][0], 0, -1)
  got = apply(Transform(size, resize='crop'), image, rng())
  assert np.abs(got.astype(int) - want.astype(int)).max() == 0


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('size', [32, 21])
@pytest.mark.parametrize('interpolation', ['bicubic', 'bilinear'])
def test_squash_equals_siglip_processor(shape, size, interpolation):
  siglip = pytest.importorskip('transformers.models.siglip.image_processing_pil_siglip')
  processor = siglip.SiglipImageProcessorPil(
    size={'height': size, 'width': size},
    resample=getattr(Image.Resampling, interpolation.upper()),
    do_normalize=False,
    do_rescale=False,
  )
  image = noise(*shape)
  want = np.moveaxis(processor(Image.fromarray(image))['pixel_values'][0], 0, -1)
  got = apply(Transform(size, resize='squash', interpolation=interpolation), image, rng())
  assert np.abs(got.astype(int) - want.astype(int)).max() == 0


@pytest.mark.parametrize('mode', ['train', 'eval'])
def test_nothing_to_do_returns_the_image_itself(mode):
  image = noise(32, 32)
  assert apply(Transform(32, mode), image, rng()) is image


def test_eval_ignores_augmentation_and_the_generator():
  generator = rng()
  before = generator.bit_generator.state
  transform = Transform(16, 'eval', min_scale=0.1, flip=True, colour=0.5)
  got = apply(transform, noise(20, 30), generator)
  np.testing.assert_array_equal(got, apply(Transform(16), noise(20, 30), rng()))
  assert generator.bit_generator.state == before


def test_train_without_random_crop_resizes_as_eval():
  image = noise(20, 30)
  want = apply(Transform(16), image, rng())
  np.testing.assert_array_equal(apply(Transform(16, 'train'), image, rng()), want)


@pytest.mark.parametrize('resize', ['crop', 'squash'])
@pytest.mark.parametrize('shape', [(1, 5000), (5000, 1), (3, 400)])
def test_hair_thin_pictures_need_little_memory(shape, resize):
  for transform in (
    Transform(64, resize=resize),
    Transform(64, 'train', resize=resize, min_scale=0.3, colour=0.1),
  ):
    assert apply(transform, noise(*shape), rng()).shape == (64, 64, 3)


def test_random_crop_is_within_the_bounds():
  # position is colour, so that each result tells which box it shows
  height, width = 120, 160
  image = np.zeros((height, width, 3), np.uint8)
  image[..., 0] = np.arange(width)
  image[..., 1] = np.arange(height)[:, None]
  transform = Transform(40, 'train', min_scale=0.25, interpolation='bilinear')
  generator = rng()
  shares, ratios = [], []
  for _ in range(200):
    out = apply(transform, image, generator).astype(float)
    w = (out[20, 30, 0] - out[20, 10, 0]) * 2
    h = (out[30, 20, 1] - out[10, 20, 1]) * 2
    shares.append(w * h / (width * height))
    ratios.append(w / h)
  assert min(shares) > 0.22 and max(shares) <= 1.05
  assert min(shares) < 0.35 and max(shares) > 0.8
  assert min(ratios) > 0.7 and max(ratios) < 1.42
  assert min(ratios) < 0.85 and max(ratios) > 1.2


def test_flip_mirrors_every_second_picture():
  image = noise(8, 8)
  transform = Transform(8, 'train', flip=True)
  generator = rng()
  flipped = 0
  for _ in range(200):
    out = apply(transform, image, generator)
    if (out == image).all():
      continue
    np.testing.assert_array_equal(out, image[:, ::-1])
    flipped += 1
  assert 70 < flipped < 130


def test_same_generator_same_pixels_and_both_entries_agree():
  transform = Transform(16, 'train', min_scale=0.3, flip=True, colour=0.4)
  image = noise(20, 30)
  first = apply(transform, image, rng(5))
  np.testing.assert_array_equal(first, apply(transform, image, rng(5)))
  np.testing.assert_array_equal(first, apply_to_picture(transform, Image.fromarray(image), rng(5)))
  assert (first != apply(transform, image, rng(6))).any()


def encoded(image: np.ndarray, form: str) -> bytes:
  out = io.BytesIO()
  Image.fromarray(image).save(out, form)
  return out.getvalue()


@pytest.mark.parametrize('form', ['PNG', 'JPEG'])
@pytest.mark.parametrize(
  'transform',
  [
    Transform(16),
    Transform(16, 'train', flip=True, colour=0.4),
    Transform(24, 'train', min_scale=0.3, flip=True, colour=0.4),  # no crop is twice as large
  ],
)
def test_from_bytes_equals_from_pixels(form, transform):
  data = encoded(noise(40, 44), form)
  for seed in range(5):
    got = apply_to_bytes(transform, data, rng(seed))
    np.testing.assert_array_equal(got, apply(transform, decode_image(data), rng(seed)))


def test_a_large_jpeg_is_decoded_smaller_with_the_same_draws_and_nearly_the_same_pixels():
  coarse = Image.fromarray(noise(20, 30)).resize((600, 400), Image.Resampling.BICUBIC)
  data = encoded(np.asarray(coarse), 'JPEG')
  transform = Transform(64, 'train', min_scale=0.2, flip=True)
  for seed in range(10):
    ours, exact = rng(seed), rng(seed)
    got = apply_to_bytes(transform, data, ours)
    want = apply(transform, decode_image(data), exact)
    assert ours.bit_generator.state == exact.bit_generator.state
    assert np.abs(got.astype(int) - want).mean() < 1.0
    np.testing.assert_array_equal(got, apply_to_bytes(transform, data, rng(seed)))


def jittered(pixel: tuple[int, int, int], matrix: tuple[float, ...]) -> np.ndarray:
  return np.array(matrix).reshape(3, 4) @ np.array([*pixel, 1.0])


def test_colour_steps_do_what_they_say():
  pixel = (120, 60, 30)
  luma = 0.299 * 120 + 0.587 * 60 + 0.114 * 30
  for matrix, want in (
    (colour_matrix(1.0, 1.0, 1.0, 0.0, 100.0), pixel),
    (colour_matrix(1.5, 1.0, 1.0, 0.0, 100.0), (180, 90, 45)),
    (colour_matrix(1.0, 0.0, 1.0, 0.0, 100.0), (100, 100, 100)),
    (colour_matrix(1.0, 1.0, 0.0, 0.0, 100.0), (luma, luma, luma)),
    (colour_matrix(1.0, 1.0, 1.0, 2 * math.pi / 3, 100.0), (30, 120, 60)),
  ):
    np.testing.assert_allclose(jittered(pixel, matrix), want, atol=1e-9)
  grey = colour_matrix(1.2, 0.9, 1.3, 0.5, 70.0)
  np.testing.assert_allclose(jittered((70, 70, 70), grey), (84, 84, 84))


def test_colour_jitter_grows_with_strength_and_keeps_hue_near():
  image = np.full((8, 8, 3), (180, 60, 60), np.uint8)
  generator = rng()
  for strength, limit in ((0.1, 60), (0.4, 200)):
    transform = Transform(8, 'train', colour=strength)
    outs = [apply(transform, image, generator)[0, 0] for _ in range(100)]
    changes = np.abs(np.array(outs).astype(int) - (180, 60, 60)).max(axis=1)
    assert changes.max() < limit and changes.mean() > 20 * strength
    hues = [(colorsys.rgb_to_hsv(*(out / 255.0))[0] + 0.5) % 1 - 0.5 for out in outs]
    assert max(map(abs, hues)) < 0.15 * strength + 0.02


@pytest.mark.parametrize(
  'fields',
  [{'image_size': 0}, {'min_scale': 0.0}, {'min_scale': 1.5}, {'colour': 1.0}, {'colour': -0.1}],
)
def test_bad_fields_are_named(fields):
  with pytest.raises(UserError, match=f'transform.{next(iter(fields))}'):
    Transform(**{'image_size': 8, **fields})
