"""From a source's record to one example of a batch: read, decoded, augmented, with its partner."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Int
from PIL import Image

from align_jax.data.chat_template import Turn
from align_jax.data.images import ImageError, decode_picture
from align_jax.data.quarantine import Skipped
from align_jax.data.questions import DESCRIBE, Question, draw_questions, questions
from align_jax.data.record import Record
from align_jax.data.summaries import Turns, draw_summaries, one_words
from align_jax.data.transforms import Transform, apply_to_bytes, apply_to_picture
from align_jax.errors import UserError
from align_jax.modality import MODALITIES

if TYPE_CHECKING:
  from align_jax.data.sources import Source
else:
  Source = Any  # the shape check of the tests cannot follow a name that exists for mypy only

# what of a record is read, see `Reader`; `pairs`: see `data.pair_examples`
Text = Literal['plain', 'captions', 'questions', 'pairs']
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


@dataclasses.dataclass(frozen=True, eq=False)
class Clusters:
  """Which records come together, as a batch plan says.

  Attributes:
    positions: of the members of each cluster in the source.
    checksum: of the plan.
  """

  positions: Int[np.ndarray, 'clusters size']
  checksum: str


@dataclasses.dataclass(frozen=True)
class Part:
  """One source of a mixture.

  Attributes:
    source: the examples.
    weight: its share of all examples, relative to the other parts' weights.
    partners: where the `pair_id` of an example is the `id` of its real partner.
    clusters: that the examples come in; None: one by one.
  """

  source: Source
  weight: float = 1.0
  partners: Source | None = None
  clusters: Clusters | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
  """One example, ready to be joined to a batch.

  Attributes:
    caption: '' if there is none, or of chats.
    chats: conversations about the image, none but of chats.
    blind: conversations without an image beside them.
    partner_read: a partner was looked at.
  """

  record_id: str
  image: np.ndarray
  caption: str
  group: int
  modality: int
  partner: np.ndarray | None
  partner_read: bool
  partner_skipped: Skipped | None
  chats: tuple[Turns, ...] = ()
  blind: tuple[Turns, ...] = ()


@dataclasses.dataclass(frozen=True)
class Reader:
  """Makes the example at a position of a part; runs in Grain's threads.

  Attributes:
    positions: of partners, by id.
    text: `plain`: a caption is drawn; `captions`: the answer to what an image shows; `questions`:
      a question about it is drawn, and answered.
    things: see `data.questions.questions`.
    questions: that are drawn of an image, as many as there are.
    summaries: share of images that are summarised instead, see `data.summaries`.
  """

  part: Part
  transform: Transform
  require_caption: bool
  max_pixels: int
  positions: Mapping[str, int] | None
  text: Text = 'plain'
  things: Sequence[tuple[str, str]] = ()
  questions: int = 1
  summaries: float = 0.0

  def __call__(self, index: int, rng: np.random.Generator) -> Example | Skipped:
    source = self.part.source
    record = _read(source, index)
    if isinstance(record, Skipped):
      return record
    try:
      found = self._texts(record)
    except UserError:  # the record's own questions are no questions
      return Skipped(record.id, source.spec, 'bad questions')
    if not found and (self.require_caption or self.text != 'plain'):
      what = 'question' if self.text == 'questions' else 'caption'
      return Skipped(record.id, source.spec, f'no {what}')
    caption, chats, blind = self._draw(record, found, rng)
    said = ''.join(turn.text for chat in chats for turn in chat) or caption
    try:
      # without captions there is nothing to be equal in: a group of its own
      group = caption_group(said or f'\0{source.spec}\0{record.id}')
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
      chats=chats,
      blind=blind,
    )

  def _draw(
    self, record: Record, found: Sequence[Question], rng: np.random.Generator
  ) -> tuple[str, tuple[Turns, ...], tuple[Turns, ...]]:
    """A caption, or chats with the image and chats without."""
    if self.summaries and rng.random() < self.summaries and (words := one_words(record)):
      image, blind = draw_summaries(record, words, rng.random)
      return '', (image,), blind
    if self.text == 'questions':
      drawn = draw_questions(found, self.questions, rng.random)
    else:
      drawn = [found[int(rng.random() * len(found))]] if found else []
    if self.text == 'plain':
      return drawn[0].answer if drawn else '', (), ()
    return '', tuple((Turn('user', q.question), Turn('assistant', q.answer)) for q in drawn), ()

  def _texts(self, record: Record) -> list[Question]:
    if self.text == 'questions':
      return questions(record, self.things)
    asked = DESCRIBE if self.text == 'captions' else ''
    return [Question('caption', asked, caption) for caption in record.captions if caption.strip()]

  def _partner(self, record: Record) -> tuple[Record, Image.Image] | Skipped | None:
    if self.positions is None or self.part.partners is None or not record.pair_id:
      return None
    position = self.positions.get(record.pair_id)
    if position is None:
      return None
    return load(self.part.partners, position, self.max_pixels)
