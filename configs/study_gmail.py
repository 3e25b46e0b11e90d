"""The GMAIL study: five arms, both readings of inference, the scaling trend and the ablations.

  make study
  (python -m align_jax.study --config=configs/study_gmail.py --workdir=runs/study_gmail)

Three seeds, 18 arms; two hours on 2 CPU cores, each piece kept as soon as it is done. What came out
of it stands in docs/results.md.
"""

from ml_collections import ConfigDict

from configs import clip, demo

BASE_IMAGES = 2000


def get_config() -> ConfigDict:
  """Returns the study."""
  config = demo.get_config()
  config.title = 'GMAIL on emoji scenes: the study'
  config.seeds = (0, 1, 2)
  config.data.train_count = BASE_IMAGES
  config.data.extra_count = 7 * BASE_IMAGES
  config.data.real = f'{clip.SCENES}&count={7 * BASE_IMAGES}'
  config.sampling.count = 8 * BASE_IMAGES
  config.sampling.gap_count = 600
  config.sampling.steps = 10
  config.sampling.shards = 8
  # as Stable Diffusion in the paper, the generator has seen far more than the arms' real images
  config.generator.data.real = f'{config.data.real}&split=train&shuffle=0'
  config.generator.steps = 3000
  config.base.steps = 300
  config.arm.steps = 300
  config.arms = (
    {'name': 'base', 'title': 'base, before any arm', 'stages': ()},
    *(main_arm(arm) for arm in config.arms),
    {
      'name': 'ceiling',
      'title': 'real fine-tuned on the partners (ceiling)',
      'generated': 2 * BASE_IMAGES,  # their partners, that is
      'stages': (
        {'data': {'real': '{real}', 'more': ({'spec': '{extra_partners}', 'weight': 1.0},)}},
      ),
    },
    *scaling(),
    *ablations(),
  )
  return config


def main_arm(arm: ConfigDict) -> dict:
  """An arm of the demo, with twice as many generated images as there are real ones."""
  return {**arm, 'generated': 2 * BASE_IMAGES}


def variant(name: str, title: str, group: str, times: int = 2, **changes) -> dict:
  """The aligned arm with something changed."""
  return {
    'name': name,
    'title': title,
    'group': group,
    'stages': demo.aligned(**changes),
    'readings': ('clip_flow', 'aligned_encoder'),
    'generated': times * BASE_IMAGES,
  }


def scaling() -> list[dict]:
  """Aligned with 1, 4 and 8 times as many generated images as real ones; 2 is the main arm."""
  group = 'More generated images (the aligned arm above has 2×)'
  return [variant(f'aligned_{n}x', f'aligned, {n}×', group, n) for n in (1, 4, 8)]


def ablations() -> list[dict]:
  """What the sources leave open."""
  rank, form = 'LoRA rank (4 above)', 'Form of the alignment loss (one-way above)'
  text, heads = 'Text term (none above)', 'Projection (dual above)'
  more = 'Second stage (text side alone above)'
  return [
    variant('rank_1', 'rank 1', rank, rank=1),
    variant('rank_16', 'rank 16', rank, rank=16),
    variant('rank_full', 'full rank', rank, rank='full'),
    variant('symmetric', 'symmetric', form, form='symmetric'),
    variant('sigmoid', 'sigmoid', form, form='sigmoid'),
    variant('text_term', 'text term, weight 1', text, text_weight=1.0),
    variant('single_projection', 'single projection', heads, projection='single'),
    variant('unlocked', 'all parts learn through their tracks', more, lock=()),
    variant(
      'unlocked_longer', 'the same, as many steps as the naive mix', more, lock=(), use_steps=300
    ),
  ]
