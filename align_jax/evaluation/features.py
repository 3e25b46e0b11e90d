"""A source's embeddings, with what each row is: the one thing every evaluation task reads."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from align_jax.data.pipeline import eval_batches
from align_jax.data.quarantine import Quarantine
from align_jax.data.record import Record
from align_jax.data.sources.base import Source
from align_jax.data.sources.subset import Subset, spread_positions
from align_jax.data.transforms import Transform
from align_jax.errors import UserError
from align_jax.modality import MODALITIES, Modality


@runtime_checkable
class ImageTextEncoder(Protocol):
  """What evaluation asks of a model. `align_jax.encoder.Encoder` is one."""

  transform: Transform

  def embed_images(
    self,
    images: np.ndarray,
    modality: Modality = 'real',
    projection: Modality | None = None,
  ) -> np.ndarray:
    """Returns unit-norm float32 `[n, dim]` of uint8 images `[n, size, size, 3]`."""
    ...

  def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
    """Returns unit-norm float32 `[n, dim]`."""
    ...


def embed_source(
  encoder: ImageTextEncoder,
  source: Source,
  *,
  modality: Modality | None = None,
  projection: Modality | None = None,
  limit: int | None = None,
  batch_size: int = 256,
  quarantine: Quarantine | None = None,
) -> 'Features':
  """Embeds the images and captions of a source, in order.

  A caption that occurs more than once is encoded once; within one image it is kept once. Images
  that cannot be decoded are left out, so find a row by its id, not by its place in the source.

  Args:
    modality: the track that reads the images; None: each record's own. `'generated'` with
      `projection='real'` reads real images through the aligned encoder (GMAIL section 3.2).
    projection: as in `DualEncoder.encode_image`.
    limit: only so many records, evenly over the source: a folder is sorted by class.
    batch_size: images decoded and embedded at a time.
    quarantine: counts and names the images left out.

  Raises:
    UserError: the source is empty, none or too few of its images can be decoded, or an embedding is
      not finite.
  """
  if limit is not None and limit < len(source):
    source = Subset(source, source.spec, spread_positions(len(source), max(limit, 0)))
  if not len(source):
    raise UserError(f'{source.spec}: no records to evaluate; check the spec and its split or limit')
  rows: list[Record] = []
  images: list[np.ndarray] = []
  for batch, records in eval_batches(source, encoder.transform, batch_size, quarantine=quarantine):
    images.append(_embed(encoder, batch, records, modality, projection))
    # Only the facts stay: thousands of encoded images would not fit beside the embeddings.
    rows.extend(dataclasses.replace(record, image=b'', truth={}) for record in records)
  texts = [caption for record in rows for caption in dict.fromkeys(record.captions)]
  owner = [i for i, record in enumerate(rows) for _ in dict.fromkeys(record.captions)]
  image = np.concatenate(images).astype(np.float32)
  return Features(
    ids=[record.id for record in rows],
    image=image,
    texts=texts,
    text=_embed_once(encoder, texts, image.shape[1]),
    text_owner=np.asarray(owner, np.int64),
    labels=[tuple(record.labels) for record in rows],
    modality=[record.modality for record in rows],
    pair_ids=[record.pair_id for record in rows],
  )


def single_labels(features: 'Features') -> tuple[Int[np.ndarray, 'labelled'], list[str]]:
  """Returns the rows that carry exactly one label, and those labels.

  A picture of a banana and a cat has no one right class, so classification leaves it out.
  """
  rows = [i for i, labels in enumerate(features.labels) if len(labels) == 1]
  return np.asarray(rows, np.int64), [features.labels[i][0] for i in rows]


def _embed(
  encoder: ImageTextEncoder,
  batch: np.ndarray,
  records: Sequence[Record],
  modality: Modality | None,
  projection: Modality | None,
) -> np.ndarray:
  """Embeds one batch, each record by its own track unless `modality` fixes one for all."""
  if modality is not None:
    return np.asarray(encoder.embed_images(batch, modality=modality, projection=projection))
  own = np.asarray([record.modality for record in records])
  out = None
  for name in MODALITIES:
    mine = own == name
    if mine.any():
      part = np.asarray(encoder.embed_images(batch[mine], modality=name, projection=projection))
      out = np.empty((len(records), part.shape[1]), np.float32) if out is None else out
      out[mine] = part
  if out is None:
    raise UserError(f'record {records[0].id!r}: modality {own[0]!r} is none of {MODALITIES}')
  return out


def _embed_once(encoder: ImageTextEncoder, texts: Sequence[str], dim: int) -> np.ndarray:
  place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
  if not place:
    return np.zeros((0, dim), np.float32)
  distinct = np.asarray(encoder.embed_texts(list(place)), np.float32)
  return distinct[[place[text] for text in texts]]


@dataclasses.dataclass(frozen=True)
class Features:
  """Embeddings of a source.

  Attributes:
    ids: record ids, one an image.
    image: unit-norm image embeddings, `[images, dim]`.
    texts: captions, in the order of their images.
    text: unit-norm caption embeddings, `[texts, dim]`.
    text_owner: of each caption, the row of its image.
    labels: class names of each image, the main one first.
    modality: `real` or `generated`, as recorded.
    pair_ids: of each image, the id of its real partner, '' for none.
  """

  ids: list[str]
  image: Float[np.ndarray, 'images dim']
  texts: list[str]
  text: Float[np.ndarray, 'texts dim']
  text_owner: Int[np.ndarray, 'texts']
  labels: list[tuple[str, ...]]
  modality: list[str]
  pair_ids: list[str]

  def __post_init__(self):
    for name, array in (('image', self.image), ('text', self.text)):
      # NaN compares false with everything, so a diverged model could pass for a perfect one.
      bad = int((~np.isfinite(array)).any(axis=1).sum())
      if bad:
        raise UserError(
          f'{name} embeddings: {bad} of {len(array)} are not finite; '
          'the checkpoint has diverged, take an earlier one'
        )
    counts = {len(self.ids), len(self.image), len(self.labels), len(self.modality)}
    if len(counts | {len(self.pair_ids)}) != 1 or len(self.texts) != len(self.text):
      raise ValueError('features: every list must have one entry an image (or a text)')
