"""The demo: does aligning generated images beat mixing them, on real artwork?

  make demo      (python -m align_jax.study --config=configs/demo.py --workdir=runs/demo)

A base model learns from 2,000 real scenes. A generator learns from the same scenes and draws 2,500
images: of the captions of those scenes, and of captions whose images nobody saw. Then four arms
spend the same number of steps. Under 15 minutes on 2 CPU cores. On your own images:
`--config.data.real=folder:DIR --config.data.held_out="{}" --config.templates=photo`.
"""

from ml_collections import ConfigDict

from configs import clip, flow


def get_config() -> ConfigDict:
  """Returns the study."""
  config = ConfigDict()
  config.title = 'GMAIL on emoji scenes'
  config.seeds = (0,)
  config.data = ConfigDict(
    {
      'real': clip.SCENES,
      'held_out': {'compositions': f'{clip.SCENES}&split=compositions'},
      'train_count': 2000,
      'extra_count': 500,
      'test_count': 1000,
    }
  )
  config.base = base()
  config.generator = generator()
  config.sampling = ConfigDict(
    {
      'count': 2500,
      'gap_count': 300,
      'steps': 8,
      'guidance': 3.0,
      'method': 'euler',
      'batch_size': 250,
      'shards': 4,
      'seed': 0,
    }
  )
  config.arm = arm()
  config.arms = (
    {'name': 'real_only', 'title': 'real only', 'stages': ({'data': {'real': '{real}'}},)},
    {
      'name': 'generated_only',
      'title': 'generated only, unaligned',
      'stages': ({'data': {'generated': '{generated}'}},),
    },
    {
      'name': 'naive_mix',
      'title': 'naive mix',
      'stages': ({'data': {'real': '{real}', 'generated': '{generated}'}},),
    },
    {
      'name': 'aligned',
      'title': 'aligned (GMAIL)',
      'stages': aligned(),
      'readings': ('clip_flow', 'aligned_encoder'),
    },
  )
  config.tasks = ('retrieval', 'zero_shot', 'probe', 'gap')
  config.templates = 'scene'
  config.eval_limit = 4000
  return config


def base() -> ConfigDict:
  """The model that every arm starts from: real images alone."""
  config = clip.get_config()
  config.steps = 350
  config.data.real = '{real}'
  config.checkpoint = ConfigDict({'every': 250, 'keep': 1})
  return config


def generator() -> ConfigDict:
  """A text-conditional rectified-flow model on the same real images."""
  config = flow.get_config()
  config.steps = 450
  config.data.real = '{real}'
  return config


def arm() -> ConfigDict:
  """What all arms share; a stage overrides it."""
  config = clip.get_config()
  config.steps = 160
  config.data.real = ''
  config.optimizer.lr = 5e-4
  config.optimizer.warmup_steps = 10
  config.checkpoint = ConfigDict({'every': 0, 'keep': 1})
  config.model.init = '{init}'
  return config


def aligned(
  *,
  rank: int | str = 4,
  form: str = 'one_way',
  text_weight: float = 0.0,
  projection: str = 'dual',
  lock: tuple[str, ...] = ('image', 'image_projection', 'lora', 'generated_projection'),
  use_steps: int = 0,
) -> tuple[dict, dict]:
  """GMAIL's two stages: align the generated track, then learn from both modalities through it.

  The steps of an arm are shared evenly by its stages, so that every arm takes as many; `use_steps`
  is another number for the second.
  """
  model = {
    'projection': projection,
    'lora': {'rank': rank, 'alpha': 4.0, 'layers': ('attention', 'mlp')},
  }
  align = {
    'model': model,
    'objective': {'name': 'gmail', 'form': form, 'text_weight': text_weight},
    # images without a real partner can take part in the text term alone
    'data': {'real': '{real}', 'generated': '{generated}' if text_weight else '{paired}'},
    'optimizer': {'weight_decay': 0.01},
  }
  use = {
    'model': model,
    'objective': {'name': 'contrastive', 'route': 'modality', 'lock': lock},
    'data': {'real': '{real}', 'generated': '{generated}'},
  }
  return align, use | ({'steps': use_steps} if use_steps else {})
