"""What the report of an engine run is made of: rows, arrays and a few small pictures."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

from align_jax.errors import require
from align_jax.evaluation.report import Details, Section
from align_jax.synth.rows import (
  AnnotationRow,
  Category,
  DecisionRow,
  ImageRow,
  PromptRow,
  ScoreRow,
)

Number = int | float | None


@dataclasses.dataclass(frozen=True)
class ReportConfig:
  """How much the report shows and measures (`config.report`).

  Attributes:
    map_points: real images, and as many generated ones, in the map; drawn at random.
    metric_rows: images of a group that the distribution metrics look at, at most; drawn at random.
    neighbours: k of precision, recall, density and coverage.
    categories_shown: categories in the sample grid.
    pictures_each: pictures of each category and generator in it.
    dropped_each: pictures of each reason for dropping.
    seed: of everything that is drawn.
  """

  map_points: int = 1500
  metric_rows: int = 2000
  neighbours: int = 5
  categories_shown: int = 6
  pictures_each: int = 4
  dropped_each: int = 8
  seed: int = 0

  def __post_init__(self) -> None:
    for name in ('map_points', 'metric_rows', 'neighbours'):
      value = getattr(self, name)
      require(value >= 1, f'config.report.{name}', f'{value} must be at least 1')
    for name in ('categories_shown', 'pictures_each', 'dropped_each'):
      value = getattr(self, name)
      require(value >= 0, f'config.report.{name}', f'{value} must be at least 0')
    require(0 <= self.seed < 2**32, 'config.report.seed', f'{self.seed} is outside 0 to 2**32 - 1')


@dataclasses.dataclass(frozen=True)
class Threshold:
  """How a score was cut.

  Attributes:
    score: which: a field of `ScoreRow` that is a number.
    lower: an image with less is dropped; None: no such cut.
    upper: an image with more is dropped; None: no such cut.
    by_category: the lower cut of each category that has one of its own.
    real: the same score of held-out real images; none if it was not measured.
    note: how the cut was found.
  """

  score: Literal['similarity', 'text', 'area', 'spread']
  lower: float | None = None
  upper: float | None = None
  by_category: Mapping[str, float] = dataclasses.field(default_factory=dict)
  real: Float[np.ndarray, '_'] = dataclasses.field(default_factory=lambda: np.zeros(0))
  note: str = ''


@dataclasses.dataclass(frozen=True)
class ReportData:
  """A run, as far as it has come: what a stage has not made yet is empty.

  Attributes:
    categories, prompts: all.
    images: all that were asked for, failures among them.
    annotations, scores, decisions: of the images that there are, in any order.
    embedded: ids of the generated images that have embeddings; some of them, drawn evenly, are
      enough (`ReportConfig.metric_rows` of each generator).
    embeddings: theirs, unit vectors of one encoder.
    real_ids, real_categories: of the real images that have embeddings.
    real_embeddings: theirs, of the same encoder.
    prompt_diversity: strategy → measure (`mean_pairwise_distance`, `distinct_2`, …) → value.
    thresholds: of the filters.
    thumbnails: PNG bytes of generated images, by id: those `samples.wanted_pictures` names.
    real_thumbnails: the same of real images.
    title: of the page.
    encoder: what made the embeddings, for a reader.
    details: command, config, licences: the last section of the page.
  """

  categories: Sequence[Category] = ()
  prompts: Sequence[PromptRow] = ()
  images: Sequence[ImageRow] = ()
  annotations: Sequence[AnnotationRow] = ()
  scores: Sequence[ScoreRow] = ()
  decisions: Sequence[DecisionRow] = ()
  embedded: Sequence[str] = ()
  embeddings: Float[np.ndarray, 'generated dim'] = dataclasses.field(
    default_factory=lambda: np.zeros((0, 0), np.float32)
  )
  real_ids: Sequence[str] = ()
  real_categories: Sequence[str] = ()
  real_embeddings: Float[np.ndarray, 'real real_dim'] = dataclasses.field(
    default_factory=lambda: np.zeros((0, 0), np.float32)
  )
  prompt_diversity: Mapping[str, Mapping[str, Number]] = dataclasses.field(default_factory=dict)
  thresholds: Sequence[Threshold] = ()
  thumbnails: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
  real_thumbnails: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
  title: str = 'Generated data'
  encoder: str = ''
  details: Details | None = None

  def __post_init__(self) -> None:
    if len(self.embedded) != len(self.embeddings):
      raise ValueError(f'report: {len(self.embeddings)} embeddings of {len(self.embedded)} images')
    if not len(self.real_ids) == len(self.real_categories) == len(self.real_embeddings):
      raise ValueError('report: real_ids, real_categories and real_embeddings differ in length')
    dims = {x.shape[1] for x in (self.embeddings, self.real_embeddings) if len(x)}
    if len(dims) > 1:
      raise ValueError(f'report: embeddings of {dims} dimensions: not of one encoder')
    unknown = set(self.embedded) - {image.id for image in self.images}
    if unknown:
      raise ValueError(f'report: embeddings of images that are not there: {sorted(unknown)[:3]}')


@dataclasses.dataclass(frozen=True)
class Part:
  """What one subject adds to the page, and to `report.json` under flat keys."""

  sections: tuple[Section, ...] = ()
  numbers: Mapping[str, Number] = dataclasses.field(default_factory=dict)


def count(number: int, what: str, plural: str = '') -> str:
  """Returns `1 image`, `1,200 images`."""
  return f'{number:,} {what if number == 1 else plural or what + "s"}'


def percent(part: int | float, whole: int | float) -> str:
  """Returns a share as text; – of nothing."""
  return f'{100 * part / whole:.1f} %' if whole else '–'


def draw(ids: Iterable[str], most: int, seed: int) -> list[int]:
  """Draws places in `ids`, at most so many; by the ids, so that their order does not matter."""
  names = np.asarray(list(ids), object)
  order = np.argsort(names, kind='stable')
  return order[np.random.default_rng(seed).permutation(len(order))[:most]].tolist()
