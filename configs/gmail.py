"""GMAIL stage 1: aligns the generated track of a trained run to its frozen real track.

  python -m align_jax.main --config=configs/gmail.py --workdir=runs/gmail \
    --config.model.init=run:runs/clip --config.data.generated='arrayrecord:DIR/*.arrayrecord'

`data.real` holds the real partners that the generated records' `pair_id` names. A minute on 2 CPU
cores for 500 steps; `paired_cosine` in metrics.jsonl rises from about 0.5 towards 0.9.
"""

from ml_collections import ConfigDict

from configs import clip


def get_config() -> ConfigDict:
  """Returns the experiment."""
  config = clip.get_config()
  config.steps = 500
  config.objective = ConfigDict(
    {
      'name': 'gmail',
      'form': 'one_way',  # equation 1
      'temperature': 0.07,
      'pair_weight': 1.0,
      'text_weight': 0.0,
      'learn_projection': True,
    }
  )
  config.model.projection = 'dual'
  config.model.lora = ConfigDict({'rank': 4, 'alpha': 4.0, 'layers': ('attention', 'mlp')})
  config.optimizer.weight_decay = 0.01
  config.optimizer.warmup_steps = 25
  config.eval.every = 0
  return config
