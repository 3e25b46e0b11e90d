"""A model that answers as a folder of `transformers`: the same logits and tokens, and back."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from align_jax.answerer import Answerer
from align_jax.config import build
from align_jax.data.chat import train_chat
from align_jax.data.transforms import Transform, apply
from align_jax.errors import UserError
from align_jax.interop.folder import load_folder, read_folder
from align_jax.interop.track import multimodal_track
from align_jax.interop.verify import check_llava_with_torch, check_with_table
from align_jax.interop.write import write_llava
from align_jax.models.multimodal import MultimodalConfig
from tests import chats, tiny

pytest.importorskip('torch')

LORA = tiny.TRACKS['lora']
IMAGE = tiny.MULTIMODAL['image']
CASES = {
  'siglip_llama': ({}, {}, 'real'),
  'clip_qwen2_tied': (
    {'pool': 'cls', 'pre_norm': True, 'patch_bias': False, 'eps': 1e-5},
    {'qkv_bias': True, 'tied': True},
    'real',
  ),
  'adapted': ({}, {'lora': LORA}, 'generated'),
}


def made(name):
  """A model with parameters that all matter, its chat and its transform."""
  image, decoder, track = CASES[name]
  chat = train_chat(chats.TEXTS * 2, 300, 16)
  values = {
    **tiny.MULTIMODAL,
    'image': {**IMAGE, **image},
    'decoder': {**tiny.MULTIMODAL['decoder'], **decoder},
    'length': 64,
  }
  values |= {'image_lora': LORA} if track == 'generated' else {}
  config = build(MultimodalConfig, values)
  skeleton = tiny.method(tiny.CAPTION, values)[1]
  rng = np.random.default_rng(0)
  params = {
    n: (rng.normal(0, 0.2, s.shape) + n.endswith('scale')).astype(np.float32)
    for n, s in skeleton.shapes.items()
  }
  resize = 'crop' if name.startswith('clip') else 'squash'
  return config, params, chat, Transform(32, resize=resize), track


@pytest.mark.parametrize('name', CASES)
def test_pytorch_agrees_and_the_way_back_is_exact(name, tmp_path):
  config, params, chat, transform, modality = made(name)
  shapes = {n: p.shape for n, p in params.items()}
  track = multimodal_track(config, modality, params.__getitem__, shapes)
  write_llava(tmp_path, config, track, chat, transform)
  check_with_table(tmp_path, track, 'float32')
  rng = np.random.default_rng(1)
  pictures = [Image.fromarray(rng.integers(0, 256, (40, 60, 3)).astype(np.uint8)) for _ in range(3)]
  pixels = np.stack([apply(transform, np.asarray(p), rng) for p in pictures])
  questions = ['Where is the cat?', 'How many red dogs are there?', 'a']
  answerer = Answerer(config, params, chat, transform, 80)
  tokens, logits = answerer.logits(pixels, questions, modality)
  assert check_llava_with_torch(tmp_path, pictures, questions, tokens, logits, 'float32') < 1e-4
  if name == 'adapted':
    other = answerer.logits(pixels, questions, 'real')[1]
    with pytest.raises(UserError, match='the logits of PyTorch differ'):
      check_llava_with_torch(tmp_path, pictures, questions, tokens, other, 'float32')
    return
  imported = read_folder(tmp_path)
  back = build(MultimodalConfig, imported.model)
  assert dataclasses.replace(back, decoder=config.decoder, image=config.image) == config
  found = load_folder(imported, {n: np.empty(s, np.void) for n, s in shapes.items()})
  assert all(np.array_equal(found[n], p) for n, p in params.items())
  written = json.loads((tmp_path / 'generation_config.json').read_text())
  assert written['eos_token_id'] == chat.end_id


def test_a_track_that_is_not_there():
  config, params, *_ = made('siglip_llama')
  with pytest.raises(UserError, match='--track=generated: the run has no image_lora'):
    multimodal_track(config, 'generated', params.__getitem__, {})


def test_a_model_that_no_llava_is(tmp_path):
  config, params, chat, transform, _ = made('siglip_llama')
  config = dataclasses.replace(config, image_norm=True)
  track = multimodal_track(config, 'real', params.__getitem__, {})
  with pytest.raises(UserError, match=r'config\.model\.image_norm: True, but a Llava'):
    write_llava(tmp_path, config, track, chat, transform)
