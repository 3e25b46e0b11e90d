"""Does diverse, filtered generated data beat more of the same, and does alignment change who wins?

  make study-diversity
  (python -m align_jax.study --config=configs/study_diversity.py --workdir=runs/study_diversity)

A long-tailed real set: 1,500 pictures of 60 things, half of them with fewer than ten. Five sets of
generated pictures, each with one kind of diversity more than the one before, 1,200 pictures of
each: by naive mix and through GMAIL's tracks. Then one, two and four times as many of the plainest
and of the most diverse. Three seeds, 19 arms; an hour and a half on 2 CPU cores.
What it found: docs/results.md.
"""

from ml_collections import ConfigDict

from configs import clip, demo, synth_emoji

REAL = 1500  # real pictures
GENERATED = 1200  # pictures of a set at 1×
STEPS = 200  # of an arm
PICTURES = 'emoji:scenes?size=32&max_objects=1&captions=short&concepts=60'
SETS = {
  'plain': 'one template, one generator',
  'extra': '+ extra categories',
  'prompts': '+ prompt diversity',
  'generators': '+ generator diversity',
  'all': '+ filtration (all)',
}


def get_config() -> ConfigDict:
  """Returns the study."""
  config = ConfigDict()
  config.title = 'Diversity of generated data on long-tailed emoji'
  config.seeds = (0, 1, 2)
  config.data = ConfigDict(
    {
      'real': f'{PICTURES}&tail=1.0&count={REAL}',
      'test': f'{PICTURES}&count=1800',  # every thing as often
      'held_out': {},
      'train_count': 0,
      'extra_count': 0,
      'test_count': 0,
    }
  )
  config.models = ConfigDict(
    {
      'embedder': synth_emoji.embedder(),
      'flow': synth_emoji.generator(),
      'cvae': synth_emoji.second_generator(),
    }
  )
  config.sets = ConfigDict({name: made(name) for name in SETS})
  config.base = base()
  config.arm = arm()
  config.arms = (
    {'name': 'real_only', 'title': 'no generated data', 'stages': ({'data': {'real': '{real}'}},)},
    *(mixed(name, 1) for name in SETS),
    *(aligned(name, 1) for name in SETS),
    *(
      use(name, times) for use in (mixed, aligned) for name in ('plain', 'all') for times in (2, 4)
    ),
  )
  config.tasks = ('zero_shot', 'retrieval')
  config.templates = 'scene'
  config.eval_limit = 4000
  config.frequency = (10, 40)
  config.headline = (
    'zero_shot.balanced',
    'zero_shot.frequent',
    'zero_shot.common',
    'zero_shot.rare',
    'retrieval.t2i.r1',
  )
  config.comparisons = (
    ('mix_all', 'mix_plain'),
    ('gmail_all', 'gmail_plain'),
    ('mix_all_4x', 'mix_plain_4x'),
    ('gmail_all_4x', 'gmail_plain_4x'),
    ('gmail_plain', 'mix_plain'),
    ('gmail_all', 'mix_all'),
  )
  config.trends = ConfigDict(
    {
      f'{title}, {what}': tuple(f'{kind}_{name}{times}' for times in ('', '_2x', '_4x'))
      for kind, title in (('mix', 'naive mix'), ('gmail', 'GMAIL'))
      for name, what in (('plain', 'plain'), ('all', 'diverse, filtered'))
    }
  )
  return config


def made(name: str) -> ConfigDict:
  """The engine's config of a set: each has what those before it have, and one thing more."""
  level = list(SETS).index(name)
  config = synth_emoji.get_config()
  config.real = '{real}'
  config.partners = 'none'  # a picture of the same thing is no partner: the text term aligns
  config.embedder = {'run': '{model:embedder}', 'train': {}}
  config.categories.base = f'source:{PICTURES}&tail=1.0&count={REAL}&split=train'
  if level < 1:
    config.categories.extra = ''
  if level < 2:
    config.prompts.per_category = 1
    config.prompts.strategies = ConfigDict({'template': 1.0})
    config.prompts.templates = ('a {name}',)
  generators = [dict(generator) for generator in config.generators]
  for generator in generators:
    generator['model'] = {'run': f'{{model:{generator["name"]}}}', 'train': {}}
  config.generators = tuple(generators[: 1 if level < 3 else 2])
  if level < 4:
    config.annotation.method = 'none'
    config.filtration = unfiltered()
  else:  # the better half of each category: a threshold for all would keep few of the rare ones
    for score in ('similarity', 'text'):
      config.filtration[score] = ConfigDict({'kind': 'quantile', 'drop': 0.5, 'at_least': 1})
  # of every category as many in every set, however large; what filtration drops is drawn as well
  config.images.allocation = 'equal'
  config.images.count = {'plain': 4, 'all': 10}.get(name, 1) * GENERATED
  config.images.part_size = 500
  return config


def unfiltered() -> ConfigDict:
  """Keeps everything that is an image."""
  config = synth_emoji.filtration()
  config.similarity = ConfigDict({'kind': 'none'})
  config.text = ConfigDict({'kind': 'none'})
  config.fallback = 'keep'
  config.masks = 'keep'
  config.min_area, config.max_area, config.min_spread = 0.0, 1.0, 0.0
  config.duplicates.rule = 'none'
  return config


def base() -> ConfigDict:
  """The model that every arm starts from: the long-tailed real pictures alone."""
  config = clip.get_config()
  config.steps = 200
  config.data.real = '{real}'
  config.checkpoint = ConfigDict({'every': 0, 'keep': 1})
  return config


def arm() -> ConfigDict:
  """What all arms share; a stage overrides it."""
  config = demo.arm()
  config.steps = STEPS
  return config


def mixed(name: str, times: int) -> dict:
  """A naive mix of the real pictures and a set."""
  return _arm(
    'mix', name, times, ({'data': {'real': '{real}', 'generated': f'{{set:{name}}}'}},), ()
  )


def aligned(name: str, times: int) -> dict:
  """GMAIL: the set through a track of its own, aligned by its texts, then all parts learn.

  With the image tower frozen, as the paper has it, the second stage could not show what images are
  worth (docs/results.md); it takes as many steps as the naive mix.
  """
  stages = demo.aligned(text_weight=1.0, lock=(), use_steps=STEPS)
  stages[0]['objective']['pair_weight'] = 0.0  # no picture is of the same scene as a real one
  for stage in stages:
    stage['data'] = {'real': '{real}', 'generated': f'{{set:{name}}}'}
  return _arm('gmail', name, times, stages, ('clip_flow', 'aligned_encoder'))


def _arm(kind: str, name: str, times: int, stages: tuple, readings: tuple[str, ...]) -> dict:
  way = {'mix': 'naive mix', 'gmail': 'GMAIL'}[kind]
  return {
    'name': f'{kind}_{name}' + (f'_{times}x' if times > 1 else ''),
    'title': f'{way}: {SETS[name]}' + (f', {times}×' if times > 1 else ''),
    'stages': stages,
    'generated': times * GENERATED,
    'group': '' if times == 1 else 'Twice and four times as many generated images',
    **({'readings': readings} if readings else {}),
  }
