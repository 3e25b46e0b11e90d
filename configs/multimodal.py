"""A multimodal model from scratch on emoji scenes: it describes them and answers questions.

  python -m align_jax.main --config=configs/multimodal.py:tower --workdir=runs/tower
  python -m align_jax.main --config=configs/multimodal.py:single --workdir=runs/single \\
    --config.model.init=run:runs/tower
  python -m align_jax.main --config=configs/multimodal.py --workdir=runs/multimodal \\
    --config.model.init=run:runs/single
  python -m align_jax.evaluate --checkpoint=runs/multimodal --output=answers.json \\
    --data='emoji:scenes?size=32&concepts=24&max_objects=2&captions=short&split=compositions'

To know things it must have seen many images, so the second asks one question of each. To look up
what is asked for it must have answered many questions, so the third asks six.
"""

from ml_collections import ConfigDict

from configs import clip

SCENES = 'emoji:scenes?size=32&concepts=24&max_objects=2&captions=short'


def get_config(flavour: str = 'answers') -> ConfigDict:
  """Returns the experiment; `flavour` is `tower`, `single` or `answers`, in this order."""
  return {'tower': tower, 'single': single, 'answers': answers}[flavour]()


def tower() -> ConfigDict:
  """The image tower learns to tell things apart, beside a small text tower."""
  config = clip.get_config()
  config.steps = 1200
  config.model.image = image()
  config.model.dim = 96
  config.data.real = f'{SCENES}&split=train&count=32000'
  return config


def image() -> ConfigDict:
  """The tower: 64 patches, for parts of things are as small as that."""
  return ConfigDict(
    {
      'image_size': 32,
      'patch': 4,
      'width': 96,
      'depth': 4,
      'heads': 3,
      'mlp_dim': 288,
      'pool': 'mean',
      'positions': 'learned',
      'activation': 'gelu_tanh',
      'dtype': 'float32',
    }
  )


def answers() -> ConfigDict:
  """It goes on with several questions of each image, and with summaries in one word."""
  config = single()
  config.steps = 5000
  config.data.questions = 6
  config.data.summaries = 0.2
  config.model.length = config.data.length = 200
  config.optimizer.lr = 1e-3
  return config


def single() -> ConfigDict:
  """The whole model learns from captions and questions, one of an image at a time."""
  config = ConfigDict()
  config.seed = 0
  config.steps = 5000
  config.batch_size = 32  # small: many updates, and colours are told after 30,000 examples
  config.log_every = 100
  # a yes or no weighs as much as a caption: in a mean over tokens it is hardly learnt
  config.objective = ConfigDict(
    {'name': 'caption', 'weight': 'answer', 'route': 'none', 'lock': ()}
  )
  config.model = ConfigDict(
    {
      'init': '',
      'image': image(),
      'decoder': {
        'vocab_size': 800,
        'width': 96,
        'depth': 2,
        'heads': 3,
        'kv_heads': 1,
        'head_dim': 32,
        'mlp_dim': 256,
        'tied': False,
        'qkv_bias': True,
        'rope_base': 10_000.0,
        'dtype': 'float32',
      },
      'image_id': 1,
      'projector_activation': 'gelu',
      'projector_bias': True,
      'length': 92,
    }
  )
  config.data = ConfigDict(
    {
      'real': f'{SCENES}&split=train&count=32000',
      'tokenizer': '',
      'vocab_size': 800,
      'text': 'questions',
      'questions': 1,
      'summaries': 0.0,
      'length': 92,
      'threads': 1,
    }
  )
  config.optimizer = ConfigDict(
    {
      'lr': 1.5e-3,
      'schedule': 'cosine',
      'warmup_steps': 200,
      'weight_decay': 0.05,
      'clip_norm': 1.0,
      'ema': 0.0,
      'accumulate': 1,
    }
  )
  config.checkpoint = ConfigDict({'every': 1000, 'keep': 1})
  config.eval = ConfigDict(
    {
      'every': 0,
      'data': f'{SCENES}&split=compositions',
      'tasks': ('answers',),
      'limit': 200,
    }
  )
  config.mesh = ConfigDict({'data': -1, 'fsdp': 1, 'tensor': 1})
  config.compute = clip.compute()
  return config
