"""Our pixels and token ids are those of a folder's own processors."""

import json

import numpy as np
import pytest
from PIL import Image

from align_jax.data.tokenizer import load_tokenizer
from align_jax.data.transforms import Transform, apply
from align_jax.errors import UserError
from align_jax.interop.processor import read_processor
from align_jax.interop.verify import examples
from tests.interop import tools

transformers = pytest.importorskip('transformers')

OPENAI = {
  'image_mean': [0.48145466, 0.4578275, 0.40821073],
  'image_std': [0.26862954, 0.26130258, 0.27577711],
}
HALF = {'image_mean': [0.5] * 3, 'image_std': [0.5] * 3}
SQUARE = {'height': 32, 'width': 32}
PROCESSORS = [
  ('CLIPImageProcessor', {'size': {'shortest_edge': 32}, 'crop_size': SQUARE, **OPENAI}),
  ('CLIPImageProcessor', {'size': {'shortest_edge': 40}, 'crop_size': SQUARE, **OPENAI}),
  ('SiglipImageProcessor', {'size': SQUARE, 'resample': 2, **HALF}),
  ('SiglipImageProcessor', {'size': SQUARE, 'resample': 3, **HALF}),
  ('BitImageProcessor', {'size': {'shortest_edge': 36}, 'crop_size': SQUARE, **OPENAI}),
]


@pytest.mark.parametrize(('kind', 'settings'), PROCESSORS)
def test_pixels(tmp_path, kind, settings):
  made = getattr(transformers, f'{kind}Pil')(**settings)
  made.save_pretrained(str(tmp_path))
  image, data = read_processor(tmp_path)
  transform = Transform(image.pop('image_size'), **data)
  pictures = [*examples()[0], Image.new('RGB', (32, 32), (200, 30, 60))]
  theirs = made(pictures, return_tensors='np')['pixel_values']
  mean, std = (np.asarray(image[name])[:, None, None] for name in ('mean', 'std'))
  expected = (theirs * std + mean) * 255
  rng = np.random.default_rng(0)
  for picture, wanted in zip(pictures, expected, strict=True):
    ours = apply(transform, np.asarray(picture), rng).transpose(2, 0, 1)
    assert np.max(np.abs(ours - wanted)) <= 1 + 1e-3


def test_open_clip_settings(tmp_path):
  path = tmp_path / 'open_clip_config.json'
  path.write_text(json.dumps({'preprocess_cfg': {'resize_mode': 'squash', 'mean': [0.5] * 3}}))
  image, data = read_processor(tmp_path)
  assert image == {'mean': (0.5, 0.5, 0.5), 'std': tuple(OPENAI['image_std'])}
  assert data == {'interpolation': 'bicubic', 'resize': 'squash', 'short_side': 0}
  path.write_text(json.dumps({'preprocess_cfg': {'resize_mode': 'longest'}}))
  with pytest.raises(UserError, match='resize_mode longest are not supported'):
    read_processor(tmp_path)


@pytest.mark.parametrize(
  ('settings', 'said'),
  [
    ({'do_resize': False}, 'do_resize is false'),
    ({'rescale_factor': 1.0}, 'not rescaled by 1/255'),
    ({'resample': 0}, 'resample 0 is not supported'),
    ({'size': {'height': 3, 'width': 4}}, 'is not a square'),
    ({'size': {'shortest_edge': 3}, 'do_center_crop': False}, 'set do_center_crop'),
  ],
)
def test_what_our_transforms_do_not_do_is_refused(tmp_path, settings, said):
  (tmp_path / 'preprocessor_config.json').write_text(json.dumps(settings))
  with pytest.raises(UserError, match=said):
    read_processor(tmp_path)


TEXTS = ['a photo of a cat', 'Two  CATS, and "more": 12!', '', 'naïve café — 猫', 'word ' * 60]


def test_token_ids_of_a_real_bert():
  folder = tools.minilm()
  theirs = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
  padded = {'padding': 'max_length', 'truncation': True, 'max_length': 24}
  expected = np.asarray(theirs(TEXTS, **padded)['input_ids'])
  np.testing.assert_array_equal(load_tokenizer(folder).encode(TEXTS, 24), expected)
