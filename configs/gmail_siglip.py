"""GMAIL stage 1 on a SigLIP of any size: `b16`, `l16`, `so400m14`, `g14`, for a TPU slice.

  python -m launch.preflight --config=configs/gmail_siglip.py:l16 --topology=v5e:16x16
  python -m align_jax.main --config=configs/gmail_siglip.py:l16 --workdir=gs://BUCKET/gmail_l16 \
    --config.model.init=run:DIR --config.data.real=SPEC --config.data.generated=SPEC

`model.init` names the run whose real track stays frozen. `data.real` holds the real partners that
the generated records' `pair_id` names. The loss is equation 1 of the paper (arXiv 2602.15368) over
the whole batch, adapters of rank 4 as in its section 3.2.
"""

from ml_collections import ConfigDict

from configs import gmail, siglip_b16
from configs.siglip_large import resized


def get_config(size: str = 'b16') -> ConfigDict:
  """Returns the experiment; `size` is any of `configs.siglip_large.SIZES`."""
  config = resized(siglip_b16.get_config(), size)
  config.steps = 10_000
  align = gmail.get_config()
  config.objective = align.objective
  config.model.projection = align.model.projection
  config.model.lora = align.model.lora
  config.optimizer.lr = 5e-4
  config.optimizer.schedule = 'cosine'
  config.optimizer.warmup_steps = 500
  config.optimizer.weight_decay = 0.01
  config.mesh = ConfigDict({'data': -1, 'fsdp': 32, 'tensor': 1})
  return config
