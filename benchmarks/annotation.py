"""Masks of single objects against known ones, beside corner colours and a threshold.

  python -m benchmarks.annotation [--sizes=32,64,128] [--count=100] [--sam=FOLDER]

The built-in drawings tell exactly which pixels are of the object. Four kinds of pictures: single
concepts before white (`concepts`), and scenes of one object, away from the middle and in any
colour, before a plain (`plain`) or a fading background (`fading`), or with the plain one replaced
by a wall and a floor (`floor`). Each is shown as it is, with noise, and after JPEG. A method gets
the image alone; what comes out is held against the truth by intersection over union. The peer is
what one writes in five lines: the distance from the median colour of the four corners, cut by
Otsu's threshold, and the same clean-up (largest part, holes filled).

Of each method: mean and lowest tenth of the IoU, the share of images under 0.5, those without a
mask (they count as 0), milliseconds an image, and the three worst images by name.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from align_jax.data.emoji.masks import decode_mask
from align_jax.data.images import decode_image
from align_jax.data.record import Record
from align_jax.data.sources import open_source
from align_jax.synth.annotation.annotate import AnnotationConfig, annotate, make_masker
from align_jax.synth.annotation.rle import decode
from benchmarks import common

KINDS = ('concepts', 'plain', 'fading', 'floor')
DAMAGES = ('clean', 'noise', 'jpeg')
_NOISE = 10.0  # standard deviation, levels of 255
_QUALITY = 60  # of the JPEG
Masker: TypeAlias = Callable[
  [UInt8[np.ndarray, 'height width 3']], Bool[np.ndarray, 'height width']
]


@dataclasses.dataclass(frozen=True)
class Options:
  """What is measured.

  Attributes:
    sizes: sides of the pictures, pixels.
    count: pictures of each kind and size.
    concepts: that scenes show.
    sam: folder of a SAM saved by transformers; '' leaves it out.
  """

  sizes: str = '32,64,128'
  count: int = 100
  concepts: int = 120
  sam: str = ''


@dataclasses.dataclass(frozen=True)
class Case:
  """A picture and its one object.

  Attributes:
    name: of what is drawn.
    image: the pixels.
    mask: where the object is.
  """

  name: str
  image: UInt8[np.ndarray, 'height width 3']
  mask: Bool[np.ndarray, 'height width']


def cases(kind: str, size: int, options: Options) -> list[Case]:
  """The first pictures of a kind that show one object."""
  if kind == 'concepts':
    spec = f'emoji:concepts?size={size}&concepts={options.count}'
  else:
    # every scene of one object is of one kind or the other, and some show it several times
    count = 12 * options.count
    spec = f'emoji:scenes?size={size}&concepts={options.concepts}&max_objects=1&count={count}'
  out: list[Case] = []
  for record in _records(spec):
    truth = record.truth
    plain = len(truth['background']) == 1
    if len(truth['masks']) == 1 and (kind == 'concepts' or plain == (kind != 'fading')):
      mask = decode_mask(truth['masks'][0])
      name = f'{truth["objects"][0]["colour"]} {record.labels[0]}'
      image = np.ascontiguousarray(decode_image(record.image))
      out.append(Case(name, on_floor(image, mask, len(out)) if kind == 'floor' else image, mask))
    if len(out) == options.count:
      break
  return out


def on_floor(
  image: UInt8[np.ndarray, 'height width 3'], mask: Bool[np.ndarray, 'height width'], seed: int
) -> UInt8[np.ndarray, 'height width 3']:
  """Puts the object before a wall, on a floor; hard at its edge."""
  rng = np.random.default_rng(seed)
  height, width = mask.shape
  wall, floor = rng.integers(60, 250, (2, 3))
  upper = np.arange(height) < int(height * rng.uniform(0.4, 0.8))
  background = np.where(upper[:, None, None], wall, floor) * np.ones((1, width, 1))
  return np.where(mask[..., None], image, background).astype(np.uint8)


def damaged(
  image: UInt8[np.ndarray, 'height width 3'], damage: str, seed: int
) -> UInt8[np.ndarray, 'height width 3']:
  """Adds noise, a little smooth as that of generators, or what JPEG leaves."""
  if damage == 'jpeg':
    _, data = cv2.imencode('.jpg', image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])
  if damage == 'noise':
    noise = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=image.shape), (0, 0), 0.7)
    return np.clip(np.round(image + noise * (_NOISE / noise.std())), 0, 255).astype(np.uint8)
  return image


def _records(spec: str) -> Iterator[Record]:
  source = open_source(spec)
  return (source[index] for index in range(len(source)))


def corner_threshold(
  image: UInt8[np.ndarray, 'height width 3'],
) -> Bool[np.ndarray, 'height width']:
  """The peer: far from the median colour of the corners."""
  colour = np.median(image[[0, 0, -1, -1], [0, -1, 0, -1]].astype(float), axis=0)
  far = np.abs(image - colour).max(axis=-1).astype(np.uint8)
  level, _ = cv2.threshold(far, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
  return far > level


def overlap(found: Bool[np.ndarray, 'h w'], wanted: Bool[np.ndarray, 'h w']) -> float:
  """Intersection over union."""
  return float(np.count_nonzero(found & wanted) / max(1, np.count_nonzero(found | wanted)))


def score(
  masker: Masker | None, config: AnnotationConfig, items: list[Case], damage: str = 'clean'
) -> dict[str, Any]:
  """Runs a method over pictures, through the clean-up of `annotate`."""
  scores, seconds, failed = [], [], 0
  for number, item in enumerate(items):
    image = damaged(item.image, damage, number)
    start = time.perf_counter()
    row = annotate(config, masker, '', image)
    seconds.append(time.perf_counter() - start)
    failed += bool(row.failure)
    height, width = item.mask.shape
    scores.append(overlap(decode(row.rle, height, width), item.mask) if row.rle else 0.0)
  worst = sorted(zip(scores, (item.name for item in items), strict=True))[:3]
  return {
    'mean_iou': common.rounded(statistics.mean(scores)),
    'lowest_tenth': common.rounded(float(np.quantile(scores, 0.1))),
    'under_half': common.rounded(statistics.mean(value < 0.5 for value in scores)),
    'no_mask': common.rounded(failed / len(items)),
    'ms': common.rounded(1000 * statistics.median(seconds)),
    'worst': [f'{name} {value:.2f}' for value, name in worst],
  }


def run(options: Options) -> dict[str, Any]:
  """Measures every method on every kind and size."""
  config = AnnotationConfig()  # of the clean-up, the same for all
  methods: dict[str, Masker | None] = {
    'peer': corner_threshold,
    'matte': make_masker(config),
    'grabcut': make_masker(AnnotationConfig(method='grabcut')),
  }
  if options.sam:
    methods['sam'] = make_masker(AnnotationConfig(method='sam', folder=options.sam))
  table: dict[str, Any] = {}
  for size in (int(text) for text in options.sizes.split(',')):
    for kind in KINDS:
      items = cases(kind, size, options)
      for damage in DAMAGES:
        found = {name: score(m, config, items, damage) for name, m in methods.items()}
        said = ', '.join(f'{n} {v["mean_iou"]:.3f} ({v["ms"]:.1f} ms)' for n, v in found.items())
        common.say(f'{kind} {size} px {damage}, {len(items)} images: {said}')
        table[f'{kind}-{size}-{damage}'] = {'images': len(items), **found}
  means = {
    name: common.rounded(statistics.mean(row[name]['mean_iou'] for row in table.values()))
    for name in methods
  }
  return {
    'benchmark': 'annotation',
    **common.machine(),
    'opencv': common.version('opencv-python-headless'),
    'peer_name': 'median colour of the corners, Otsu threshold',
    'mean_iou': means,
    'by_kind_size_and_damage': table,
  }


if __name__ == '__main__':
  common.command(Options, run, __doc__.splitlines()[0])
