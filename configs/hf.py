"""Contrastive tuning of a pre-trained model, CLIP or SigLIP, from a Hugging Face folder or hub id.

  python -m align_jax.main --config=configs/hf.py --workdir=runs/tuned \
    --config.model.init=hf:DIR --config.data.real='folder:photos?split=train'

The model, tokenizer and image processing are those of the folder: what is None here is read there.
SigLIP: `--config=configs/hf.py:sigmoid`. Another resolution: `--config.model.image.image_size=336`.
Two towers of different origin, locked-text tuning: `--config.model.init=hf:VISION,hf:BERT
--config.model.dim=384 --config.objective.lock="('text',)"`.
"""

from ml_collections import ConfigDict, config_dict

from configs import clip


def get_config(form: str = 'softmax') -> ConfigDict:
  """Returns the experiment; `form` is `softmax` (CLIP) or `sigmoid` (SigLIP)."""
  config = clip.get_config()
  config.batch_size = 64
  config.objective.form = form
  config.model = dual_encoder()
  text, number = config_dict.placeholder(str), config_dict.placeholder(int)
  config.data.real = ''
  config.data.update(length=number, resize=text, interpolation=text, short_side=number, threads=2)
  config.optimizer.lr = 1e-5
  config.optimizer.weight_decay = 0.01
  return config


def dual_encoder() -> ConfigDict:
  """What the folder does not decide, and a place for what it may be overruled in."""
  number, real = config_dict.placeholder(int), config_dict.placeholder(float)
  return ConfigDict(
    {
      'init': '',
      'image': {'image_size': number, 'dtype': 'float32'},
      'text': {'dtype': 'float32', 'pool': config_dict.placeholder(str)},
      'dim': number,
      'projection': 'single',
      'init_scale': real,
      'init_bias': real,
      'max_scale': real,
    }
  )
