"""What is pasted, how large and where: all that pasting draws by lot."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from align_jax.errors import require
from align_jax.synth.paste.compose import Instance, Placement
from align_jax.synth.paste.objects import Size

_FEW = 3  # objects of a class, below which their spread says nothing
_RELATIVE_SPREAD = 0.25  # of the mean, that is taken then
_SPREADS = 2.0  # how far from the mean a size is drawn at most
_SMALLEST = 0.01  # root of a share of the picture


@dataclasses.dataclass(frozen=True)
class PasteConfig:
  """How instances get into pictures.

  Attributes:
    least, most: instances for a picture, any number between them with equal chance (DiverGen: 0 to
      19).
    balance: `category`: a class by lot, then an instance of it; `inverse`: classes with a chance
      of one over how many real images they have; `instance`: any instance by lot.
    smallest, largest: size of an instance of a class that real pictures show nothing of: root of
      its share of the picture's area, any value between them.
    mirror: turn every second instance left to right.
    feather: width of the soft edge, pixels, see `compose.compose`; 0: hard.
    least_visible: share of an object that must be left for it to stay one, see `compose.compose`.
    captions: `keep` them, or `add` what was pasted to each.
  """

  least: int = 0
  most: int = 19
  balance: Literal['category', 'inverse', 'instance'] = 'category'
  smallest: float = 0.05
  largest: float = 0.3
  mirror: bool = False
  feather: float = 0.0
  least_visible: float = 0.2
  captions: Literal['keep', 'add'] = 'keep'

  def __post_init__(self) -> None:
    where = 'config.paste'
    require(0 <= self.least <= self.most, f'{where}.least', f'{self.least}: 0 to most={self.most}')
    require(self.most <= 1000, f'{where}.most', f'{self.most}: at most 1000')
    require(
      0 < self.smallest <= self.largest <= 1,
      f'{where}.smallest',
      f'{self.smallest}: above 0 and at most largest={self.largest}, which is at most 1',
    )
    require(0 <= self.feather <= 64, f'{where}.feather', f'{self.feather} pixels: 0 to 64')
    require(
      0 <= self.least_visible <= 1, f'{where}.least_visible', f'{self.least_visible} is no share'
    )


def place(
  instances: Sequence[Instance],
  width: int,
  height: int,
  sizes: Mapping[str, Size],
  config: PasteConfig,
  rng: np.random.Generator,
) -> list[Placement]:
  """Draws size, place and side for each instance; all of it comes to lie within the picture.

  Args:
    instances: what is pasted, the lowest first.
    width, height: of the picture.
    sizes: of the classes in real pictures, as far as known (`objects.measure_sizes`).
    config: the rest.
    rng: three draws for each instance, four with `mirror`.
  """
  return [
    _place(instance, width, height, sizes.get(instance.label), config, rng)
    for instance in instances
  ]


def _place(
  instance: Instance,
  width: int,
  height: int,
  size: Size | None,
  config: PasteConfig,
  rng: np.random.Generator,
) -> Placement:
  solid = int(np.count_nonzero(instance.pixels[..., 3] >= 128))
  wanted = _root_area(size, config, rng) * math.sqrt(width * height)
  scale = wanted / math.sqrt(max(1, solid))
  h, w = instance.pixels.shape[:2]
  scale = min(scale, width / w, height / h)  # larger than the picture: as large as fits
  w, h = min(width, max(1, round(scale * w))), min(height, max(1, round(scale * h)))
  x, y = (rng.random(2) * (width - w + 1, height - h + 1)).astype(int).tolist()
  mirror = config.mirror and bool(rng.random() < 0.5)
  return Placement(instance, (x, y, w, h), mirror)


def _root_area(size: Size | None, config: PasteConfig, rng: np.random.Generator) -> float:
  """Draws the root of the share of the picture that an instance takes."""
  if size is None:
    return config.smallest + (config.largest - config.smallest) * rng.random()
  spread = size.spread if size.count >= _FEW else _RELATIVE_SPREAD * size.mean
  off = float(np.clip(rng.normal(), -_SPREADS, _SPREADS))
  return min(1.0, max(_SMALLEST, size.mean + off * spread))
