"""A pool of images with planted flaws, and how well each filter finds them.

Good are real images that no reference is of. Flawed are others of them: asked for as another class,
drowned in noise, with their parts in the wrong places, without their object, or seen before.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

from align_jax.data.images import decode_image
from align_jax.data.sources.base import Source
from align_jax.errors import UserError
from align_jax.synth.annotation import rle
from align_jax.synth.filtration.config import FiltrationConfig
from align_jax.synth.filtration.decide import Decider
from align_jax.synth.filtration.duplicates import DuplicateConfig
from align_jax.synth.filtration.references import References, instances
from align_jax.synth.filtration.score import score_part
from align_jax.synth.filtration.similarity import mean_similarity, nearest_similarity
from align_jax.synth.filtration.thresholds import ThresholdConfig
from align_jax.synth.rows import AnnotationRow, DecisionRow, Embedder, ImageRow

Pixels = UInt8[np.ndarray, 'height width 3']
Mask = Bool[np.ndarray, 'height width']

# flaws of the image; `wrong_class` is one of its meaning, `copy` one of the pool
IMAGE_FLAWS = ('noise', 'scrambled', 'empty')
FLAWS = ('wrong_class', *IMAGE_FLAWS, 'copy')
ALL_IMAGE_FLAWS = 'image_flaws'
# what each filter is there to find
FOUND_BY = {
  'similarity': ('wrong_class', *IMAGE_FLAWS),
  'text': ('wrong_class', *IMAGE_FLAWS),
  'mask': ('empty',),
  'duplicate': ('copy',),
  'all': FLAWS,
}
_TILES = 4  # of a side, of an object whose parts are moved
_NOISE = 0.7  # share of noise in a noisy image


@dataclasses.dataclass(frozen=True)
class Pool:
  """Images that claim to be of a category.

  Attributes:
    images, pictures, annotations: as a generator and an annotator would hand them on.
    flaws: of each one of `FLAWS`, or '' for a good one.
  """

  images: tuple[ImageRow, ...]
  pictures: tuple[Pixels, ...]
  annotations: tuple[AnnotationRow, ...]
  flaws: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class FilterScore:
  """How well a filter, on its own, finds what it is there to find.

  Attributes:
    precision: share of what it drops that has such a flaw; None where it drops nothing.
    recall: share of images with such a flaw that it drops.
    good_dropped: share of good images that it drops.
  """

  precision: float | None
  recall: float
  good_dropped: float


@dataclasses.dataclass(frozen=True)
class Findings:
  """What was measured on a pool.

  Attributes:
    filters: by name, see `FOUND_BY`.
    auc: of each score (`mean`, `nearest`, `text`), of each flaw but copies and of all flaws of the
      image together: the probability that a good image has a higher score than a flawed one.
      0.5: the score cannot tell.
    decisions: of the whole filtration.
  """

  filters: dict[str, FilterScore]
  auc: dict[str, dict[str, float]]
  decisions: tuple[DecisionRow, ...]


def plant(
  source: Source,
  categories: Sequence[str],
  *,
  count: int = 400,
  share: float = 0.1,
  seed: int = 0,
) -> Pool:
  """Draws a pool from real images with one object and its mask.

  Args:
    source: real images that are not among the references.
    categories: names that images may claim, two or more.
    count: images, as many as the source has at most.
    share: of the images that have each flaw.
    seed: of all draws.

  Raises:
    UserError: too few images with one object of the categories.
  """
  rng = np.random.default_rng(seed)
  found: list[tuple[Pixels, Mask, str]] = []
  for position in rng.permutation(len(source)).tolist():
    if len(found) == count:
      break
    record = source[position]
    things = [(label, mask) for label, mask, _ in instances(record) if mask is not None]
    if len(things) == 1 and things[0][0] in categories:
      found.append((decode_image(record.image), things[0][1], things[0][0]))
  each = round(share * len(found))
  good = len(found) - each * len(FLAWS)
  if each < 1 or good < 1 or len(set(categories)) < 2:
    raise UserError(
      f'{source.spec}: {len(found)} images with one object of {len(set(categories))} categories '
      'are too few for a pool; name a source with more'
    )
  flaws = [''] * good + [flaw for flaw in FLAWS for _ in range(each)]
  images, pictures, annotations = [], [], []
  for i, flaw in enumerate(flaws):
    picture, mask, category = found[i]
    other = found[int(rng.integers(good))]
    if flaw == 'wrong_class':
      category = str(rng.choice([name for name in categories if name != category]))
    elif flaw == 'copy':
      picture, mask, category = _nearly(other[0], rng), other[1], other[2]
    elif flaw:
      picture, mask = _SPOILT[flaw](picture, mask, other[1], rng)
    name = f'pool-{seed}-{i:05d}'
    images.append(ImageRow(name, category, '', category, 'planted', 'planted', 'planted', i))
    pictures.append(picture)
    annotations.append(_annotation(name, mask))
  return Pool(tuple(images), tuple(pictures), tuple(annotations), tuple(flaws))


def measure(
  pool: Pool,
  config: FiltrationConfig,
  embedder: Embedder,
  references: References,
  nearest: int = 10,
) -> Findings:
  """Runs every filter of a config on a pool, each on its own, and all together.

  Args:
    pool: see `plant`.
    config: thresholds; a score without a threshold is calibrated for its own figure.
    embedder, references: see `score.score_part`.
    nearest: neighbours of the score `nearest`.
  """
  scores, x = score_part(config, pool.images, pool.pictures, pool.annotations, embedder, references)
  flaws = np.asarray(pool.flaws)

  def run(of: FiltrationConfig) -> tuple[DecisionRow, ...]:
    decider = Decider(of, references, list(zip(pool.images, scores, strict=True)))
    return tuple(decider.decide(pool.images, pool.annotations, scores, x))

  decisions = run(config)
  filters = {}
  for name, wanted in FOUND_BY.items():
    chosen = decisions if name == 'all' else run(_alone(config, name))
    dropped = np.asarray([not row.kept for row in chosen])
    filters[name] = _compare(dropped, np.isin(flaws, wanted), flaws == '')
  numbers = np.asarray([references.numbers[image.category] for image in pool.images], np.int32)
  known = references.embeddings, references.category
  values = {
    'mean': mean_similarity(x, numbers, *known),
    'nearest': nearest_similarity(x, numbers, *known, nearest),
    'text': np.asarray([np.nan if row.text is None else row.text for row in scores]),
  }
  bad = {flaw: flaws == flaw for flaw in FLAWS[:-1]}
  bad[ALL_IMAGE_FLAWS] = np.isin(flaws, IMAGE_FLAWS)
  auc = {
    name: {flaw: _auc(v[flaws == ''], v[rows]) for flaw, rows in bad.items()}
    for name, v in values.items()
    if np.isfinite(v).all()
  }
  return Findings(filters, auc, decisions)


def _alone(config: FiltrationConfig, name: str) -> FiltrationConfig:
  """The config with one filter alone."""
  off = dataclasses.replace(
    config,
    similarity=ThresholdConfig(),
    text=ThresholdConfig(),
    text_for='all',
    fallback='keep',
    masks='keep',
    min_area=0.0,
    max_area=1.0,
    min_spread=0.0,
    max_spread=127.5,
    duplicates=DuplicateConfig('none'),
  )
  if name == 'duplicate':
    return dataclasses.replace(off, duplicates=config.duplicates)
  if name == 'mask':
    return dataclasses.replace(
      off, masks='drop', **{k: getattr(config, k) for k in ('min_area', 'max_area', 'min_spread')}
    )
  given: ThresholdConfig = getattr(config, name)
  used = given if given.kind != 'none' else dataclasses.replace(given, kind='calibrated')
  return (
    dataclasses.replace(off, similarity=used)
    if name == 'similarity'
    else (dataclasses.replace(off, text=used))
  )


def _compare(dropped: np.ndarray, wanted: np.ndarray, good: np.ndarray) -> FilterScore:
  hits = int((dropped & wanted).sum())
  return FilterScore(
    precision=hits / int(dropped.sum()) if dropped.any() else None,
    recall=hits / int(wanted.sum()),
    good_dropped=float(dropped[good].mean()),
  )


def _auc(good: Float[np.ndarray, 'n'], bad: Float[np.ndarray, 'm']) -> float:
  """Area under the ROC curve: Mann and Whitney's count of pairs; a tie is half of one."""
  ordered = np.sort(bad)
  below = np.searchsorted(ordered, good, side='left') + np.searchsorted(ordered, good, side='right')
  return float(below.sum() / (2 * len(good) * len(bad)))


