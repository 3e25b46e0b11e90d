"""Do hard negatives help GMAIL's alignment?

  make study-saha-gmail
  (python -m align_jax.study --config=configs/study_saha_gmail.py --workdir=runs/study_saha_gmail)

The aligned arm of the demo, whose first stage pulls each generated image to its real partner and
away from the other partners of the batch. Those come by lot, or in clusters of eight that the
frozen base finds hard: pairs of a generated image and its real partner, mined by each strategy.
Three seeds.
"""

from ml_collections import ConfigDict

from configs import demo

STRATEGIES = {
  'task_random': 'clusters by lot',
  'top_k': 'top k',
  'skip': 'top k after the first 10',
  'percentage': 'below 95 % of the positive',
  'b3': 'B3',
  'saha': 'SaHa',
  'saha_mutual': 'saha_mutual (ours)',
}


def get_config() -> ConfigDict:
  """Returns the study."""
  config = demo.get_config()
  config.title = 'Hard negatives for GMAIL'
  config.seeds = (0, 1, 2)
  config.data.held_out = ConfigDict({})
  paired = config.data.train_count
  config.arms = (
    {'name': 'base', 'title': 'base, before any arm', 'stages': ()},
    arm('batches', 'batches by lot', paired),
    *(arm(name, title, paired, f'{{plan:{name}}}') for name, title in STRATEGIES.items()),
  )
  config.plans = ConfigDict(
    {
      name: {
        'strategy': name,
        'generated': paired,
        'settings': {'skip': 10, 'keep': 50},
      }
      for name in STRATEGIES
    }
  )
  config.tasks = ('retrieval', 'zero_shot', 'gap')
  config.headline = (
    'retrieval.t2i.r1',
    'retrieval.i2t.r1',
    'zero_shot.top1',
    'retrieval.t2i.r5',
    'retrieval.i2t.r5',
    'gap.paired_cosine',
    'gap.auc',
    'plan.false_negatives',
    'plan.true_negative_cosine',
  )
  config.comparisons = tuple(
    (name, other)
    for name, other in (
      ('saha', 'batches'),
      ('saha_mutual', 'batches'),
      ('saha_mutual', 'saha'),
      ('saha_mutual', 'b3'),
      ('task_random', 'batches'),
    )
  )
  return config


def arm(name: str, title: str, paired: int, plan: str = '') -> dict:
  """GMAIL, its first stage by a plan, or by lot."""
  align, use = demo.aligned(lock=())
  align['data'] = {**align['data'], 'plan': plan}
  return {
    'name': name,
    'title': title,
    'stages': (align, use),
    'readings': ('clip_flow', 'aligned_encoder'),
    'generated': paired,
  }
