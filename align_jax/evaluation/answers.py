"""How often a model answers questions about images right, kind by kind."""

import dataclasses
import functools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from align_jax.data.emoji.colours import NATURAL, PALETTE
from align_jax.data.emoji.concepts import concepts_by_code
from align_jax.data.pipeline import eval_batches
from align_jax.data.quarantine import Quarantine
from align_jax.data.questions import NUMBERS, Question, questions, things_in
from align_jax.data.record import Record
from align_jax.data.sources.base import Source
from align_jax.data.sources.subset import Subset, spread_positions
from align_jax.data.transforms import Transform
from align_jax.errors import UserError
from align_jax.modality import Modality

LEAST_IOU = 0.5
_BATCH = 128
_COUNTS = {word: number for number, word in NUMBERS.items()}


@runtime_checkable
class TextWriter(Protocol):
  """What answers: `align_jax.answerer.Answerer`, for instance."""

  @property
  def transform(self) -> Transform: ...

  def answer(
    self, images: np.ndarray, questions: Sequence[str], *, modality: Modality = 'real'
  ) -> list[str]: ...


@dataclasses.dataclass(frozen=True)
class Answered:
  """A question, what was said, and what it is worth.

  Attributes:
    record_id: of the image.
    question: with the right answer.
    said: by the model.
    scores: named numbers in [0, 1]; '' is that of the kind.
  """

  record_id: str
  question: Question
  said: str
  scores: Mapping[str, float]


def answer_scores(answered: Sequence[Answered]) -> dict[str, float]:
  """Returns the mean of each score, `answers.count`, `answers.caption.objects`, ...

  `answers.mean` is the mean over kinds, `answers.asked` how many questions there were.
  """
  found: dict[str, list[float]] = defaultdict(list)
  for each in answered:
    for name, value in each.scores.items():
      found[f'{each.question.kind}.{name}' if name else each.question.kind].append(value)
  means = {name: float(np.mean(values)) for name, values in found.items()}
  kinds = [value for name, value in means.items() if '.' not in name]
  scores = {f'answers.{name}': means[name] for name in sorted(means)}
  return {**scores, 'answers.mean': float(np.mean(kinds)), 'answers.asked': float(len(answered))}


def ask_all(
  writer: TextWriter,
  source: Source,
  *,
  kinds: Sequence[str] = (),
  limit: int | None = None,
  quarantine: Quarantine | None = None,
) -> list[Answered]:
  """Asks every question that the records of a source have an answer to.

  Args:
    writer: the model.
    source: images with captions or ground truth, see `data.questions`.
    kinds: of questions; (): all.
    limit: at most so many records, evenly over the source.
    quarantine: counts what cannot be read.

  Raises:
    UserError: not one question.
  """
  things = things_in(source)
  if limit is not None and limit < len(source):
    source = Subset(source, source.spec, spread_positions(len(source), limit))
  asked = [
    (image, record, question)
    for image, record in _pictures(writer, source, quarantine)
    for question in questions(record, things)
    if not kinds or question.kind in kinds
  ]
  if not asked:
    raise UserError(
      f'answers: no record of {source.spec} has a question with an answer; give captions, or '
      'ground truth with questions'
    )
  out = []
  for start in range(0, len(asked), _BATCH):
    part = asked[start : start + _BATCH]
    images = np.stack([image for image, _, _ in part])
    said = writer.answer(images, [question.question for _, _, question in part])
    for (_, record, question), text in zip(part, said, strict=True):
      out.append(Answered(record.id, question, text, judge(record, question, text)))
  return out


def _pictures(
  writer: TextWriter, source: Source, quarantine: Quarantine | None
) -> Iterator[tuple[np.ndarray, Record]]:
  for images, records in eval_batches(source, writer.transform, _BATCH, quarantine=quarantine):
    yield from zip(images, records, strict=True)


def judge(record: Record, question: Question, said: str) -> dict[str, float]:
  """Scores what was said: equal to the answer up to case, spaces and a full stop.

  A box is right if it overlaps the true one by an IoU of 0.5 or more; the mean IoU is told as well.
  A caption of a scene with ground truth is also held against that: `objects` 1 if the things that
  it names are those that are there, no more and no less; `colours` and `counts` are the shares of
  the things there that it names with the right one.
  """
  exact = float(normal(said) == normal(question.answer))
  if question.kind == 'grounding':
    overlap = iou(parse_box(said), parse_box(question.answer))
    return {'': float(overlap >= LEAST_IOU), 'iou': overlap}
  objects = record.truth.get('objects')
  if question.kind != 'caption' or not objects:
    return {'': exact}
  named = parse_caption(said)
  there = {o['label']: o for o in objects}
  told = {label: named.get(label) for label in there}
  right = [
    (name[0] == there[label]['colour'], name[1] == there[label]['count'])
    for label, name in told.items()
    if name is not None
  ]
  return {
    '': exact,
    'objects': float(named.keys() == there.keys()),
    'colours': sum(colour for colour, _ in right) / len(there),
    'counts': sum(count for _, count in right) / len(there),
  }


def normal(text: str) -> str:
  """The text in lower case, spaces made one, without a full stop at its end."""
  return ' '.join(text.lower().split()).removesuffix('.').rstrip()


def parse_box(text: str) -> tuple[int, ...] | None:
  """Reads four numbers, left, top, right and lower edge; None where there are no four."""
  found = re.findall(r'\d+', text)
  return tuple(int(x) for x in found) if len(found) == 4 else None


def iou(first: tuple[int, ...] | None, second: tuple[int, ...] | None) -> float:
  """Intersection over union of two boxes; 0 where one is none or has no area."""
  if first is None or second is None:
    return 0.0
  sides = [max(0, min(first[i + 2], second[i + 2]) - max(first[i], second[i])) for i in (0, 1)]
  areas = [max(0, b[2] - b[0]) * max(0, b[3] - b[1]) for b in (first, second)]
  inside = sides[0] * sides[1]
  union = sum(areas) - inside
  return inside / union if union > 0 else 0.0


def parse_caption(text: str) -> dict[str, tuple[str, int]]:
  """Finds the things that a caption of an emoji scene names: name -> colour and count."""
  pattern, names = _caption_pattern()
  out = {}
  for found in pattern.finditer(text.lower()):
    out[names[found['noun']]] = (found['colour'] or NATURAL, _COUNTS.get(found['number'], 1))
  return out


@functools.cache
def _caption_pattern() -> tuple[re.Pattern[str], Mapping[str, str]]:
  """What matches a thing with its number and colour, and from nouns to names."""
  names: dict[str, str] = {}
  for concept in concepts_by_code().values():
    names |= {concept.name: concept.name, (concept.plural or concept.name): concept.name}
  longest_first = sorted(names, key=lambda noun: (-len(noun), noun))
  pattern = (
    rf'\b(?P<number>an?|{"|".join(_COUNTS)}) (?:(?:small|large) )?(?:\w+ of )?'
    rf'(?:(?P<colour>{"|".join(PALETTE)}) )?(?P<noun>{"|".join(map(re.escape, longest_first))})\b'
  )
  return re.compile(pattern), names
