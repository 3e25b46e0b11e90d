"""Questions about an image, with the answers that its ground truth gives."""

import dataclasses
import io
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

from align_jax.data.emoji.captions import noun_phrase, plural, singular
from align_jax.data.emoji.colours import NATURAL, PALETTE
from align_jax.data.emoji.concepts import Concept, concept_of
from align_jax.data.emoji.scenes import is_held_out
from align_jax.data.record import Record
from align_jax.data.sources.base import Source
from align_jax.errors import UserError

KINDS = ('caption', 'count', 'colour', 'position', 'existence', 'grounding')
DESCRIBE, DESCRIBE_WHOLE = 'What is in the picture?', 'Describe the whole picture.'
NUMBERS = {1: 'one', 2: 'two', 3: 'three'}
_CAPTIONS = 0.5  # of the draws
# of an object of a scene, for questions about it
_TOLD = {'concept', 'label', 'colour', 'count', 'boxes', 'position', 'held_out'}
_LOOKED_AT = 256  # records of a source, for the things that it shows


@dataclasses.dataclass(frozen=True)
class Question:
  """A question with its answer.

  Attributes:
    kind: one of `KINDS`, or what a record of other data says.
    question, answer: as texts.
  """

  kind: str
  question: str
  answer: str


def questions(record: Record, things: Sequence[tuple[str, str]] = ()) -> list[Question]:
  """Returns all questions that a record has an answer to; the same ones whenever it is asked.

  They are those of `truth['questions']` (a list of groups with `kind`, `question` and `answer`)
  where there are any, else made of the captions and of an emoji scene's ground truth. Boxes are
  answered as text: left, top, right and lower edge in hundredths of the image's side, two digits
  each.

  Args:
    record: an image with captions or ground truth.
    things: code and name of what else might be there, see `things_in`: some questions ask for what
      is not there. Without them, only in another colour.

  Raises:
    UserError: `truth['questions']` is no such list.
  """
  given = record.truth.get('questions')
  if given is not None:
    return _given(record, given)
  whole = record.truth.get('caption_long')
  out = [
    Question('caption', DESCRIBE_WHOLE if caption == whole else DESCRIBE, caption)
    for caption in record.captions
    if caption.strip()
  ]
  objects = record.truth.get('objects') or ()
  if objects and all(isinstance(o, Mapping) and o.keys() >= _TOLD for o in objects):
    scene = _Asked(record, objects, things)
    for of_kind in _MAKERS.values():
      out += of_kind(scene)
  return out


def draw_questions(
  found: Sequence[Question], count: int, draw: Callable[[], float]
) -> list[Question]:
  """Draws different questions one after the other, so many or all.

  Each time a caption half of the time, for it tells all there is; else the other kinds equally.

  Args:
    found: questions, at least one.
    count: 1 or more.
    draw: returns numbers in [0, 1).
  """
  left, out = list(dict.fromkeys(found)), list[Question]()
  while left and len(out) < count:
    out.append(_draw(left, draw))
    left.remove(out[-1])
  return out


def _draw(found: Sequence[Question], draw: Callable[[], float]) -> Question:
  chosen = [question for question in found if question.kind == 'caption']
  kinds = list(dict.fromkeys(q.kind for q in found if q.kind != 'caption'))
  number = draw()
  if kinds and (not chosen or number >= _CAPTIONS):
    kind = kinds[int(draw() * len(kinds))]
    chosen = [question for question in found if question.kind == kind]
  return chosen[int(draw() * len(chosen))]


