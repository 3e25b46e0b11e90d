"""The published tower sizes by name."""

import dataclasses
from typing import Any

from align_jax.errors import UserError, did_you_mean
from align_jax.models.text import TextConfig
from align_jax.models.vit import VitConfig


@dataclasses.dataclass(frozen=True)
class Variant:
  """Sizes of a transformer."""

  width: int
  depth: int
  heads: int
  mlp_dim: int


# Zhai et al. 2022, arXiv 2106.04560, table 2; So400m: Alabdulmohsin et al. 2023, arXiv 2305.13035.
VARIANTS = {
  'Ti': Variant(192, 12, 3, 768),
  'S': Variant(384, 12, 6, 1536),
  'B': Variant(768, 12, 12, 3072),
  'L': Variant(1024, 24, 16, 4096),
  'So400m': Variant(1152, 27, 16, 4304),
  'H': Variant(1280, 32, 16, 5120),
  'g': Variant(1408, 40, 16, 6144),
}


def variant(name: str) -> Variant:
  """Returns the sizes of a name such as `B`.

  Raises:
    UserError: no such name.
  """
  if name not in VARIANTS:
    raise UserError(f'model variant {name!r} is unknown{did_you_mean(name, VARIANTS)}')
  return VARIANTS[name]


def vit_variant(name: str, *, patch: int, image_size: int, **more: Any) -> VitConfig:
  """A vision tower of a named size; `more` are further fields of `VitConfig`."""
  return VitConfig(image_size, patch, **dataclasses.asdict(variant(name)), **more)


def text_variant(name: str, *, vocab_size: int, length: int, **more: Any) -> TextConfig:
  """A text tower of a named size; `more` are further fields of `TextConfig`."""
  return TextConfig(vocab_size, length, **dataclasses.asdict(variant(name)), **more)
