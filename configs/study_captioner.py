"""GMAIL's second stage: captioners trained on generated images, tested on real ones.

  make study-captioner
  (python -m align_jax.study --config=configs/study_captioner.py --workdir=runs/study_captioner)

An image-text model, a generator and a judge have each seen 16,000 scenes, as CLIP and Stable
Diffusion have seen the web. A captioner is a small decoder, from scratch, that reads the frozen
tower's patches. It learns from 2,000 real images, from 8,000 generated ones, or from both, by one
path or by a track each; the ceiling learns from 8,000 real ones. Three seeds, seven arms; two and
a half hours on one CPU core that had other work for half of them. Results: docs/results.md.
"""

from ml_collections import ConfigDict

from configs import clip, demo, flow, multimodal

REAL = 2000  # real images that captioners may see
GENERATED = 8000  # generated images, of the captions of those and of others
STEPS = 1600  # of a captioner
WORLD = f'{multimodal.SCENES}&split=train&count=16000'  # what models have seen; of other seeds
LOCK = ('image', 'image_lora')  # the tower and its tracks stay as they are


def get_config() -> ConfigDict:
  """Returns the study."""
  config = ConfigDict()
  config.title = 'Captioners trained on generated images'
  config.seeds = (0, 1, 2)
  config.data = ConfigDict(
    {
      'real': f'{multimodal.SCENES}&count={GENERATED}',
      'held_out': {},
      'train_count': REAL,
      'extra_count': GENERATED - REAL,
      'test_count': 1000,
    }
  )
  config.base = towers(seed=7)
  config.models = ConfigDict({'judge': towers(seed=8)})
  config.judge = '{model:judge}'
  config.generator = generator()
  config.sampling = ConfigDict(
    {
      'count': GENERATED,
      'gap_count': 500,
      'steps': 8,
      'guidance': 2.0,
      'method': 'euler',
      'batch_size': 250,
      'shards': 4,
      'seed': 0,
    }
  )
  config.arm = alignment()
  config.captioner = captioner()
  generated = {'generated': '{generated}'}
  both = {'real': '{real}', **generated}
  config.arms = (
    arm('real_only', 'real only', {'real': '{real}'}),
    arm('generated_only', 'generated only, unaligned', generated),
    arm('naive_mix', 'naive mix', both),
    {
      **arm('aligned', 'aligned (GMAIL), generated only', generated, align()),
      'readings': ('clip_flow', 'aligned_encoder'),
    },
    arm('aligned_mix', 'aligned (GMAIL), with the real ones', both, align()),
    arm(
      'ceiling',
      'real, as many as generated (ceiling)',
      {'real': '{real}', 'more': ({'spec': '{extra_partners}', 'weight': GENERATED / REAL - 1},)},
    ),
    {
      **arm('aligned_text', 'aligned by pairs and texts, generated only', generated, align(1.0)),
      'group': 'Text term (none above)',
    },
  )
  config.tasks = ('gap',)
  config.eval_limit = 1000
  config.headline = (
    'captions.exact',
    'captions.object',
    'captions.colour',
    'captions.count',
    'captions.bleu4',
    'captions.cider',
    'captions.clip_score',
    'gap.paired_cosine',
  )
  config.comparisons = (
    ('aligned', 'generated_only'),
    ('aligned', 'naive_mix'),
    ('aligned_mix', 'naive_mix'),
    ('aligned', 'real_only'),
    ('aligned', 'ceiling'),
  )
  return config


def towers(seed: int) -> ConfigDict:
  """An image-text model of the wider world."""
  config = clip.get_config()
  config.data.real = f'{WORLD}&seed={seed}'
  config.checkpoint = ConfigDict({'every': 0, 'keep': 1})
  return config


def generator() -> ConfigDict:
  """The rectified flow of configs/flow.py on the wider world."""
  config = flow.get_config()
  config.steps = 2000
  config.data.real = f'{WORLD}&seed=9'
  return config


def alignment() -> ConfigDict:
  """What the alignment of a track starts from."""
  config = demo.arm()
  config.steps = 300
  return config


def align(text_weight: float = 0.0) -> dict:
  """GMAIL's first stage; without a text term it sees the images that have a real partner."""
  return demo.aligned(text_weight=text_weight)[0]


def captioner() -> ConfigDict:
  """The model of configs/multimodal.py on the towers of the arm; it learns captions alone."""
  config = multimodal.single()
  config.steps = STEPS
  config.model.init = '{init}'
  config.model.image = clip.dual_encoder().image
  config.model.length = config.data.length = 54  # 16 patches; the longest chat takes 50
  config.model.decoder.vocab_size = config.data.vocab_size = 424
  config.data.real = ''
  config.data.text = 'captions'
  config.checkpoint = ConfigDict({'every': 0, 'keep': 1})
  config.eval.every = 0
  return config


def arm(name: str, title: str, data: dict, first: dict | None = None) -> dict:
  """A captioner; with a first stage, generated images go through the track that it aligned."""
  stage = {'objective': {'name': 'caption', 'lock': LOCK}, 'data': data}
  if first is not None:
    stage['objective'] |= {'route': 'modality'}
    stage['model'] = {'image_lora': first['model']['lora']}
  return {
    'name': name,
    'title': title,
    'stages': (*([first] if first else []), stage),
    'generated': GENERATED,
  }
