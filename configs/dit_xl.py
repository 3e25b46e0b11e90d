"""DiT-XL/2 on latents: 256 px images of captions, a global batch of 2,048 on a v5e slice of 256.

  python -m launch.preflight --config=configs/dit_xl.py --topology=v5e:16x16
  python -m launch.preflight --config=configs/dit_xl.py --topology=v5e:16x16 --program=sampler \
    --config.mesh.data=-1 --config.mesh.fsdp=1
  python -m align_jax.main --config=configs/dit_xl.py --workdir=gs://BUCKET/dit_xl \
    --config.data.real='webdataset:DIR/*.tar' --config.model.init=hf:VAE_DIR

Sizes as Peebles & Xie 2023 (arXiv 2212.09748, table 1), the flow as Esser et al. 2024 (arXiv
2403.03206): velocities, logit-normal times. Patches attend to the words besides: 925M parameters
and 295 GFLOPs a forward, where the class-conditional DiT-XL/2 has 675M and 237. The autoencoder is
Stable Diffusion's (84M parameters), frozen: 32x32 latents of 4 channels. Its weights come from
`model.init`; fresh ones would be noise for ever. `docs/scaling.md` has what step and sampler need.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  """Returns the experiment."""
  config = ConfigDict()
  config.seed = 0
  config.steps = 400_000
  config.batch_size = 2048
  config.log_every = 50
  config.objective = ConfigDict(
    {'name': 'flow', 'time': 'logit_normal', 'time_mean': 0.0, 'time_std': 1.0, 'text_dropout': 0.1}
  )
  config.model = ConfigDict(
    {
      'init': '',
      'image_size': 256,
      'patch': 2,
      'width': 1152,
      'depth': 28,
      'heads': 16,
      'mlp_dim': 4608,
      'text_depth': 4,
      'vocab_size': 32_000,
      'length': 64,
      'pad_id': 0,
      'predict': 'velocity',
      'cross_attention': True,
      'activation': 'gelu_tanh',
      'dtype': 'bfloat16',
      'autoencoder': {
        'widths': (128, 256, 512, 512),
        'blocks': 2,
        'groups': 32,
        'latent_channels': 4,
        'attention': True,
        'quant': True,
        'post_quant': True,
        'scale': 0.18215,
        'shift': 0.0,
        'dtype': 'bfloat16',
      },
    }
  )
  config.data = ConfigDict(
    {
      'real': '',
      'tokenizer': '',
      'vocab_size': 32_000,
      'length': 64,
      'resize': 'crop',
      'interpolation': 'bicubic',
      'min_scale': 1.0,
      'flip': True,
      'threads': 16,
      'max_skipped': 0.01,
      'max_pixels': 50_000_000,
    }
  )
  config.optimizer = ConfigDict(
    {
      'lr': 1e-4,
      'schedule': 'constant',
      'warmup_steps': 10_000,
      'weight_decay': 0.0,
      'b2': 0.95,
      'clip_norm': 1.0,
      'ema': 0.9999,
      'accumulate': 1,
    }
  )
  config.checkpoint = ConfigDict({'every': 1000, 'keep': 2})
  config.mesh = ConfigDict({'data': -1, 'fsdp': 32, 'tensor': 1})
  config.compute = ConfigDict(
    {
      'scan': True,
      'remat': 'dots',
      'micro_batch': 0,
      'loss': 'plain',
      'rows': 0,
      'travel': 'bfloat16',
    }
  )
  return config
