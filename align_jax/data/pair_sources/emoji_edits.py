"""Emoji scenes with one thing changed, and the words that tell whether two scenes agree."""

import dataclasses
import random
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from align_jax.data.emoji.captions import background_phrase, noun_phrase
from align_jax.data.emoji.colours import BACKGROUNDS, NATURAL
from align_jax.data.emoji.concepts import Concept
from align_jax.data.emoji.layout import position_word, size_word
from align_jax.data.emoji.scenes import Background, Item, Scene, is_held_out

T = TypeVar('T')
# Whether a concept may be shown in a colour; held-out compositions may not be outside their split.
Allowed = Callable[[Concept, str], bool]


def objects_label(scene: Scene) -> str:
  """Returns what stands in a scene, whatever the order: 'a blue banana; two red foxes'."""
  return '; '.join(sorted(object_label(item) for item in scene.items))


def object_label(item: Item) -> str:
  """Returns concept, colour and count: 'two red foxes'; a colour by nature is not named."""
  return noun_phrase(item.concept, item.count, item.colour)


def tells_apart(concept: Concept, first: str, second: str) -> bool:
  """Whether a concept looks different in two colours: a painted orange cat may be a natural one."""
  natural = NATURAL in (first, second) and not {first, second}.isdisjoint(concept.natural)
  return first != second and not natural


def scene_label(scene: Scene) -> str:
  """Returns what stands where and how large, and on what, as far as words tell."""
  told = []
  for item in scene.items:
    where = sorted(position_word(x, y) for x, y in item.centres)
    told.append(', '.join([object_label(item), size_word(item.size), *where]))
  return '; '.join([*sorted(told), background_phrase(scene.background)])


def recolour(scene: Scene, index: int, colour: str) -> Scene:
  """Returns the scene with one object in another colour."""
  item = scene.items[index]
  held_out = is_held_out(item.concept, colour)
  return _put(scene, index, dataclasses.replace(item, colour=colour, held_out=held_out))


def rename(scene: Scene, index: int, concept: Concept) -> Scene:
  """Returns the scene with another concept in an object's place, colour and number."""
  item = scene.items[index]
  held_out = is_held_out(concept, item.colour)
  return _put(scene, index, dataclasses.replace(item, concept=concept, held_out=held_out))


def remove(scene: Scene, index: int) -> Scene:
  """Returns the scene without one object."""
  items = scene.items[:index] + scene.items[index + 1 :]
  return dataclasses.replace(scene, items=items, seed=0)


def drop_copy(scene: Scene, index: int) -> Scene:
  """Returns the scene with one copy less of an object."""
  item = scene.items[index]
  return _put(scene, index, dataclasses.replace(item, centres=item.centres[:-1]))


def swap_colours(scene: Scene, first: int, second: int) -> Scene:
  """Returns the scene with the colours of two objects exchanged."""
  colours = scene.items[first].colour, scene.items[second].colour
  return recolour(recolour(scene, first, colours[1]), second, colours[0])


def rebackground(scene: Scene, background: Background) -> Scene:
  """Returns the scene before another background."""
  return dataclasses.replace(scene, background=background, seed=0)


def other_background(rng: random.Random, background: Background) -> Background:
  """Draws a plain background of a colour that the given one does not have."""
  names = [n for n in BACKGROUNDS if n not in (background.first, background.second)]
  name = choose(rng, names)
  return Background(name, name)


def near_misses(
  rng: random.Random,
  scene: Scene,
  concepts: Sequence[Concept],
  colours: Sequence[str],
  allowed: Allowed,
) -> list[Scene]:
  """Returns scenes that differ from one in what stands there, each by one change.

  One object in another colour, another concept in its place, the colours of two exchanged, one
  copy or one object less: whatever of these is possible.
  """
  out: list[Scene] = []
  index = below(rng, len(scene.items))
  item = scene.items[index]
  palette = [
    c for c in colours if tells_apart(item.concept, item.colour, c) and allowed(item.concept, c)
  ]
  if palette:
    out.append(recolour(scene, index, choose(rng, palette)))
  concept = other_concept(rng, scene, item.colour, concepts, allowed)
  if concept is not None:
    out.append(rename(scene, index, concept))
  if len(scene.items) > 1:
    other = (index + 1) % len(scene.items)
    second = scene.items[other]
    if all(
      allowed(one.concept, two.colour) and tells_apart(one.concept, one.colour, two.colour)
      for one, two in ((item, second), (second, item))
    ):
      out.append(swap_colours(scene, index, other))
    out.append(remove(scene, other))
  several = [i for i, it in enumerate(scene.items) if it.count > 1]
  if several:
    out.append(drop_copy(scene, choose(rng, several)))
  return out


def other_concept(
  rng: random.Random,
  scene: Scene,
  colour: str,
  concepts: Sequence[Concept],
  allowed: Allowed,
) -> Concept | None:
  """Draws a concept that is not in the scene and may be shown in a colour; None if none may."""
  there = {item.concept.name for item in scene.items}
  usable = [c for c in concepts if c.name not in there and allowed(c, colour)]
  return choose(rng, usable) if usable else None


def distinct(scenes: Iterable[Scene], label: Callable[[Scene], str], taken: str) -> list[Scene]:
  """Returns the scenes whose labels differ from `taken` and from each other's."""
  found: dict[str, Scene] = {}
  for scene in scenes:
    found.setdefault(label(scene), scene)
  return [scene for key, scene in found.items() if key != taken]


def below(rng: random.Random, stop: int) -> int:
  """Draws a number by `random()` alone, which Python keeps the same across versions."""
  return int(rng.random() * stop)


def choose(rng: random.Random, options: Sequence[T]) -> T:
  """Draws one of the options."""
  return options[below(rng, len(options))]


def _put(scene: Scene, index: int, item: Item) -> Scene:
  items = (*scene.items[:index], item, *scene.items[index + 1 :])
  return dataclasses.replace(scene, items=items, seed=0)
