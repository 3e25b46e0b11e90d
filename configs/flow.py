"""The generator: a text-conditional rectified-flow transformer on emoji scenes.

  python -m align_jax.main --config=configs/flow.py --workdir=runs/flow

About five minutes on 2 CPU cores. Colours then follow the caption; shapes are rough, with flaws
that anyone sees: they are the modality gap of the demo.
"""

from ml_collections import ConfigDict

from configs import clip


def get_config() -> ConfigDict:
  """Returns the experiment."""
  config = ConfigDict()
  config.seed = 0
  config.steps = 900
  config.batch_size = 64
  config.log_every = 50
  config.objective = ConfigDict(
    {'name': 'flow', 'time': 'logit_normal', 'time_mean': 0.8, 'time_std': 1.0, 'text_dropout': 0.1}
  )
  config.model = ConfigDict(
    {
      'init': '',
      'image_size': 32,
      'patch': 4,
      'width': 96,
      'depth': 4,
      'heads': 3,
      'mlp_dim': 384,
      'text_depth': 1,
      'vocab_size': 600,
      'length': 20,
      'pad_id': 0,
      'predict': 'image',
      'activation': 'gelu_tanh',
      'dtype': 'float32',
    }
  )
  config.data = ConfigDict(
    {
      'real': f'{clip.SCENES}&split=train&count=6000',
      'tokenizer': '',
      'vocab_size': 600,
      'length': 20,
      'threads': 1,
    }
  )
  config.optimizer = ConfigDict(
    {
      'lr': 2e-3,
      'schedule': 'cosine',
      'warmup_steps': 50,
      'weight_decay': 0.0,
      'clip_norm': 1.0,
      'ema': 0.995,
      'accumulate': 1,
    }
  )
  config.checkpoint = ConfigDict({'every': 300, 'keep': 1})
  config.mesh = ConfigDict({'data': -1, 'fsdp': 1, 'tensor': 1})
  config.compute = clip.compute()
  return config
