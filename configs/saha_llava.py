"""A pre-trained LLaVA becomes an embedder on a small TPU slice: MMEB's training data, LoRA.

  python -m align_jax.mine --checkpoint=hf:DIR --output=runs/mined \\
    --data='mmeb:MMEB-train?subset=all&limit=5000&images=MMEB-images'
  python -m align_jax.main --config=configs/saha_llava.py --workdir=runs/saha \\
    --config.model.init=hf:DIR --config.data.plan=runs/mined/plan.jsonl.gz
  python -m launch.preflight --config=configs/saha_llava.py:qwen2_0b5 --topology=v5e:4x4

Sizes, tokenizer, template and image processing are those of the folder. `qwen2_0b5` states the
sizes of a LLaVA of SigLIP So400m/14 at 384 pixels and Qwen2 0.5B, from scratch: what a slice needs
is known without the folder. Temperature, rank and k as in the paper (arXiv 2508.00955).
"""

import dataclasses

from ml_collections import ConfigDict

from align_jax.models.variants import variant
from configs import saha

SIZES = ('', 'qwen2_0b5')
DATA = 'mmeb:MMEB-train?subset=all&limit=5000&images=MMEB-images'


def get_config(size: str = '') -> ConfigDict:
  """Returns the experiment; `size` is any of `SIZES`."""
  config = saha.get_config()
  config.steps = 1500
  config.batch_size = 1024
  config.objective.temperature = 0.02
  lora = {'rank': 8, 'alpha': 64.0, 'layers': ('attention', 'mlp')}
  config.model = ConfigDict(
    {
      'init': '',
      'image': {'dtype': 'bfloat16'},
      'decoder': {'dtype': 'bfloat16', 'lora': lora},
      'length': 1024,  # an image of 729 patches, both prompts, a question
    }
  )
  if size:
    image = {**dataclasses.asdict(variant('So400m')), 'image_size': 384, 'patch': 14}
    image |= {'depth': 26, 'drop_edge': True, 'pool': 'mean'}
    config.model.image.update(image)
    config.model.decoder.update(
      vocab_size=152_000,
      width=1024,
      depth=24,
      heads=16,
      kv_heads=16,
      head_dim=64,
      mlp_dim=2816,
      qkv_bias=True,
      rope_base=1e6,
    )
    config.model.image_id = 151_646
  config.data.update(real=DATA, length=1024, vocab_size=152_000, threads=16)
  config.remine.k = 15
  config.optimizer.lr = 5e-5
  config.optimizer.warmup_steps = 100
  config.eval = ConfigDict({'every': 0, 'data': ''})
  config.mesh = ConfigDict({'data': -1, 'fsdp': 16, 'tensor': 1})
  config.compute.update(scan=True, remat='full', micro_batch=4)
  return config
