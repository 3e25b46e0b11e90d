"""Tiny data and configs on real paths: pictures on disk, small towers, few steps."""

import io
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image, ImageDraw

from align_jax.config import build
from align_jax.data.record import Record
from align_jax.data.shards import write_shards
from align_jax.models.flat import Skeleton
from align_jax.objectives import make_objective
from align_jax.train.config import TrainConfig
from align_jax.train.objective import Objective

COLOURS = {'red': (220, 40, 30), 'green': (40, 180, 60), 'blue': (40, 80, 220)}
SHAPES = ('disc', 'square')


def picture(colour: str, shape: str, seed: int, size: int = 32) -> Image.Image:
  """A coloured shape somewhere on a noisy background."""
  rng = np.random.default_rng(seed)
  noise = rng.integers(180, 256, (size, size, 3)).astype(np.uint8)
  image = Image.fromarray(noise)
  x, y = rng.integers(2, size // 2, 2)
  box = (int(x), int(y), int(x) + size // 2 - 2, int(y) + size // 2 - 2)
  draw = ImageDraw.Draw(image)
  (draw.ellipse if shape == 'disc' else draw.rectangle)(box, fill=COLOURS[colour])
  return image


def png(image: Image.Image) -> bytes:
  file = io.BytesIO()
  image.save(file, 'PNG')
  return file.getvalue()


def photo_folder(path: Path, each: int = 8, **options) -> Path:
  """Class subfolders of JPEG photographs, as a user would bring them."""
  for c, colour in enumerate(COLOURS):
    for s, shape in enumerate(SHAPES):
      folder = path / f'{colour} {shape}'
      folder.mkdir(parents=True)
      for i in range(each):
        picture(colour, shape, 100 * c + 1000 * s + i, **options).save(folder / f'{i:03d}.jpg')
  return path


def generated_shards(folder: Path, partners: list[Record], modality: str = 'generated') -> str:
  """Shards of 'generated' images: the partners' captions, other pictures. Returns their spec."""
  records = []
  for i, partner in enumerate(partners):
    colour, shape = partner.labels[0].split()
    image = np.asarray(picture(colour, shape, 50_000 + i)).astype(float)
    records.append(
      Record(
        id=f'generated-{i}',
        image=png(Image.fromarray((255 - (255 - image) * 0.6).astype(np.uint8))),
        captions=partner.captions,
        modality=modality,
        pair_id=partner.id,
        labels=partner.labels,
        generator_id='tiny',
        prompt=partner.captions[0],
      )
    )
  write_shards(records, str(folder), 2, 'CC0', 'tests')
  return f'arrayrecord:{folder}/*.arrayrecord'


TOWER = {'width': 32, 'heads': 2, 'mlp_dim': 64, 'activation': 'quick_gelu'}
MODEL = {
  'image': {**TOWER, 'image_size': 32, 'patch': 8, 'depth': 2, 'pool': 'mean'},
  'text': {**TOWER, 'vocab_size': 300, 'length': 12, 'depth': 1},
  'dim': 16,
  'init_bias': -10.0,
}
TRACKS = {'projection': 'dual', 'lora': {'rank': 2, 'alpha': 2.0, 'layers': ('attention', 'mlp')}}
GMAIL = {'name': 'gmail', 'form': 'one_way'}
CONTRASTIVE = {'name': 'contrastive', 'form': 'softmax'}
FLOW = {'name': 'flow'}
DIT = {
  'image_size': 32,
  'patch': 8,
  'width': 32,
  'depth': 2,
  'heads': 2,
  'mlp_dim': 64,
  'text_depth': 1,
  'vocab_size': 300,
  'length': 12,
}
CVAE = {'name': 'cvae'}
VAE = {
  **{k: DIT[k] for k in ('image_size', 'patch', 'heads', 'text_depth', 'vocab_size', 'length')},
  'width': 16,
  'mlp_dim': 24,
  'encoder_depth': 1,
  'decoder_depth': 1,
  'latents': 4,
  'latent_dim': 3,
}
CAPTION = {'name': 'caption'}
MULTIMODAL = {
  'image': {
    **TOWER,
    'activation': 'gelu_tanh',
    'image_size': 32,
    'patch': 8,
    'depth': 2,
    'pool': 'mean',
  },
  'decoder': {
    'vocab_size': 300,
    'width': 32,
    'depth': 2,
    'heads': 4,
    'kv_heads': 2,
    'head_dim': 8,
    'mlp_dim': 48,
  },
  'image_id': 1,
  'length': 28,
}
SAHA = {'name': 'saha', 'temperature': 0.1}
EMBEDDER = {
  **MULTIMODAL,
  'decoder': {**MULTIMODAL['decoder'], 'lora': {'rank': 2, 'alpha': 4.0}},
}
SMALL_MODEL = {
  **MODEL,
  'image': {**MODEL['image'], 'depth': 1, 'width': 16, 'mlp_dim': 24},
  'text': {**MODEL['text'], 'width': 16, 'mlp_dim': 24},
}


def config_values(real: str = '', **changes) -> dict:
  """A training config's values; `changes` are merged into it, two levels deep."""
  values = {
    'seed': 0,
    'steps': 6,
    'batch_size': 16,
    'log_every': 2,
    'objective': dict(CONTRASTIVE),
    'model': {**MODEL},
    'data': {'real': real, 'vocab_size': 300, 'length': 12, 'threads': 1, 'max_skipped': 0.2},
    'optimizer': {'lr': 1e-3, 'warmup_steps': 1},
    'checkpoint': {'every': 2, 'keep': 3},
  }
  for key, value in changes.items():
    merge = isinstance(value, dict) and isinstance(values.get(key), dict) and key != 'objective'
    values[key] = {**values[key], **value} if merge else value
  return values


def config(real: str = '', **changes) -> TrainConfig:
  return build(TrainConfig, config_values(real, **changes))


def method(objective: dict[str, Any], model: dict[str, Any]) -> tuple[Objective, Skeleton]:
  """An objective and the model it makes, from config values."""
  made = make_objective(objective)
  model_config: Any = build(made.ModelConfig, model, 'config.model')
  return made, Skeleton(lambda rngs: made.create_model(model_config, rngs))


def batch(size: int = 8, seed: int = 0) -> dict[str, jax.Array]:
  """A batch of noise that every objective takes, some generated rows of it without a partner."""
  rng = np.random.default_rng(seed)
  text = rng.integers(3, 300, (size, MODEL['text']['length']))
  text[:, 5:] = 2, *[0] * (text.shape[1] - 6)  # the end, then padding
  # chats: an image, a question, an answer of one to four tokens
  length, patches = MULTIMODAL['length'], 16
  tokens = rng.integers(3, 300, (size, length))
  tokens[:, 1 : 1 + patches] = MULTIMODAL['image_id']
  place, ends = np.arange(length), 22 + np.arange(size) % 4
  real = place <= ends[:, None]
  values = {
    'image': rng.integers(0, 256, (size, 32, 32, 3)).astype(np.uint8),
    'partner': rng.integers(0, 256, (size, 32, 32, 3)).astype(np.uint8),
    'has_partner': np.arange(size) % 4 != 3,
    'text': text.astype(np.int32),
    'tokens': np.where(real, tokens, 0).astype(np.int32),
    'segment': real.astype(np.int32),
    'answer': real & (place > 21),
    'group': np.arange(size, dtype=np.int32) // 2 * 2 % (size - 2),  # rows of equal captions
    'modality': (np.arange(size) % 2).astype(np.int32),
  }
  for side in ('query', 'candidate'):
    starts = rng.integers(0, 6, size)[:, None]  # padded on the left
    prompts = rng.integers(3, 300, (size, length))
    prompts[::2, 8 : 8 + patches] = MULTIMODAL['image_id']  # others are texts alone
    values |= {
      f'{side}_tokens': np.where(place >= starts, prompts, 0).astype(np.int32),
      f'{side}_segment': (place >= starts).astype(np.int32),
      f'{side}_image': rng.integers(0, 256, (size, 1, 32, 32, 3)).astype(np.uint8),
    }
  return {name: jax.numpy.asarray(value) for name, value in values.items()}
