import numpy as np
import pytest

from align_jax.errors import UserError
from align_jax.synth.generators.make import (
  Checked,
  build_config,
  check_images,
  make_external,
  make_generator,
)
from tests import tiny

WHERE = 'config.generators[3].settings'


@pytest.mark.parametrize(
  ('values', 'named'),
  [
    ({'kind': 'cva'}, r"kind: 'cva' is unknown; did you mean 'cvae'\?"),
    ({}, r"kind: 'None' is unknown"),
    ({'kind': 'cvae', 'temprature': 1.0}, r"temprature: unknown field; did you mean 'temperature'"),
    ({'kind': 'cvae', 'temperature': 'hot'}, r"temperature: expected float, got 'hot'"),
    ({'kind': 'cvae', 'batch_size': 0}, r'batch_size: 0 must be'),
    ({'kind': 'flow', 'steps': 0}, r'steps: 0 must be'),
    ({'kind': 'diffusers'}, r'folder: missing'),
    ({'kind': 'diffusers', 'folder': 'x', 'dtype': 'int8'}, r"dtype: 'int8' is not one of"),
    ({'kind': 'external', 'source': ''}, r'source: empty'),
  ],
)
def test_mistakes_are_named_by_their_path(values, named):
  with pytest.raises(UserError, match=rf'^config\.generators\[3\]\.settings\.{named}'):
    build_config(values, WHERE)


def test_what_a_kind_needs_and_does(tmp_path):
  for kind in ('cvae', 'flow'):
    with pytest.raises(UserError, match='name its run'):
      make_generator({'kind': kind}, where=WHERE)
    with pytest.raises(UserError, match=r'config\.json'):
      make_generator({'kind': kind}, run=str(tmp_path), where=WHERE)
  with pytest.raises(UserError, match=r'settings\.folder: no model_index\.json'):
    make_generator({'kind': 'diffusers', 'folder': str(tmp_path)}, where=WHERE)
  with pytest.raises(UserError, match='see make_external'):
    make_generator({'kind': 'external', 'source': str(tmp_path)}, where=WHERE)
  with pytest.raises(UserError, match='see make_generator'):
    make_external({'kind': 'cvae'}, name='x', where=WHERE)
  tiny.photo_folder(tmp_path, each=1)
  external = make_external({'kind': 'external', 'source': str(tmp_path)}, name='own', where=WHERE)
  assert all(row.id.startswith('own/') for row in external.rows()) and len(external.rows()) == 6


def test_missing_and_blank_images_are_counted():
  noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
  images = [noise, None, np.full((8, 8, 3), 200, np.uint8), noise]
  assert check_images('sd', images, 4) == Checked(images=4, missing=1, blank=1)


@pytest.mark.parametrize(
  ('image', 'named'),
  [
    (np.zeros((8, 8, 3)), r'float64 \(8, 8, 3\)'),
    (np.zeros((8, 8), np.uint8), r'uint8 \(8, 8\)'),
    (np.zeros((3, 8, 8), np.uint8), r'uint8 \(3, 8, 8\)'),
    (np.zeros((0, 8, 3), np.uint8), r'uint8 \(0, 8, 3\)'),
    ('a picture', 'a str'),
  ],
)
def test_what_is_no_image_names_the_generator(image, named):
  with pytest.raises(UserError, match=f"generator 'sd': gave {named}"):
    check_images('sd', [image], 1)


def test_another_number_of_images_is_an_error():
  with pytest.raises(UserError, match="generator 'sd': 1 images for 2 prompts"):
    check_images('sd', [None], 2)
