"""Which scene stands behind a number: concepts, colours, counts and the held-out compositions."""

import bisect
import dataclasses
import hashlib
import itertools
import random
from collections.abc import Sequence
from typing import Literal

from align_jax.data.emoji.colours import BACKGROUNDS, NATURAL
from align_jax.data.emoji.concepts import Concept
from align_jax.data.emoji.layout import MAX_INSTANCES, draw_centres, draw_sizes

Split = Literal['train', 'extra', 'test', 'compositions']

_HELD_OUT_SHARE = 0.15
_NATURAL_SHARE = 0.3  # of the objects keep their colours, where that is allowed
_PLAIN_SHARE = 0.6  # of the backgrounds
_COUNTS = (0.75, 0.92, 1.0)  # cumulative chances that an object stands once, twice, three times


@dataclasses.dataclass(frozen=True)
class Background:
  """A plain colour, or a fade between two.

  Attributes:
    first: at the top or left.
    second: at the bottom or right; equal to `first` if plain.
    across: whether it fades from left to right.
  """

  first: str
  second: str
  across: bool = False

  @property
  def plain(self) -> bool:
    return self.first == self.second


@dataclasses.dataclass(frozen=True)
class Item:
  """One object of a scene: a concept in a colour, standing there once or several times.

  Attributes:
    concept: what it is.
    colour: a key of `PALETTE`, or 'natural'.
    size: longest side of each instance, as a share of the canvas.
    centres: (x, y) of each instance, as shares of the canvas.
    held_out: whether this concept in this colour is a held-out composition.
  """

  concept: Concept
  colour: str
  size: float
  centres: tuple[tuple[float, float], ...]
  held_out: bool = False

  @property
  def count(self) -> int:
    return len(self.centres)


@dataclasses.dataclass(frozen=True)
class Scene:
  """A picture in words and shares of the canvas; drawn alike at every size.

  Attributes:
    items: the largest object first; later ones are drawn over earlier ones.
    background: behind them.
    seed: from which it was drawn; 0 if from none.
    plain_portrait: a single concept in the middle, not a scene.
  """

  items: tuple[Item, ...]
  background: Background
  seed: int = 0
  plain_portrait: bool = False


@dataclasses.dataclass(frozen=True)
class World:
  """The distribution that scenes are drawn from.

  Attributes:
    concepts: in order of the Zipf law, the most frequent first.
    colours: palette names, and 'natural' for the drawing as it is.
    min_objects, max_objects: different concepts in a scene.
    tail: exponent of the Zipf law; 0 makes all concepts equally frequent.
    seed: another seed makes other scenes of the same distribution.
  """

  concepts: tuple[Concept, ...]
  colours: tuple[str, ...]
  min_objects: int
  max_objects: int
  tail: float
  seed: int


def is_held_out(concept: Concept, colour: str) -> bool:
  """Whether this concept in this colour appears in the split `compositions` alone.

  It depends on the two names and nothing else, so that every run holds out the same pairs.
  """
  if colour == NATURAL or colour in concept.natural:
    return False
  return _hash(f'composition|{concept.name}|{colour}') < _HELD_OUT_SHARE * 2**64


def held_out_pairs(world: World) -> list[tuple[Concept, str]]:
  """Returns the held-out compositions of a world."""
  return [
    (concept, colour)
    for concept in world.concepts
    for colour in world.colours
    if is_held_out(concept, colour)
  ]


class Sampler:
  """Scenes by split and number; safe to share between threads."""

  def __init__(self, world: World):
    weights = [(rank + 1) ** -world.tail for rank in range(len(world.concepts))]
    self._world = world
    self._cumulative = list(itertools.accumulate(weights))
    self._colours = tuple(colour for colour in world.colours if colour != NATURAL)
    self._natural = NATURAL in world.colours
    self._held_out = {
      concept.name: tuple(c for c in self._colours if is_held_out(concept, c))
      for concept in world.concepts
    }

  def scene(self, split: Split, index: int) -> Scene:
    """Returns scene `index` of a split; it depends on nothing but the world, split and index."""
    seed = _hash(f'scene|{self._world.seed}|{split}|{index}')
    rng = random.Random(seed)
    world = self._world
    spread = world.max_objects - world.min_objects + 1
    number = world.min_objects + int(rng.random() * spread)
    pairs: list[tuple[Concept, str]] = []
    if split == 'compositions':
      pairs.append(self._draw_pair(rng, [], held_out=True))
    while len(pairs) < number:
      pairs.append(self._draw_pair(rng, pairs, held_out=False))
    counts = self._draw_counts(rng, number)
    sizes = draw_sizes(rng, counts)
    order = sorted(range(number), key=lambda i: -sizes[i])
    background = _draw_background(rng)
    centres = iter(draw_centres(rng, [sizes[i] for i in order for _ in range(counts[i])]))
    items = tuple(
      Item(
        concept=pairs[i][0],
        colour=pairs[i][1],
        size=sizes[i],
        centres=tuple(sorted(itertools.islice(centres, counts[i]), key=_reading_order)),
        held_out=pairs[i][1] in self._held_out[pairs[i][0].name],
      )
      for i in order
    )
    return Scene(items, background, seed)

  def _draw_pair(
    self, rng: random.Random, taken: Sequence[tuple[Concept, str]], held_out: bool
  ) -> tuple[Concept, str]:
    """Draws a concept that is not taken, with a colour that is held out, or one that is not."""
    while True:
      point = rng.random() * self._cumulative[-1]
      concept = self._world.concepts[bisect.bisect_right(self._cumulative, point)]
      if any(concept is other for other, _ in taken):
        continue
      reserved = self._held_out[concept.name]
      if held_out:
        if reserved:
          return concept, _choose(rng, reserved)
        continue
      if self._natural and (not self._colours or rng.random() < _NATURAL_SHARE):
        return concept, NATURAL
      colour = _choose(rng, self._colours)
      if colour not in reserved:
        return concept, colour

  def _draw_counts(self, rng: random.Random, number: int) -> list[int]:
    """Draws how often each object stands there, at most one more in all than a scene may hold."""
    room = min(MAX_INSTANCES, max(3, self._world.max_objects + 1)) - number
    counts = []
    for _ in range(number):
      count = min(bisect.bisect_right(_COUNTS, rng.random()) + 1, 1 + room)
      room -= count - 1
      counts.append(count)
    return counts


def portrait(concept: Concept, colour: str) -> Scene:
  """Returns a concept alone in the middle of a white background."""
  item = Item(concept, colour, 0.9, ((0.5, 0.5),), is_held_out(concept, colour))
  return Scene((item,), Background('white', 'white'), plain_portrait=True)


def _draw_background(rng: random.Random) -> Background:
  names = tuple(BACKGROUNDS)
  first = _choose(rng, names)
  if rng.random() < _PLAIN_SHARE:
    return Background(first, first)
  second = _choose(rng, tuple(name for name in names if name != first))
  return Background(first, second, across=rng.random() < 0.5)


def _reading_order(centre: tuple[float, float]) -> tuple[float, float]:
  return centre[1], centre[0]


def _choose(rng: random.Random, options: Sequence[str]) -> str:
  return options[int(rng.random() * len(options))]


def _hash(text: str) -> int:
  return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), 'big')
