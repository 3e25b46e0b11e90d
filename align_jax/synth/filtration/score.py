"""The scores of images: what the filters look at, before anything is decided."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from align_jax.errors import UserError
from align_jax.synth.annotation import rle
from align_jax.synth.filtration.config import FiltrationConfig
from align_jax.synth.filtration.references import References
from align_jax.synth.filtration.similarity import (
  finite_rows,
  mean_similarity,
  nearest_similarity,
  row_cosines,
)
from align_jax.synth.filtration.views import show
from align_jax.synth.hashes import perceptual_hash
from align_jax.synth.rows import AnnotationRow, Embedder, ImageRow, ScoreRow

NOT_FINITE = 'not_finite'  # what a row's `similarity_to` says where there is no embedding
NEIGHBOUR = 'neighbour'
NO_MASKS = 'none'  # failure of an annotation where no masks are asked for
_BATCH = 256


def score_part(
  config: FiltrationConfig,
  images: Sequence[ImageRow],
  pictures: Sequence[np.ndarray | None],
  annotations: Sequence[AnnotationRow],
  embedder: Embedder,
  references: References,
  *,
  mesh: Mesh | None = None,
) -> tuple[list[ScoreRow], Float[np.ndarray, 'n dim']]:
  """Looks at images as the filters do.

  Args:
    config: how.
    images: of a part, any number.
    pictures: of the same images, uint8 `[height, width, 3]`; None where there is none.
    annotations: of the images, in any order; an image without one is looked at as a whole.
    embedder: the one that the references are of.
    references: real images and texts; they know every category of the images.
    mesh: of local devices, see `similarity.mean_similarity`.

  Returns: one row for each image, and its embedding: NaN where there is no picture.

  Raises:
    UserError: an unknown category, embeddings of another size than the references, damaged masks.
  """
  of = {row.id: row for row in annotations}
  embeddings = np.full((len(images), references.texts.shape[1]), np.nan, np.float32)
  facts: list[dict[str, Any]] = [{} for _ in images]
  views: list[np.ndarray] = []
  places: list[int] = []

  def flush() -> None:
    if views:
      found = np.asarray(embedder.embed_images(np.stack(views)), np.float32)
      if found.shape[1] != embeddings.shape[1]:
        raise UserError(
          f'filtration: embeddings of {found.shape[1]} dimensions, the references have '
          f'{embeddings.shape[1]}; embed both with the same model'
        )
      embeddings[places] = found
      views.clear()
      places.clear()

  for i, (image, picture) in enumerate(zip(images, pictures, strict=True)):
    if image.category not in references.numbers:
      raise UserError(f'image {image.id}: category {image.category!r} is not among the references')
    if picture is None:
      continue
    row = of.get(image.id)
    view, facts[i] = _look(config, embedder, picture, row)
    views.append(view)
    places.append(i)
    if len(views) == _BATCH:
      flush()
  flush()
  similarity, compared = _similarities(config, images, embeddings, references, mesh)
  text = _texts(config, images, embeddings, embedder, references, mesh)
  finite = finite_rows(embeddings)
  rows = [
    ScoreRow(
      image.id,
      similarity=_number(similarity[i]),
      similarity_to=NOT_FINITE if facts[i] and not finite[i] else compared[i],
      text=_number(text[i]),
      **facts[i],
    )
    for i, image in enumerate(images)
  ]
  return rows, embeddings


def _look(
  config: FiltrationConfig, embedder: Embedder, picture: np.ndarray, row: AnnotationRow | None
) -> tuple[np.ndarray, dict[str, Any]]:
  """What the encoder is shown of a picture, and what needs no encoder."""
  mask = rle.decode(row.rle, row.height, row.width) if row is not None and row.rle else None
  if mask is not None and mask.shape != picture.shape[:2]:
    raise UserError(
      f'image {row.id if row else ""}: a mask of {mask.shape[1]} x {mask.shape[0]} pixels on a '
      f'picture of {picture.shape[1]} x {picture.shape[0]}; annotate it again'
    )
  references = config.references
  view = show(
    references.generated_view,
    embedder.transform,
    picture,
    mask,
    padding=references.padding,
    blur=references.blur,
  )
  area = row.area if row is not None and row.failure != NO_MASKS else None
  spread = picture.reshape(-1, 3).std(axis=0, dtype=np.float64).mean()
  return view, {
    'area': area,
    'spread': round(float(spread), 4),
    'phash': row.phash if row is not None and row.phash else perceptual_hash(picture),
  }


def _similarities(
  config: FiltrationConfig,
  images: Sequence[ImageRow],
  embeddings: np.ndarray,
  references: References,
  mesh: Mesh | None,
) -> tuple[np.ndarray, list[str]]:
  """Similarity of each image, and what it was compared with."""
  target: dict[str, tuple[str, str]] = {}  # category -> compared with the real ones of, as it says
  for name in {image.category for image in images}:
    neighbour = references.neighbour(name) if config.fallback == NEIGHBOUR else ''
    if references.counts[name]:
      target[name] = name, 'real'
    elif config.fallback == NEIGHBOUR:
      # no real image of anything: there is nothing to compare with
      target[name] = (neighbour or name), (f'{NEIGHBOUR}:{neighbour}' if neighbour else 'keep')
    else:
      target[name] = name, config.fallback
  numbers = [references.numbers[target[image.category][0]] for image in images]
  category = np.asarray(numbers, np.int32)
  known = references.embeddings, references.category
  if config.nearest:
    similarity = nearest_similarity(embeddings, category, *known, config.nearest, mesh=mesh)
  else:
    similarity = mean_similarity(embeddings, category, *known, mesh=mesh)
  return similarity, [target[image.category][1] for image in images]


def _texts(
  config: FiltrationConfig,
  images: Sequence[ImageRow],
  embeddings: np.ndarray,
  embedder: Embedder,
  references: References,
  mesh: Mesh | None,
) -> np.ndarray:
  """Cosine of each image and its text; NaN where there is none."""
  if config.text_of == 'none' or not len(images):
    return np.full(len(images), np.nan, np.float32)
  if config.text_of == 'category':
    which = [references.numbers[image.category] for image in images]
    return row_cosines(embeddings, references.texts, np.asarray(which, np.int32), mesh=mesh)
  place: Mapping[str, int] = {
    text: i for i, text in enumerate(dict.fromkeys(image.prompt for image in images))
  }
  texts = np.asarray(embedder.embed_texts(list(place)), np.float32)
  which = [place[image.prompt] for image in images]
  return row_cosines(embeddings, texts, np.asarray(which, np.int32), mesh=mesh)


def _number(value: np.floating) -> float | None:
  # seven digits of float32 are not all the same on all machines
  return round(float(value), 6) if np.isfinite(value) else None
