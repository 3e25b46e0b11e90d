"""SigLIP B/16 from scratch: 224 px, 64 tokens, a vocabulary of 32,000, a global batch of 32,768.

  python -m launch.preflight --config=configs/siglip_b16.py --topology=v5e:16x16
  python -m align_jax.main --config=configs/siglip_b16.py --workdir=gs://BUCKET/siglip_b16 \
    --config.data.real='webdataset:DIR/*.tar'

For a TPU v5e slice of 256 chips. `docs/scaling.md` has the settings of `mesh` and `compute` for
smaller slices, and what each needs. Sizes and optimiser as big_vision's `siglip_lit_coco` and the
paper (Zhai et al. 2023, arXiv 2303.15343, section 4).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  """Returns the experiment."""
  config = ConfigDict()
  config.seed = 0
  config.steps = 100_000
  config.batch_size = 32_768
  config.log_every = 50
  config.objective = ConfigDict(
    {
      'name': 'contrastive',
      'form': 'sigmoid',
      'route': 'none',
      'lock': ('lora', 'generated_projection'),
      'same_caption_is_positive': True,
    }
  )
  tower = {
    'width': 768,
    'depth': 12,
    'heads': 12,
    'mlp_dim': 3072,
    'activation': 'gelu_tanh',
    'dtype': 'bfloat16',
  }
  config.model = ConfigDict(
    {
      'init': '',
      'image': {**tower, 'image_size': 224, 'patch': 16, 'pool': 'map', 'positions': 'learned'},
      'text': {
        **tower,
        'vocab_size': 32_000,
        'length': 64,
        'causal': False,
        'pool': 'last',
        'mask_padding': False,
      },
      'dim': 768,
      'image_projection': False,
      'projection': 'single',
      'projection_bias': True,
      'init_scale': 10.0,
      'init_bias': -10.0,
      'max_scale': 100.0,
    }
  )
  config.data = ConfigDict(
    {
      'real': '',
      'generated': '',
      'partners': '',
      'real_weight': 1.0,
      'generated_weight': 1.0,
      'tokenizer': '',
      'vocab_size': 32_000,
      'length': 64,
      'resize': 'squash',
      'interpolation': 'bilinear',
      'min_scale': 1.0,
      'flip': False,
      'colour': 0.0,
      'threads': 16,
      'max_skipped': 0.01,
      'max_pixels': 50_000_000,
      'follow': 0,
    }
  )
  config.optimizer = ConfigDict(
    {
      'lr': 1e-3,
      'schedule': 'rsqrt',
      'warmup_steps': 10_000,
      'weight_decay': 1e-4,
      'b2': 0.95,
      'clip_norm': 1.0,
      'ema': 0.0,
      'accumulate': 1,
    }
  )
  config.checkpoint = ConfigDict({'every': 1000, 'keep': 2})
  config.eval = ConfigDict(
    {
      'every': 0,
      'data': '',
      'generated': '',
      'partners': '',
      'tasks': ('retrieval',),
      'inference': 'clip_flow',
      'templates': 'photo',
      'limit': 5000,
    }
  )
  config.mesh = ConfigDict({'data': 1, 'fsdp': -1, 'tensor': 1})
  config.compute = ConfigDict(
    {
      'scan': True,
      'remat': 'dots',
      'micro_batch': 16,
      'loss': 'ring',
      'rows': 0,
      'travel': 'bfloat16',
    }
  )
  return config