def things_in(source: Source) -> tuple[tuple[str, str], ...]:
  """Returns code and name of what some records of a source show, in order of their names."""
  found = set()
  for index in range(0, len(source), max(1, len(source) // _LOOKED_AT)):
    try:
      truth = source[index].truth
    except UserError:
      continue  # counted where it is read to be learnt from
    for item in truth.get('objects') or ():
      if isinstance(item, Mapping) and item.keys() >= {'concept', 'label'}:
        found.add((str(item['concept']), str(item['label'])))
  return tuple(sorted(found, key=lambda thing: thing[1]))


def box_text(box: Sequence[int | float], size: tuple[int, int]) -> str:
  """Returns '05 40 37 99' of a box in pixels.

  Args:
    box: left, top, right and lower edge.
    size: width and height of the image.
  """
  sides = (*size, *size)
  return ' '.join(f'{min(99, round(100 * x / s)):02d}' for x, s in zip(box, sides, strict=True))


class _Asked:
  """A scene that questions are made of."""

  def __init__(
    self, record: Record, objects: Sequence[Mapping[str, Any]], things: Sequence[tuple[str, str]]
  ):
    self.record, self.objects = record, objects
    self.concepts = [concept_of(o['concept'], o['label']) for o in objects]
    here = {concept.code for concept in self.concepts}
    self.absent = [thing for thing in things if thing[0] not in here]

  def each(self) -> Iterator[tuple[Mapping[str, Any], Concept]]:
    return zip(self.objects, self.concepts, strict=True)

  def single(self) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Objects that stand there once, with their names."""
    return ((o, singular(concept)) for o, concept in self.each() if o['count'] == 1)


def _count(scene: _Asked) -> list[Question]:
  return [
    Question('count', f'How many {plural(concept)} are there?', NUMBERS[o['count']])
    for o, concept in scene.each()
    if o['count'] in NUMBERS
  ]


def _colour(scene: _Asked) -> list[Question]:
  out = []
  for o, concept in scene.each():
    if o['colour'] != NATURAL:
      subject = f'is the {singular(concept)}' if o['count'] == 1 else f'are the {plural(concept)}'
      out.append(Question('colour', f'What colour {subject}?', o['colour']))
  return out


def _position(scene: _Asked) -> list[Question]:
  return [
    Question('position', f'Where is the {name}?', o['position'][0]) for o, name in scene.single()
  ]


def _existence(scene: _Asked) -> list[Question]:
  """Two questions for each object, one to be answered with yes, one with no.

  What is asked for in vain is an object in another colour, or something that is not there. Of
  held-out pairs of thing and colour only those that are there are asked for: elsewhere they would
  be learnt as what is never there.
  """
  rng = random.Random(f'existence|{scene.record.id}')
  out = []
  for o, concept in scene.each():
    colour = o['colour'] if o['held_out'] or rng.random() < 0.5 else NATURAL
    out.append(Question('existence', f'Is there {noun_phrase(concept, 1, colour)}?', 'yes'))
    wrong = [c for c in PALETTE if c != o['colour'] and c not in concept.natural]
    wrong = [c for c in wrong if not is_held_out(concept, c)]
    # nobody can tell an object in its own colours from one that is painted so
    if o['colour'] != NATURAL and wrong and (colour != NATURAL or not scene.absent):
      phrase = noun_phrase(concept, 1, wrong[int(rng.random() * len(wrong))])
    elif scene.absent:
      other = concept_of(*scene.absent[int(rng.random() * len(scene.absent))])
      phrase = noun_phrase(other, 1, NATURAL)
    else:
      continue
    out.append(Question('existence', f'Is there {phrase}?', 'no'))
  return out


def _grounding(scene: _Asked) -> list[Question]:
  single = list(scene.single())
  if not single:
    return []
  try:
    with Image.open(io.BytesIO(scene.record.image)) as image:
      size = image.size  # of the header, nothing is decoded
  except Exception:  # damaged bytes raise nearly anything; who decodes them says what is wrong
    return []
  return [
    Question('grounding', f'What is the box of the {name}?', box_text(o['boxes'][0], size))
    for o, name in single
    if o['boxes'][0][0] < o['boxes'][0][2]  # hidden things have a box of no size
  ]


_MAKERS: Mapping[str, Callable[[_Asked], list[Question]]] = {
  'count': _count,
  'colour': _colour,
  'position': _position,
  'existence': _existence,
  'grounding': _grounding,
}


def _given(record: Record, given: Any) -> list[Question]:
  fields = ('kind', 'question', 'answer')
  try:
    found = [Question(*(group[name] for name in fields)) for group in given]
    good = all(isinstance(getattr(q, name), str) for q in found for name in fields)
  except (TypeError, KeyError):
    good = False
  if not good:
    raise UserError(
      f'record {record.id}: truth.questions must be a list of groups with kind, question and answer'
    )
  return found
