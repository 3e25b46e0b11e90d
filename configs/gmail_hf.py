"""GMAIL stage 1 on a pre-trained CLIP or SigLIP, from a Hugging Face folder or hub id.

  python -m align_jax.main --config=configs/gmail_hf.py --workdir=runs/aligned \
    --config.model.init=hf:DIR --config.data.real=SPEC --config.data.generated=SPEC

`data.real` holds the real partners that the generated records' `pair_id` names. For SigLIP, whose
images have no projection: `--config.model.projection=single`. Then
`python -m align_jax.export --checkpoint=runs/aligned --output=aligned --track=generated`.
"""

from ml_collections import ConfigDict

from configs import gmail, hf


def get_config() -> ConfigDict:
  """Returns the experiment."""
  config = hf.get_config()
  align = gmail.get_config()
  config.steps = align.steps
  config.objective = align.objective
  config.model.projection = align.model.projection
  config.model.lora = align.model.lora
  config.optimizer = align.optimizer
  config.optimizer.lr = 1e-4
  return config
