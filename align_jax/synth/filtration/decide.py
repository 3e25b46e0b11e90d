"""Whether an image is kept, and every reason why not."""

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

from align_jax.errors import UserError
from align_jax.synth.filtration.config import FiltrationConfig
from align_jax.synth.filtration.duplicates import DuplicateIndex
from align_jax.synth.filtration.references import References
from align_jax.synth.filtration.score import NO_MASKS, NOT_FINITE
from align_jax.synth.filtration.similarity import row_cosines
from align_jax.synth.filtration.thresholds import (
  ThresholdConfig,
  Thresholds,
  calibrated_cuts,
  fixed_cuts,
  held_out_similarity,
  quantile_cuts,
)
from align_jax.synth.rows import AnnotationRow, DecisionRow, ImageRow, ScoreRow


class Decider:
  """Decides part after part; it knows the thresholds and what was kept before.

  Attributes:
    config: what is kept.
    thresholds: see `make_thresholds`.
    index: the images kept so far.
  """

  def __init__(
    self,
    config: FiltrationConfig,
    references: References,
    pool: Iterable[tuple[ImageRow, ScoreRow]] = (),
  ):
    """Makes the thresholds; `pool` is every scored image, which quantiles alone need."""
    self.config = config
    self.thresholds = make_thresholds(config, references, pool)
    self.index = DuplicateIndex(config.duplicates)

  def replay(
    self,
    images: Sequence[ImageRow],
    scores: Sequence[ScoreRow],
    embeddings: Float[np.ndarray, 'n dim'],
    decisions: Iterable[DecisionRow],
  ) -> None:
    """Enters a part that was decided before, so that the next one is decided as it would be."""
    kept = {row.id for row in decisions if row.kept}
    rows = [i for i, image in enumerate(images) if image.id in kept]
    if self.config.duplicates.rule != 'none' and rows:
      self.index.add(
        [images[i].id for i in rows],
        [images[i].category for i in rows],
        [scores[i].phash for i in rows],
        embeddings[rows],
      )

  def decide(
    self,
    images: Sequence[ImageRow],
    annotations: Sequence[AnnotationRow],
    scores: Sequence[ScoreRow],
    embeddings: Float[np.ndarray, 'n dim'],
  ) -> list[DecisionRow]:
    """Decides a part, see `decide`."""
    return decide(self.config, self.thresholds, self.index, images, annotations, scores, embeddings)


def make_thresholds(
  config: FiltrationConfig,
  references: References,
  pool: Iterable[tuple[ImageRow, ScoreRow]] = (),
) -> Thresholds:
  """Returns the thresholds; the same for the same rows, in whatever parts they come.

  Raises:
    UserError: quantiles without a pool.
  """
  pairs = [] if config.is_streaming else list(pool)
  if not config.is_streaming and not pairs:
    raise UserError('config.filtration: quantile thresholds need scored images; there are none')
  names = [image.category for image, _ in pairs]
  real_names = [references.categories[i] for i in references.category.tolist()]
  cuts = {}
  scores: tuple[Literal['similarity', 'text'], ...] = ('similarity', 'text')
  for score in scores:
    threshold: ThresholdConfig = getattr(config, score)
    if threshold.kind == 'quantile':
      values = [getattr(row, score) for _, row in pairs]
      cuts[score] = quantile_cuts(threshold, values, names)
    elif threshold.kind == 'calibrated':
      cuts[score] = calibrated_cuts(threshold, real_scores(config, references, score), real_names)
    else:
      cuts[score] = fixed_cuts(threshold)
  return Thresholds(**cuts)


def real_scores(
  config: FiltrationConfig, references: References, score: Literal['similarity', 'text']
) -> Float[np.ndarray, 'm']:
  """The scores of the real instances, each held out in turn and shown as generated ones are.

  Returns: of each instance; NaN where its category has no other.
  """
  if score == 'text':
    return row_cosines(references.held_out, references.texts, references.category)
  return held_out_similarity(
    references.held_out, references.embeddings, references.category, config.nearest
  )


def decide(
  config: FiltrationConfig,
  thresholds: Thresholds,
  index: DuplicateIndex,
  images: Sequence[ImageRow],
  annotations: Sequence[AnnotationRow],
  scores: Sequence[ScoreRow],
  embeddings: Float[np.ndarray, 'n dim'],
) -> list[DecisionRow]:
  """Says of each image whether it is kept, and every reason why not.

  Reasons, in this order, of which the first is the one that counts: what the generator failed with,
  `blank`, `noise`, `mask`, `area`, `not_finite`, `no_real`, `similarity`, `text`, `duplicate`. Only
  images that no other reason drops are looked at as duplicates.

  Args:
    config, thresholds: what is kept.
    index: the images kept before; those kept here are entered.
    images, scores, embeddings: of the same images, in the same order.
    annotations: of the images, in any order.
  """
  of = {row.id: row for row in annotations}
  found = [
    _judge(config, thresholds, image, of.get(image.id), score)
    for image, score in zip(images, scores, strict=True)
  ]
  rows = [i for i, (reasons, _) in enumerate(found) if not reasons]
  copies = dict.fromkeys(range(len(images)), '')
  copies |= zip(
    rows,
    index.feed(
      [images[i].id for i in rows],
      [images[i].category for i in rows],
      [scores[i].phash for i in rows],
      embeddings[rows],
    ),
    strict=True,
  )
  out = []
  for i, (reasons, notes) in enumerate(found):
    if copies[i]:
      reasons = [f'duplicate of {copies[i]}']
    out.append(DecisionRow(images[i].id, not reasons, tuple(reasons), copies[i], tuple(notes)))
  return out


def _judge(
  config: FiltrationConfig,
  thresholds: Thresholds,
  image: ImageRow,
  annotation: AnnotationRow | None,
  score: ScoreRow,
) -> tuple[list[str], list[str]]:
  """The reasons to drop an image, duplicates aside, and notes."""
  if image.failure:
    return [image.failure], []
  reasons: list[str] = []
  notes: list[str] = []

  def limit(name: str, value: float, least: float | None, most: float | None = None) -> None:
    if least is not None and value < least:
      reasons.append(f'{name} {value:.3g} < {least:.3g}')
    if most is not None and value > most:
      reasons.append(f'{name} {value:.3g} > {most:.3g}')

  limit('blank', score.spread, config.min_spread)
  limit('noise', score.spread, None, config.max_spread)
  if annotation is not None and annotation.failure not in ('', NO_MASKS):
    (reasons if config.masks == 'drop' else notes).append(f'mask {annotation.failure}')
  if score.area is not None:
    limit('area', score.area, config.min_area, config.max_area)
  if score.similarity_to == NOT_FINITE:
    return [*reasons, f'{NOT_FINITE} embedding'], notes
  kind, _, neighbour = score.similarity_to.partition(':')
  if kind == 'drop':
    reasons.append(f'no_real image of {image.category}')
  elif kind != 'real':
    notes.append(f'no real image of {image.category}: {score.similarity_to}')
  if score.similarity is not None:
    # quantiles are of what was drawn, other thresholds of the real images compared with
    own = config.similarity.kind == 'quantile'
    least, note = thresholds.similarity.of(image.category if own else neighbour or image.category)
    limit('similarity', score.similarity, least)
    notes += [f'similarity: {note}'] if note else []
  if score.text is not None and (config.text_for == 'all' or kind == 'text'):
    least, note = thresholds.text.of(image.category)
    limit('text', score.text, least)
    notes += [f'text: {note}'] if note else []
  return reasons, notes
