"""The data engine on long-tailed emoji: thin classes get generated images worth training on.

  python -m align_jax.synthesize --config=configs/synth_emoji.py --workdir=runs/synth_emoji

The real data are 1,500 pictures of 60 things by a Zipf law: half of the things have fewer than ten.
The run trains two generators of different families and an encoder, as stand-ins for Stable
Diffusion and CLIP: they have seen other pictures, of more things, than the real data. Then it draws
3,000 images, most of rare things, and keeps those that are like real ones. Most of its time is
training: the flow alone takes 4,000 steps. On your own images and generators: docs/synth.md.
"""

from ml_collections import ConfigDict

from configs import clip, cvae, flow

_PICTURES = 'emoji:scenes?size=32&max_objects=1&captions=short'
REAL = f'{_PICTURES}&concepts=60&tail=1.0&split=train&count=1500'
# what the models of the engine have seen: more things, each as often, in pictures of another seed
WORLD = f'{_PICTURES}&concepts=80&seed=7&split=train&count=12000'
COLOURS = ('red', 'orange', 'yellow', 'green', 'blue', 'purple', 'pink', 'brown', 'grey', 'black')


def get_config() -> ConfigDict:
  """Returns the run."""
  config = ConfigDict()
  config.real = REAL
  config.licence = 'CC BY-SA 4.0 (generators trained on OpenMoji)'
  config.partners = 'category'
  config.embedder = trained(embedder())
  config.text_embedder = ''
  config.categories = ConfigDict(
    {
      'names': (),
      'base': f'source:{REAL}',
      'extra': f'source:{WORLD}&limit=2000',  # ImageNet's names, for generators that know them
      'extra_count': 20,
      'threshold': 0.8,
      'template': 'a {name}',
      'shortfall': 'note',
    }
  )
  config.prompts = ConfigDict(
    {
      'per_category': 12,
      'strategies': {'template': 1.0, 'grammar': 3.0},
      'templates': ('a {name}', 'two {name}s', 'three {name}s'),
      'grammar': {
        'patterns': ('a {colour} {name}', 'two {colour} {name}s'),
        'attributes': {'colour': COLOURS},
      },
      'alike': 0.999,
    }
  )
  config.generators = (
    {
      'name': 'flow',
      'kind': 'flow',
      'weight': 2.0,
      'model': trained(generator()),
      'settings': {'steps': 10, 'guidance': 2.0, 'method': 'euler', 'batch_size': 64},
    },
    {
      'name': 'cvae',
      'kind': 'cvae',
      'weight': 1.0,
      'model': trained(second_generator()),
      'settings': {'temperature': 1.0, 'batch_size': 64},
    },
  )
  config.images = ConfigDict(
    {'count': 3000, 'allocation': 'rare', 'extra_share': 0.15, 'part_size': 250, 'seed': 0}
  )
  config.annotation = ConfigDict(
    {
      'method': 'matte',
      'parts': 'all',  # prompts ask for one, two or three of a thing
      'holes': 'fill',
      'whole': 0.95,
      'work_size': 256,
      'iterations': 3,
    }
  )
  config.filtration = filtration()
  config.report = ConfigDict(
    {
      'map_points': 1500,
      'metric_rows': 1500,
      'neighbours': 5,
      'categories_shown': 8,
      'pictures_each': 6,
      'dropped_each': 12,
      'seed': 0,
    }
  )
  return config


def filtration() -> ConfigDict:
  """What is kept: like the real images of its category, and not the same again."""
  return ConfigDict(
    {
      # alike on both sides: an encoder of pictures knows no black surroundings (docs/synth.md)
      'references': {
        'real_view': 'blurred',
        'generated_view': 'blurred',
        'templates': ('a {}',),
      },
      'nearest': 10,
      'similarity': {'kind': 'calibrated', 'keep': 0.9, 'at_least': 8},
      # of extra categories there are no real images: there the text decides
      'text': {'kind': 'calibrated', 'keep': 0.9, 'at_least': 8},
      'text_of': 'category',
      'text_for': 'fallback',
      'fallback': 'text',
      'masks': 'drop',
      'min_area': 0.01,
      'max_area': 0.9,
      'min_spread': 2.0,
      'duplicates': {'rule': 'either', 'distance': 2, 'cosine': 0.999},
    }
  )


def trained(config: ConfigDict) -> dict:
  """A model that the run trains for itself; `run` would name one that is there."""
  return {'run': '', 'train': config.to_dict()}


def generator() -> ConfigDict:
  """The rectified flow of configs/flow.py on the wider world."""
  config = flow.get_config()
  config.steps = 4000
  config.data.real = WORLD
  return config


def second_generator() -> ConfigDict:
  """The conditional VAE of configs/cvae.py on the wider world."""
  config = cvae.get_config()
  config.steps = 1500
  config.data.real = WORLD
  return config


def embedder() -> ConfigDict:
  """The two towers of configs/clip.py on the wider world: they judge what is kept."""
  config = clip.get_config()
  config.steps = 800
  config.data.real = WORLD
  return config
