"""Any source of records as pairs: images and captions, or generated images and real ones."""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from align_jax.data.pair_record import Content, PairRecord
from align_jax.data.record import Record
from align_jax.data.sources.base import Source, check_index, pair_ids, pair_index, record_ids
from align_jax.errors import UserError

Pairing = Literal['image_to_caption', 'caption_to_image', 'generated_to_real']
PAIRINGS: tuple[Pairing, ...] = get_args(Pairing)
INSTRUCTIONS: Mapping[Pairing, tuple[str, str]] = {
  'image_to_caption': ('Find the caption that describes the image.', ''),
  'caption_to_image': ('Find the image that the caption describes.', 'Represent the image.'),
  'generated_to_real': ('Find the photograph that shows the same.', 'Represent the image.'),
}


def record_label(record: Record) -> str:
  """Returns what two records agree on if each one's caption is true of the other's image.

  With the ground truth of emoji scenes: every object with its colour and count, in whatever order;
  otherwise the caption, without regard to case; '' without one.
  """
  objects = record.truth.get('objects')
  if objects and all({'label', 'colour', 'count'} <= set(o) for o in objects):
    return '; '.join(sorted(f'{o["count"]} {o["colour"]} {o["label"]}' for o in objects))
  return ' '.join(record.captions[0].lower().split()) if record.captions else ''


class RecordPairs:
  """The records of a source as pairs, each in one of three ways.

  Attributes:
    spec, licence: as the source's.
    records: the source.
    skipped: what was left out, by reason.
  """

  def __init__(
    self,
    source: Source,
    pairing: Pairing,
    *,
    partners: Source | None = None,
    skip: bool = False,
    spec: str = '',
  ):
    """Prepares the pairs; reads records only if captions are wanted and `skip` is set.

    Args:
      source: of generated images, for `generated_to_real`.
      pairing: which side is the query.
      partners: the real images that `pair_id`s name; None: they are in `source`.
      skip: whether records without a caption or partner are left out and counted.
      spec: the text that opens this again; '' for the source's.

    Raises:
      UserError: records without a partner (unless skipped), two partners of one id, no pairs.
    """
    self.spec, self.licence = spec or source.spec, source.licence
    self.records, self._pairing = source, pairing
    self._partners = partners if partners is not None else source
    self._positions: Sequence[int] = range(len(source))
    self._partner: Mapping[int, int] = {}
    if pairing == 'generated_to_real':
      index = pair_index(self._partners)
      named = pair_ids(source)
      self._partner = {i: index[name] for i, name in enumerate(named) if name in index}
      self._positions = list(self._partner)
      reason = 'record without a real partner'
    elif skip:
      self._positions = [i for i in range(len(source)) if source[i].captions]
      reason = 'record without a caption'
    missing = len(source) - len(self._positions)
    if missing and not skip:
      first = next(i for i in range(len(source)) if i not in self._partner)
      raise UserError(
        f'{self.spec}: {missing} of {len(source)} records have no real partner, first '
        f'{record_ids(source)[first]!r}; say where the real images are with partners=SPEC, or '
        'leave such records out with missing=skip'
      )
    self.skipped: Mapping[str, int] = {reason: missing} if missing else {}
    if not len(self._positions):
      raise UserError(f'{self.spec}: no pairs in {len(source)} records; check the source')

  def __len__(self) -> int:
    return len(self._positions)

  def __getitem__(self, index: int) -> PairRecord:
    check_index(index, len(self))
    position = self._positions[index]
    record = self.records[position]
    label_of = record
    made = self._pairing == 'generated_to_real'
    image = Content('', (record.image,), record.id, 'generated' if made else record.modality)
    if made:
      label_of = self._partners[self._partner[position]]
      sides = image, Content(images=(label_of.image,), id=label_of.id)
    else:
      if not record.captions:
        raise UserError(
          f'{self.spec}: record {record.id!r} has no caption; write one, or leave such records out '
          'with missing=skip'
        )
      caption = Content(record.captions[0])
      sides = (image, caption) if self._pairing == 'image_to_caption' else (caption, image)
    instruction, candidate_instruction = INSTRUCTIONS[self._pairing]
    return PairRecord(
      id=record.id,
      task=self._pairing,
      query=sides[0],
      positive=sides[1],
      instruction=instruction,
      candidate_instruction=candidate_instruction,
      label=record_label(label_of),
    )

  def ids(self) -> Sequence[str]:
    every = record_ids(self.records)
    return [every[i] for i in self._positions]
