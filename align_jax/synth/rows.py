"""What the stages of the engine hand to each other: one row a line of JSON, and two protocols."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8

from align_jax.config import build
from align_jax.data.transforms import Transform

T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class Category:
  """A thing to draw.

  Attributes:
    name: unique; the label of its records.
    definition: a few words that say what it is; '' if unknown.
    extra: not of the user's own: training may cut it off again.
    similarity: of an extra category, the largest cosine of its text to one of the base set.
    source: where the name comes from (`own`, `imagenet`, `wordnet`, a file).
    real_images: how many real images there are of it.
  """

  name: str
  definition: str = ''
  extra: bool = False
  similarity: float | None = None
  source: str = 'own'
  real_images: int = 0


@dataclasses.dataclass(frozen=True)
class PromptRow:
  """What a generator is asked for.

  Attributes:
    id: unique, stable for the same config and seed.
    category: name of the category.
    text: the prompt.
    strategy: which way of writing prompts made it: template, grammar, llm or external.
    attributes: what was varied, name to value (`colour` → `red`).
  """

  id: str
  category: str
  text: str
  strategy: str
  attributes: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ImageRow:
  """Where an image comes from.

  Attributes:
    id: of its record.
    category, prompt_id, prompt, strategy: see `PromptRow`.
    generator: which of the config's generators, by name.
    generator_id: the generator and its version.
    seed: of the image alone; with prompt and settings it decides every pixel.
    settings: guidance, steps, weights: whatever else the image depends on.
    failure: why there is no image (`not_finite`, `missing`, …); '' if there is one.
  """

  id: str
  category: str
  prompt_id: str
  prompt: str
  strategy: str
  generator: str
  generator_id: str
  seed: int
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  failure: str = ''


@dataclasses.dataclass(frozen=True)
class AnnotationRow:
  """Where the object of an image is.

  Attributes:
    id: of the image.
    width, height: of the image, pixels.
    area: share of the image that the mask covers.
    box: x, y, width, height of the mask, pixels; zeros for an empty mask.
    rle: the mask in COCO's compressed run lengths (`counts` of pycocotools, as text).
    failure: why there is no usable mask (`empty`, `whole_image`, …); '' if there is one.
    phash: 64-bit perceptual hash of the image, 16 hexadecimal digits.
  """

  id: str
  width: int
  height: int
  area: float = 0.0
  box: tuple[int, int, int, int] = (0, 0, 0, 0)
  rle: str = ''
  failure: str = ''
  phash: str = ''


@dataclasses.dataclass(frozen=True)
class ScoreRow:
  """What the filters look at.

  Attributes:
    id: of the image.
    similarity: mean cosine to the real crops of its category; None where there are none.
    similarity_to: what it was compared with: `real`, or the fallback that the config names.
    text: cosine of the image and its text; None without a text tower.
    area: share of the image that the mask covers; None without a mask.
    spread: standard deviation of the pixels, 0 to 255; 0 is a blank image.
    phash: 64-bit perceptual hash, 16 hexadecimal digits.
  """

  id: str
  similarity: float | None = None
  similarity_to: str = 'real'
  text: float | None = None
  area: float | None = None
  spread: float = 0.0
  phash: str = ''


@dataclasses.dataclass(frozen=True)
class DecisionRow:
  """Whether an image is kept, and every reason why not.

  Attributes:
    id: of the image.
    kept: into the shards.
    reasons: of dropping, the first decides what the funnel counts: a name and what was measured,
      `similarity 0.41 < 0.60`; () if kept.
    duplicate_of: id of the image it is too much like; '' if none.
    notes: what did not drop it but should be known (a threshold that fell back, …).
  """

  id: str
  kept: bool
  reasons: tuple[str, ...] = ()
  duplicate_of: str = ''
  notes: tuple[str, ...] = ()


def to_json(row: Any) -> dict[str, Any]:
  """A row as JSON values, without the fields that are as by default."""
  out = {}
  for field in dataclasses.fields(row):
    value = getattr(row, field.name)
    default = (
      field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    )
    if value != default:
      out[field.name] = dict(value) if isinstance(value, Mapping) else value
  return out


def from_json(cls: type[T], values: Any, where: str) -> T:
  """Reads what `to_json` wrote.

  Raises:
    UserError: an unknown or missing field; `where` names the place.
  """
  return build(cls, values, where)


@runtime_checkable
class Generator(Protocol):
  """What draws images.

  Attributes:
    generator_id: its name and version, as records carry it.
    settings: JSON values that, with prompt and seed, decide an image.
    batch_size: images at a time.
  """

  generator_id: str
  settings: Mapping[str, Any]
  batch_size: int

  def generate(
    self, prompts: Sequence[str], seeds: Sequence[int]
  ) -> Sequence[UInt8[np.ndarray, '_ _ 3'] | None]:
    """Draws one image for each prompt; None where its numbers were not finite.

    An image depends on its own prompt and seed alone, not on the others of the batch.

    Args:
      prompts: any number; more than `batch_size` are drawn in several batches.
      seeds: 0 to 2**63 - 1, one for each prompt.
    """
    ...


@runtime_checkable
class Embedder(Protocol):
  """What embeds images and texts: `encoder.Encoder`, or a track of `api.load`."""

  transform: Transform

  def embed_images(
    self, images: UInt8[np.ndarray, 'n height width 3']
  ) -> Float[np.ndarray, 'n dim']: ...

  def embed_texts(self, texts: Sequence[str]) -> Float[np.ndarray, 'n dim']: ...