def _nearly(picture: Pixels, rng: np.random.Generator) -> Pixels:
  """The same picture a little brighter or darker, with a little grain."""
  changed = picture + rng.integers(-8, 9) + rng.normal(0, 2, picture.shape)
  return np.clip(np.round(changed), 0, 255).astype(np.uint8)


def _noisy(picture: Pixels, mask: Mask, _: Mask, rng: np.random.Generator) -> tuple[Pixels, Mask]:
  noise = rng.integers(0, 256, picture.shape)
  return np.round((1 - _NOISE) * picture + _NOISE * noise).astype(np.uint8), mask


def _scrambled(
  picture: Pixels, mask: Mask, _: Mask, rng: np.random.Generator
) -> tuple[Pixels, Mask]:
  """Cuts the object into tiles and lays them down in another order."""
  x, y, width, height = rle.box_of(mask)
  wide, tall = max(1, width // _TILES), max(1, height // _TILES)
  places = [
    (y + i * tall, x + j * wide) for i in range(height // tall) for j in range(width // wide)
  ]
  out, moved = picture.copy(), mask.copy()
  for (to_y, to_x), k in zip(places, rng.permutation(len(places)).tolist(), strict=True):
    from_y, from_x = places[k]
    to = np.s_[to_y : to_y + tall, to_x : to_x + wide]
    source = np.s_[from_y : from_y + tall, from_x : from_x + wide]
    out[to], moved[to] = picture[source], mask[source]
  return out, moved


def _emptied(
  picture: Pixels, mask: Mask, other: Mask, rng: np.random.Generator
) -> tuple[Pixels, Mask]:
  """Paints the object over; the annotator finds nothing, or, as often, something that is none."""
  out = picture.copy()
  around = ~ndimage.binary_dilation(mask, iterations=2)  # its outline shines through at the rim
  out[~around] = np.median(picture[around], axis=0) if around.any() else 127
  same = other.shape == mask.shape
  return out, (other if same and rng.random() < 0.5 else np.zeros_like(mask))


_SPOILT: dict[str, Callable[[Pixels, Mask, Mask, np.random.Generator], tuple[Pixels, Mask]]] = {
  'noise': _noisy,
  'scrambled': _scrambled,
  'empty': _emptied,
}


def _annotation(name: str, mask: Mask) -> AnnotationRow:
  height, width = mask.shape
  if not mask.any():
    return AnnotationRow(name, width, height, failure='empty')
  return AnnotationRow(name, width, height, float(mask.mean()), rle.box_of(mask), rle.encode(mask))
