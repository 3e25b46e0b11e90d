"""From a source's record to one example of a batch: read, decoded, augmented, with its partner."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from align_jax.data.images import ImageError, decode_picture
from align_jax.data.quarantine import Skipped
from align_jax.data.record import Record
from align_jax.data.transforms import Transform, apply_to_bytes, apply_to_picture
from align_jax.errors import UserError
from align_jax.modality import MODALITIES

if TYPE_CHECKING:
  from align_jax.data.sources import Source
else:
  Source = Any  # the shape check of the tests cannot follow a name that exists for mypy only

_MODALITY_INDEX = {name: index for index, name in enumerate(MODALITIES)}


def caption_group(caption: str) -> int:
  """Returns a stable non-negative 31-bit number, equal for captions equal up to case and spaces.

  Raises:
    UnicodeEncodeError: the caption holds half a surrogate pair.
  """
  normal = ' '.join(caption.lower().split()).encode()
  return int.from_bytes(hashlib.blake2b(normal, digest_size=4).digest(), 'big') & 0x7FFFFFFF


def partner_positions(source: Source) -> dict[str, int]:
  """Returns record id → position, without reading records where the source offers `ids()`.

  Unreadable records are left out: who asks for one as a partner gets none.

  Raises:
    UserError: two records share an id.
  """
  out: dict[str, int] = {}
  names = source.ids() if hasattr(source, 'ids') else None
  for index in range(len(source)):
    if names is not None:
      name = names[index]
    else:
      record = _read(source, index)
      if isinstance(record, Skipped):
        continue
      name = record.id
    if name in out:
      raise UserError(
        f'{source.spec}: records {out[name]} and {index} share the id {name!r}; '
        'partners need ids of their own'
      )
    out[name] = index
  return out


def _read(source: Source, index: int) -> Record | Skipped:
  try:
    return source[index]
  except (UserError, OSError):
    return Skipped(f'record {index}', source.spec, 'unreadable')


def load(source: Source, index: int, max_pixels: int) -> tuple[Record, Image.Image] | Skipped:
  """Reads and decodes one record."""
  record = _read(source, index)
  if isinstance(record, Skipped):
    return record
  try:
    return record, decode_picture(record.image, max_pixels)
  except ImageError as error:
    return Skipped(record.id, source.spec, error.reason)


def _modality(record: Record, source: Source) -> int:
  index = _MODALITY_INDEX.get(record.modality)
  if index is None:
    raise UserError(
      f'{source.spec}: record {record.id} has modality {record.modality!r}; '
      f'set one of {", ".join(MODALITIES)}'
    )
  return index


@dataclasses.dataclass(frozen=True)
class Part:
  """One source of a mixture.

  Attributes:
    source: the examples.
    weight: its share of all examples, relative to the other parts' weights.
    partners: where the `pair_id` of an example is the `id` of its real partner.
  """

  source: Source
  weight: float = 1.0
  partners: Source | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
  """One example, ready to be joined to a batch; `partner_read` if a partner was looked at."""

  record_id: str
  image: np.ndarray
  caption: str
  group: int
  modality: int
  partner: np.ndarray | None
  partner_read: bool
  partner_skipped: Skipped | None


@dataclasses.dataclass(frozen=True)
class Reader:
  """Makes the example at a position of a part; runs in Grain's threads."""

  part: Part
  transform: Transform
  require_caption: bool
  max_pixels: int
  positions: Mapping[str, int] | None

  def __call__(self, index: int, rng: np.random.Generator) -> Example | Skipped:
    source = self.part.source
    record = _read(source, index)
    if isinstance(record, Skipped):
      return record
    captions = [caption for caption in record.captions if caption.strip()]
    if not captions and self.require_caption:
      return Skipped(record.id, source.spec, 'no caption')
    caption = captions[int(rng.random() * len(captions))] if captions else ''
    try:
      # without captions there is nothing to be equal in: a group of its own
      group = caption_group(caption or f'\0{source.spec}\0{record.id}')
      image = apply_to_bytes(self.transform, record.image, rng, self.max_pixels)
    except UnicodeEncodeError:
      return Skipped(record.id, source.spec, 'bad caption')
    except ImageError as error:
      return Skipped(record.id, source.spec, error.reason)
    partner = self._partner(record)
    partner_image = None
    if isinstance(partner, tuple):
      partner_image = apply_to_picture(self.transform, partner[1], rng)
    return Example(
      record_id=record.id,
      image=image,
      caption=caption,
      group=group,
      modality=_modality(record, source),
      partner=partner_image,
      partner_read=partner is not None,
      partner_skipped=partner if isinstance(partner, Skipped) else None,
    )

  def _partner(self, record: Record) -> tuple[Record, Image.Image] | Skipped | None:
    if self.positions is None or self.part.partners is None or not record.pair_id:
      return None
    position = self.positions.get(record.pair_id)
    if position is None:
      return None
    return load(self.part.partners, position, self.max_pixels)
