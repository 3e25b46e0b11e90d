"""The second generator: a text-conditional variational autoencoder on emoji scenes.

  python -m align_jax.main --config=configs/cvae.py --workdir=runs/cvae

About five minutes on 2 CPU cores. Colours follow the caption; shapes are blurred, for the decoder
answers with the mean of what its latents do not tell: flaws of another kind than the flow's.
"""

from ml_collections import ConfigDict

from configs import clip


def get_config() -> ConfigDict:
  """Returns the experiment."""
  config = ConfigDict()
  config.seed = 0
  config.steps = 1500
  config.batch_size = 64
  config.log_every = 50
  config.objective = ConfigDict(
    {'name': 'cvae', 'pixel_std': 0.6, 'kl_weight': 1.0, 'free_bits': 0.25, 'blind_share': 0.1}
  )
  config.model = ConfigDict(
    {
      'init': '',
      'image_size': 32,
      'patch': 8,
      'width': 96,
      'heads': 3,
      'mlp_dim': 384,
      'encoder_depth': 2,
      'decoder_depth': 3,
      'prior_depth': 1,
      'text_depth': 1,
      'latents': 6,
      'latent_dim': 4,
      'vocab_size': 600,
      'length': 20,
      'pad_id': 0,
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
  config.checkpoint = ConfigDict({'every': 500, 'keep': 1})
  config.mesh = ConfigDict({'data': -1, 'fsdp': 1, 'tensor': 1})
  config.compute = clip.compute()
  return config
