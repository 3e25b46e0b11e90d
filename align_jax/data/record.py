"""The record: one schema for every example on disk, real or generated."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import msgpack

from align_jax.errors import UserError
from align_jax.modality import Modality

SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class Record:
  """One example.

  Attributes:
    id: unique within its source.
    image: encoded bytes (PNG, JPEG or WebP).
    captions: any number of captions of the image.
    modality: `real` or `generated`.
    pair_id: of a generated image, the `id` of its real partner; '' when it has none.
    labels: class names, the main one first.
    generator_id: which generator drew it and its version; '' for real images.
    prompt: what the generator was asked for; '' for real images.
    source_id: where it comes from, for attribution.
    truth: exact ground truth and provenance as JSON-like values (boxes, masks, colours, seeds).
  """

  id: str
  image: bytes
  captions: tuple[str, ...] = ()
  modality: Modality = 'real'
  pair_id: str = ''
  labels: tuple[str, ...] = ()
  generator_id: str = ''
  prompt: str = ''
  source_id: str = ''
  truth: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def encode(record: Record) -> bytes:
  """Serialises a record (msgpack: no code runs on reading)."""
  fields = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
  return msgpack.packb({'schema': SCHEMA, **fields}, use_bin_type=True)


def decode(data: bytes, where: str = 'record') -> Record:
  """Reads what `encode` wrote.

  Raises:
    UserError: the bytes are no record, or one of a newer schema; `where` names the place.
  """
  try:
    fields = msgpack.unpackb(data, raw=False, use_list=False)
    schema = fields.pop('schema')
  except Exception as error:
    raise UserError(f'{where}: not an align_jax record ({error}); rebuild the shard') from error
  if schema != SCHEMA:
    raise UserError(
      f'{where}: record schema {schema}, this version reads {SCHEMA}; convert it again'
    )
  try:
    return Record(**fields)
  except TypeError as error:
    raise UserError(f'{where}: not an align_jax record ({error}); rebuild the shard') from error
