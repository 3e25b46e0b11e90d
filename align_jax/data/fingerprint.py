"""A short checksum of what a source holds, to tell a changed source from the one that was used."""

import hashlib
from typing import TYPE_CHECKING, Any

from align_jax.data.pair_record import Content, PairRecord
from align_jax.data.pair_sources.records import RecordPairs
from align_jax.errors import UserError

if TYPE_CHECKING:
  from align_jax.data.pair_record import PairSource
  from align_jax.data.record import Record
  from align_jax.data.sources import Source
else:
  PairSource = Record = Source = Any  # the shape check of the tests cannot follow names for mypy

_LOOKED_AT = 64


def fingerprint(source: Source | PairSource) -> str:
  """Returns a checksum of some records all over a source: of their ids, images and texts.

  Records, and the same records as pairs of images and captions, have the same one. A change of
  records that are not looked at goes unseen: reading all of a large source would take as long as
  training on it.
  """
  if isinstance(source, RecordPairs):
    source = source.records
  digest = hashlib.sha256(str(len(source)).encode())
  for index in range(0, len(source), -(-len(source) // _LOOKED_AT)):
    try:
      parts = _parts(source[index])
    except (UserError, OSError):
      parts = [b'unreadable']
    for part in parts:
      digest.update(len(part).to_bytes(8, 'big') + part)
  return digest.hexdigest()


def _parts(record: Record | PairRecord) -> list[bytes]:
  if isinstance(record, PairRecord):
    texts = (record.id, record.task, record.instruction, record.candidate_instruction)
    sides = (record.query, record.positive)
    return [*(text.encode() for text in texts), *(part for s in sides for part in _content(s))]
  return [record.id.encode(), record.image, *(caption.encode() for caption in record.captions)]


def _content(content: Content) -> list[bytes]:
  return [content.text.encode(), *content.images]
