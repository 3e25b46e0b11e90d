"""SigLIP at the larger published sizes, from scratch: `l16` (256 px), `so400m14` (384 px), `g14`.

  python -m launch.preflight --config=configs/siglip_large.py:so400m14 --topology=v6e:16x16
  python -m align_jax.main --config=configs/siglip_large.py:l16 --workdir=gs://BUCKET/siglip_l16 \
    --config.data.real='webdataset:DIR/*.tar'

`docs/scaling.md` has what each needs on which slice. Sizes as Zhai et al. 2023 (arXiv 2303.15343),
So400m as Alabdulmohsin et al. 2023 (arXiv 2305.13035), with its text tower beside g as in SigLIP 2
(arXiv 2502.14786). Everything else as `siglip_b16.py`.
"""

import dataclasses

from ml_collections import ConfigDict

from align_jax.models.variants import variant
from configs import siglip_b16

# name -> image tower, its patch and image size in pixels, text tower
SIZES = {
  'b16': ('B', 16, 224, 'B'),
  'l16': ('L', 16, 256, 'L'),
  'so400m14': ('So400m', 14, 384, 'So400m'),
  'g14': ('g', 14, 224, 'So400m'),
}


def resized(config: ConfigDict, size: str) -> ConfigDict:
  """Gives the towers of a SigLIP experiment another size."""
  image, patch, pixels, text = SIZES[size]
  config.model.image.update(dataclasses.asdict(variant(image)), patch=patch, image_size=pixels)
  if pixels % patch:
    config.model.image.drop_edge = True  # as published: 27 patches of 14 pixels of 384
  config.model.text.update(dataclasses.asdict(variant(text)))
  config.model.dim = variant(image).width
  return config


def get_config(size: str = 'l16') -> ConfigDict:
  """Returns the experiment; `size` is any of `SIZES`."""
  config = resized(siglip_b16.get_config(), size)
  # 1,152 and 1,408 divide by 128 at most, and a gather over 32 chips has shorter ways
  config.mesh = ConfigDict({'data': -1, 'fsdp': 32, 'tensor': 1})
  return config
