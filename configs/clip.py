"""Contrastive image-text training from scratch: two small towers on emoji scenes.

  python -m align_jax.main --config=configs/clip.py --workdir=runs/clip

About three minutes on 2 CPU cores. On your own images:
`--config.data.real='folder:DIR?split=train'` (class subfolders, or a captions.jsonl).

`--config=configs/clip.py:openai` gives the same sizes OpenAI's architecture, which
`python -m align_jax.export` can write as a `CLIPModel`.
"""

from ml_collections import ConfigDict, config_dict

SCENES = 'emoji:scenes?size=32&concepts=60&max_objects=2&captions=short'


def get_config(flavour: str = 'mean') -> ConfigDict:
  """Returns the experiment; `flavour` is `mean` (pooling of both towers) or `openai`."""
  config = ConfigDict()
  config.seed = 0
  config.steps = 1000
  config.batch_size = 128
  config.log_every = 50
  config.objective = ConfigDict(
    {
      'name': 'contrastive',
      'form': 'softmax',  # sigmoid: set model.init_bias as well
      'route': 'none',
      'lock': ('lora', 'generated_projection'),
      'same_caption_is_positive': True,
    }
  )
  config.model = {'mean': dual_encoder, 'openai': openai_dual_encoder}[flavour]()
  config.data = ConfigDict(
    {
      'real': f'{SCENES}&split=train&count=3000',
      'generated': '',
      'partners': '',
      'real_weight': 1.0,
      'generated_weight': 1.0,
      'tokenizer': '',
      'vocab_size': 600,
      'length': 20,
      'resize': 'crop',
      'interpolation': 'bicubic',
      'min_scale': 1.0,
      'flip': False,  # captions say left and right
      'colour': 0.0,  # captions name colours
      'threads': 1,
      'max_skipped': 0.01,
      'max_pixels': 50_000_000,
      'follow': 0,
      'plan': '',
    }
  )
  config.optimizer = ConfigDict(
    {
      'lr': 1e-3,
      'schedule': 'cosine',
      'warmup_steps': 100,
      'weight_decay': 0.1,
      'clip_norm': 1.0,
      'ema': 0.0,
      'accumulate': 1,
    }
  )
  config.checkpoint = ConfigDict({'every': 250, 'keep': 2})
  config.eval = ConfigDict(
    {
      'every': 0,
      'data': '',  # held-out real images, for instance f'{SCENES}&split=test'
      'generated': '',
      'partners': '',
      'tasks': ('retrieval',),
      'inference': 'clip_flow',
      'templates': 'scene',
      'limit': 1000,
    }
  )
  config.remine = ConfigDict(
    {'every': 0, 'lag': 0, 'data': '', 'k': 7, 'strategy': 'saha_mutual', 'settings': {}}
  )
  config.mesh = ConfigDict({'data': -1, 'fsdp': 1, 'tensor': 1})
  config.compute = compute()
  return config


def compute() -> ConfigDict:
  """All at once, unrolled: what suits a small model."""
  return ConfigDict(
    {
      'scan': False,
      'remat': 'none',
      'micro_batch': 0,
      'loss': 'plain',
      'rows': 0,
      'travel': 'float32',
    }
  )


def dual_encoder() -> ConfigDict:
  """The small model of the demo: 16 patches, 96 wide."""
  tower = {
    'width': 96,
    'heads': 3,
    'mlp_dim': 384,
    'activation': 'quick_gelu',
    'dtype': 'float32',
  }
  return ConfigDict(
    {
      'init': '',
      'image': {
        **tower,
        'image_size': 32,
        'patch': 8,
        'depth': 4,
        'pool': 'mean',
        'positions': 'learned',
      },
      'text': {
        **tower,
        'vocab_size': 600,
        'length': 20,
        'depth': 2,
        'causal': False,
        'pool': 'mean',
        'mask_padding': True,
      },
      'dim': 96,
      'projection': 'single',
      'init_scale': 14.3,
      'init_bias': config_dict.placeholder(float),
      'max_scale': 100.0,
    }
  )


def openai_dual_encoder() -> ConfigDict:
  """The same sizes as OpenAI built them: a class token, a causal text tower read at its end."""
  config = dual_encoder()
  config.image.update(pool='cls', pre_norm=True, patch_bias=False, eps=1e-5)
  config.text.update(causal=True, pool='eot', mask_padding=False, eps=1e-5)
  return config
