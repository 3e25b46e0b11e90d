"""Questions about an emoji scene, each with the one right answer and answers that are wrong."""

import dataclasses
import random
from collections.abc import Callable, Mapping

from align_jax.data.emoji.captions import noun_phrase, places, plural, singular
from align_jax.data.emoji.colours import NATURAL
from align_jax.data.emoji.scenes import Item, Scene, World
from align_jax.data.pair_sources.emoji_edits import choose

_NUMBERS = {1: 'one', 2: 'two', 3: 'three'}
_CENTRES = [(x, y) for y in (0.1, 0.5, 0.9) for x in (0.1, 0.5, 0.9)]  # one for every place


@dataclasses.dataclass(frozen=True)
class Asked:
  """A question.

  The answer repeats what was asked about, so that the answer to one question is the answer to
  another only if they ask the same and are answered the same.

  Attributes:
    question, answer: as texts.
    others: answers to the same question that are wrong here.
  """

  question: str
  answer: str
  others: tuple[str, ...]


def ask(kind: str, world: World, scene: Scene, index: int, rng: random.Random) -> Asked | None:
  """Returns a question of a kind about object `index`; None where it makes no sense.

  Args:
    kind: a key of `QUESTIONS`.
    world: where the scene comes from; wrong answers name its colours and concepts.
  """
  return QUESTIONS[kind](world, scene, scene.items[index], rng)


def _count(world: World, scene: Scene, item: Item, rng: random.Random) -> Asked:
  one, more = singular(item.concept), plural(item.concept)
  told = {n: f'{word} {one if n == 1 else more}' for n, word in _NUMBERS.items()}
  answer = told.pop(item.count)
  return Asked(f'How many {more} are there?', answer, tuple(told.values()))


def _colour(world: World, scene: Scene, item: Item, rng: random.Random) -> Asked | None:
  if item.colour == NATURAL:
    return None
  several = item.count > 1
  subject = f'the {plural(item.concept) if several else singular(item.concept)}'
  verb = 'are' if several else 'is'
  others = [c for c in world.colours if c not in (item.colour, NATURAL)]
  return Asked(
    f'What colour {verb} {subject}?',
    f'{subject} {verb} {item.colour}',
    tuple(f'{subject} {verb} {colour}' for colour in others),
  )


def _position(world: World, scene: Scene, item: Item, rng: random.Random) -> Asked | None:
  if item.count > 1:
    return None
  subject = f'the {singular(item.concept)}'
  place = places(item.centres)
  others = [p for p in (places([c]) for c in _CENTRES) if p != place]
  told = (f'{subject} is {p}' for p in others)
  return Asked(f'Where is {subject}?', f'{subject} is {place}', tuple(told))


def _existence(world: World, scene: Scene, item: Item, rng: random.Random) -> Asked:
  """Half of the answers are yes; half of the others ask for what is there in another colour."""
  there = {i.concept.name for i in scene.items}
  absent = [c for c in world.concepts if c.name not in there]
  wrong = [c for c in world.colours if c not in (item.colour, NATURAL, *item.concept.natural)]
  yes, coloured = rng.random() < 0.5, rng.random() < 0.5
  if yes:
    concept, colour = item.concept, item.colour if coloured or item.held_out else NATURAL
  elif wrong and (coloured or not absent):
    concept, colour = item.concept, choose(rng, wrong)
  elif absent:
    concept, colour = choose(rng, absent), NATURAL
  else:  # everything that the world has is in the scene, in its only colour
    yes, concept, colour = True, item.concept, item.colour
  phrase = noun_phrase(concept, 1, colour)
  texts = f'yes, there is {phrase}', f'no, there is no {phrase.split(" ", 1)[1]}'
  answer, other = texts if yes else texts[::-1]
  return Asked(f'Is there {phrase}?', answer, (other,))


QUESTIONS: Mapping[str, Callable[[World, Scene, Item, random.Random], Asked | None]] = {
  'count': _count,
  'colour': _colour,
  'position': _position,
  'existence': _existence,
}
