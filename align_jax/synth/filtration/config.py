"""What the filters are told: one group of an engine's config."""

import dataclasses
from typing import Any, Literal

from align_jax.errors import require
from align_jax.synth.filtration.duplicates import DuplicateConfig
from align_jax.synth.filtration.references import ReferenceConfig
from align_jax.synth.filtration.thresholds import ThresholdConfig


@dataclasses.dataclass(frozen=True)
class FiltrationConfig:
  """What is kept.

  Attributes:
    references: what is compared with what, and the texts of categories.
    nearest: similarity is the mean of so many largest cosines, for broad categories; 0: the mean
      of all.
    similarity: threshold of the similarity to real images.
    text: threshold of the image-text score.
    text_of: the text of an image: its `category` in the templates, its `prompt`, or `none`.
    text_for: the text's threshold is for `all`, or for images without real ones to be compared
      with (`fallback`).
    fallback: what is done with a category of which there is no real image: `keep`; `drop`; `text`:
      the text's threshold alone decides; `neighbour`: compared with the real images of the
      category whose text is nearest.
    masks: an image whose mask failed (empty, or the whole image) is dropped (`drop`), or looked at
      as a whole (`keep`).
    min_area, max_area: share of the image that a mask may cover.
    min_spread, max_spread: standard deviation of the pixels, mean of the channels, 0 to 127.5: a
      blank image has 0, uniform noise 74.
    duplicates: what counts as the same image again.
  """

  references: ReferenceConfig = dataclasses.field(default_factory=ReferenceConfig)
  nearest: int = 0
  similarity: ThresholdConfig = dataclasses.field(
    default_factory=lambda: ThresholdConfig(kind='calibrated')
  )
  text: ThresholdConfig = dataclasses.field(default_factory=ThresholdConfig)
  text_of: Literal['category', 'prompt', 'none'] = 'category'
  text_for: Literal['all', 'fallback'] = 'all'
  fallback: Literal['keep', 'drop', 'text', 'neighbour'] = 'keep'
  masks: Literal['drop', 'keep'] = 'drop'
  min_area: float = 0.0
  max_area: float = 1.0
  min_spread: float = 2.0
  max_spread: float = 127.5
  duplicates: DuplicateConfig = dataclasses.field(default_factory=DuplicateConfig)

  def __post_init__(self) -> None:
    where = 'config.filtration'
    self.similarity.check(f'{where}.similarity')
    self.text.check(f'{where}.text')
    require(0 <= self.nearest <= 1000, f'{where}.nearest', f'{self.nearest}: 0 to 1000')
    judged = self.text.kind != 'none'
    require(
      self.text_of != 'none' or not judged,
      f'{where}.text_of',
      'none, but text has a threshold; choose category or prompt, or text.kind none',
    )
    require(
      self.fallback != 'text' or judged,
      f'{where}.fallback',
      "text, but text has no threshold; set text.kind (and text_for='fallback' for it alone)",
    )
    require(
      0 <= self.min_area <= self.max_area <= 1,
      f'{where}.min_area',
      f'{self.min_area} to {self.max_area} is no range of shares, 0 to 1',
    )
    require(
      0 <= self.min_spread <= self.max_spread,
      f'{where}.min_spread',
      f'{self.min_spread} to {self.max_spread} is no range of spreads from 0 on',
    )

  @property
  def is_streaming(self) -> bool:
    """Whether a part can be decided before all others are scored."""
    return 'quantile' not in (self.similarity.kind, self.text.kind)

  def score_settings(self) -> dict[str, Any]:
    """What decides the scores, as JSON values; the thresholds do not."""
    return {
      'references': dataclasses.asdict(self.references),
      'nearest': self.nearest,
      'text_of': self.text_of,
      'fallback': self.fallback,
    }
