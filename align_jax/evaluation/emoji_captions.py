"""What a caption of an emoji scene gets right, object by object, read by the pack's own grammar."""

import collections
import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from align_jax.data.emoji.captions import noun_phrase
from align_jax.data.emoji.colours import NATURAL, PALETTE
from align_jax.data.emoji.concepts import Concept, scene_concepts
from align_jax.errors import UserError

_NUMBERS = {'a': 1, 'an': 1, 'one': 1, 'two': 2, 'three': 3}
_CONCEPTS = 392  # all that the pack may put in a scene, see docs/emoji.md


@dataclasses.dataclass(frozen=True)
class Mention:
  """An object that a caption names.

  Attributes:
    label: the concept's name.
    colour: a colour of the palette, or 'natural' where none is named.
    count: 1 to 3.
  """

  label: str
  colour: str
  count: int


class CaptionReader:
  """Finds the objects that captions name, whatever else they say."""

  def __init__(self, concepts: Sequence[Concept]):
    """`concepts`: all that captions may name."""
    # what stands behind the number, without colour and size -> concept
    self._names: dict[str, Concept] = {}
    for concept in concepts:
      for count in (1, 2):
        self._names[noun_phrase(concept, count, NATURAL).split(' ', 1)[1]] = concept
    plain = [name for name, concept in self._names.items() if not concept.measure]
    measured = [name.split(' of ', 1) for name, concept in self._names.items() if concept.measure]
    colour = f'(?:({"|".join(PALETTE)}) )?'
    # measures first: a ball of yarn is no ball
    self._phrase = re.compile(
      rf'\b({_any(_NUMBERS)}) (?:(?:small|large) )?'
      rf'(?:({_any(m for m, _ in measured)}) of {colour}({_any(n for _, n in measured)})'
      rf'|{colour}({_any(plain)}))(?![\w-])',
      re.IGNORECASE,
    )

  def read(self, caption: str) -> list[Mention]:
    """Returns the objects in the order in which they are named."""
    out = []
    for found in self._phrase.findall(' '.join(caption.split())):
      number, measure, inner, what, outer, plain = (text.lower() for text in found)
      concept = self._names.get(f'{measure} of {what}' if measure else plain)
      if concept is not None:
        out.append(Mention(concept.name, inner or outer or NATURAL, _NUMBERS[number]))
    return out


def caption_accuracy(
  captions: Sequence[str],
  truths: Sequence[Mapping[str, Any]],
  reader: CaptionReader | None = None,
) -> dict[str, float]:
  """Compares captions with the ground truth of emoji scenes.

  Args:
    captions: what the model said of each scene.
    truths: `record.truth` of each.
    reader: of captions; None: one that knows every scene concept.

  Returns: shares in [0, 1]. Of the objects that are there: `object`, named at all; `colour`, named
    with the right colour; `count`, with the right count; `attributes`, with both. Of the objects
    that are named, `invented`: not there, or named again. Of the captions, `exact`: they name what
    is there, all of it right and nothing else. And `objects`, `captions`: how many there were.

  Raises:
    UserError: numbers that differ, none at all, or no ground truth of scenes.
  """
  if not captions or len(captions) != len(truths):
    raise UserError(f'captions: {len(captions)} of them, ground truth of {len(truths)} scenes')
  reader = reader or scene_reader()
  sums: collections.Counter[str] = collections.Counter()
  named = exact = 0
  for caption, truth in zip(captions, truths, strict=True):
    there = _objects(truth)
    said = reader.read(caption)
    named += len(said)
    exact += collections.Counter(said) == collections.Counter(there.values())
    first = {mention.label: mention for mention in reversed(said)}
    sums['invented'] += len(said) - len(first.keys() & there.keys())
    for label, item in there.items():
      found = first.get(label)
      if found is not None:
        colour, count = found.colour == item.colour, found.count == item.count
        sums.update(object=1, colour=colour, count=count, attributes=colour and count)
    sums['objects'] += len(there)
  share = {k: sums[k] / sums['objects'] for k in ('object', 'colour', 'count', 'attributes')}
  return {
    **share,
    'invented': sums['invented'] / named if named else 0.0,
    'exact': exact / len(captions),
    'objects': float(sums['objects']),
    'captions': float(len(captions)),
  }


@functools.cache
def scene_reader() -> CaptionReader:
  """Returns a reader that knows every scene concept."""
  return CaptionReader(scene_concepts(_CONCEPTS))


def _any(texts: Iterable[str]) -> str:
  """Returns a pattern of any of the texts; of two that begin alike the longer one goes first."""
  return '|'.join(re.escape(t) for t in sorted(dict.fromkeys(texts), key=len, reverse=True)) or '$^'


def _objects(truth: Mapping[str, Any]) -> dict[str, Mention]:
  try:
    return {o['label']: Mention(o['label'], o['colour'], o['count']) for o in truth['objects']}
  except (KeyError, TypeError) as error:
    raise UserError(
      f'captions: no ground truth of emoji scenes ({error}); use records of emoji:scenes'
    ) from error
