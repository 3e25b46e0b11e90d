"""What each pair of the emoji tasks is made of, before anything is drawn."""

import dataclasses
import functools
import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from align_jax.data.emoji.captions import (
  background_phrase,
  noun_phrase,
  plural,
  short_caption,
  singular,
)
from align_jax.data.emoji.colours import NATURAL
from align_jax.data.emoji.concepts import Concept
from align_jax.data.emoji.drawing import Drawing
from align_jax.data.emoji.scenes import Item, Sampler, Scene, Split, World, is_held_out
from align_jax.data.pair_record import hash_id
from align_jax.data.pair_sources.emoji_edits import (
  below,
  choose,
  distinct,
  near_misses,
  object_label,
  objects_label,
  other_background,
  other_concept,
  rebackground,
  recolour,
  remove,
  rename,
  scene_label,
  tells_apart,
)
from align_jax.data.pair_sources.emoji_questions import ask
from align_jax.errors import UserError

T = TypeVar('T')
EDITS = ('colour', 'object', 'background', 'removal')
_TRIES = 200  # scenes looked at for one that a question or change fits
_STRIDE = 10**9  # the further scenes of one pair lie beyond all pairs' first ones
_SHARE = 0.7  # of an object's side that must be seen for it to be pointed at
_SIDE = 8  # least side of a crop, pixels


@dataclasses.dataclass(frozen=True)
class Shown:
  """A content before it is drawn: a text, a scene or a part of one, or text and scene.

  Attributes:
    text: '' for a picture alone.
    scene: None for a text alone.
    box: [x0, y0, x1, y1) of the part that is cut out, pixels.
  """

  text: str = ''
  scene: Scene | None = None
  box: tuple[int, int, int, int] | None = None

  @functools.cached_property
  def id(self) -> str:
    """Equal for what looks and reads the same."""
    scene = self.scene and dataclasses.replace(self.scene, seed=0)
    return hash_id(self.text, repr(scene), repr(self.box))


@dataclasses.dataclass(frozen=True)
class Blueprint:
  """A pair before it is drawn.

  Attributes:
    query, positive: the two sides.
    label: everything that a match must agree on.
    hard: contents that are near the positive and surely do not match.
  """

  query: Shown
  positive: Shown
  label: str
  hard: tuple[Shown, ...] = ()


@dataclasses.dataclass(frozen=True)
class TaskWorld:
  """Where the scenes of a task come from.

  Attributes:
    world: their distribution.
    split: which of its scenes.
    size: side of the pictures, pixels.
    kinds: of questions, taken in turn.
    hard: whether near misses are sought, as candidates of an evaluation.
  """

  world: World
  split: Split
  size: int
  kinds: tuple[str, ...]
  hard: bool

  @functools.cached_property
  def sampler(self) -> Sampler:
    return Sampler(self.world)

  def scenes(self, index: int) -> Iterator[Scene]:
    """Yields scenes of a pair, for one of them to fit.

    Raises:
      UserError: when many did not.
    """
    for attempt in range(_TRIES):
      yield self.sampler.scene(self.split, index + attempt * _STRIDE)
    raise UserError(
      f'emojitasks: none of {_TRIES} scenes fits pair {index} of split {self.split}; allow more '
      'colours, concepts or objects'
    )

  def allowed(self, concept: Concept, colour: str) -> bool:
    """Whether a wrong candidate may show this; outside their split held-out pairs never appear."""
    return self.split == 'compositions' or not is_held_out(concept, colour)

  def seen(self, concept: Concept, colour: str) -> bool:
    """Whether training shows this concept in this colour."""
    return not is_held_out(concept, colour)


Draw = Callable[[Scene], Drawing]
Maker = Callable[[TaskWorld, int, random.Random, Draw], Blueprint]


def make_blueprint(task: str, world: TaskWorld, index: int, draw: Draw) -> Blueprint:
  """Returns pair `index` of a task; it depends on nothing but the task, the world and the index.

  Args:
    task: a key of `MAKERS`.
    draw: for what depends on how much of an object is seen.

  Raises:
    UserError: a world without any scene that fits.
  """
  text = f'{task}|{world.world.seed}|{world.split}|{index}'
  seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), 'big')
  return MAKERS[task](world, index, random.Random(seed), draw)


def _first_that_fits(
  world: TaskWorld, index: int, make: Callable[[Scene], T | None]
) -> tuple[Scene, T]:
  """Returns the first scene of a pair of which something can be made, and that."""
  made = ((scene, make(scene)) for scene in world.scenes(index))
  return next((scene, found) for scene, found in made if found is not None)


def focus(scene: Scene, rng: random.Random) -> int:
  """Returns the object that a pair is about: the held-out one if there is one, else any."""
  held_out = [i for i, item in enumerate(scene.items) if item.held_out]
  return held_out[0] if held_out else below(rng, len(scene.items))


def _classification(world: TaskWorld, index: int, rng: random.Random, draw: Draw) -> Blueprint:
  scene = next(world.scenes(index))
  name = scene.items[0].concept.name
  others = [Shown(c.name) for c in world.world.concepts if c.name != name] if world.hard else []
  return Blueprint(Shown(scene=scene), Shown(name), name, tuple(others))


def _vqa(world: TaskWorld, index: int, rng: random.Random, draw: Draw) -> Blueprint:
  kind = world.kinds[index % len(world.kinds)]
  scene, asked = _first_that_fits(
    world, index, lambda scene: ask(kind, world.world, scene, focus(scene, rng), rng)
  )
  hard = tuple(Shown(text) for text in asked.others) if world.hard else ()
  return Blueprint(Shown(asked.question, scene), Shown(asked.answer), asked.answer, hard)


def _image_to_caption(world: TaskWorld, index: int, rng: random.Random, draw: Draw) -> Blueprint:
  scene = next(world.scenes(index))
  hard = tuple(Shown(short_caption(s)) for s in _wrong(world, rng, scene))
  return Blueprint(Shown(scene=scene), Shown(short_caption(scene)), objects_label(scene), hard)


def _caption_to_image(world: TaskWorld, index: int, rng: random.Random, draw: Draw) -> Blueprint:
  scene = next(world.scenes(index))
  hard = tuple(Shown(scene=s) for s in _wrong(world, rng, scene))
  return Blueprint(Shown(short_caption(scene)), Shown(scene=scene), objects_label(scene), hard)


def _wrong(world: TaskWorld, rng: random.Random, scene: Scene) -> list[Scene]:
  if not world.hard:
    return []
  near = near_misses(rng, scene, world.world.concepts, world.world.colours, world.allowed)
  return distinct(near, objects_label, objects_label(scene))


def _composed(world: TaskWorld, index: int, rng: random.Random, draw: Draw) -> Blueprint:
  kind = EDITS[index % len(EDITS)]
  _, change = _first_that_fits(world, index, lambda scene: _change(kind, world, scene, rng))
  source, text, target = change
  label = scene_label(target)
  hard: list[Scene] = []
  if world.hard:
    concepts, colours = world.world.concepts, world.world.colours
    hard = [
      source,
      *near_misses(rng, target, concepts, colours, world.allowed),
      rebackground(target, other_background(rng, target.background)),
    ]
  others = tuple(Shown(scene=s) for s in distinct(hard, scene_label, label))
  return Blueprint(Shown(text, source), Shown(scene=target), label, others)


def _change(
  kind: str, world: TaskWorld, scene: Scene, rng: random.Random
) -> tuple[Scene, str, Scene] | None:
  """Returns a scene, what to change and the scene that results; None where it does not fit.

  The result shows the object that the pair is about: in the split `compositions` the one that
  training did not show. After a change of colour or of object, the scene to start from does not.
  """
  index = focus(scene, rng)
  item = scene.items[index]
  name = named(item)
  if kind == 'background':
    source = rebackground(scene, other_background(rng, scene.background))
    return source, f'but on {background_phrase(scene.background)}', scene
  if kind == 'removal':
    if len(scene.items) < 2:
      return None
    other = (index + 1) % len(scene.items)  # the object that the pair is about stays
    return scene, f'but without the {named(scene.items[other])}', remove(scene, other)
  if kind == 'object':
    concept = other_concept(rng, scene, item.colour, world.world.concepts, world.seen)
    if concept is None:
      return None
    source = rename(scene, index, concept)
    wanted = noun_phrase(item.concept, item.count, item.colour)
    return source, f'but with {wanted} instead of the {named(source.items[index])}', scene
  colours = [
    c
    for c in world.world.colours
    if world.seen(item.concept, c) and tells_apart(item.concept, c, item.colour)
  ]
  if item.colour == NATURAL or not colours:
    return None
  source = recolour(scene, index, choose(rng, colours))
  if len(scene.items) == 1:
    return source, f'but {item.colour}', scene
  return source, f'but the {name} {"are" if item.count > 1 else "is"} {item.colour}', scene


def _grounding(world: TaskWorld, index: int, rng: random.Random, draw: Draw) -> Blueprint:

  def look(scene: Scene) -> tuple[int, dict[int, tuple[int, int, int, int]]] | None:
    boxes = _visible(scene, draw(scene), world.size)
    chosen = focus(scene, rng)
    return (chosen, boxes) if chosen in boxes else None

  scene, (chosen, boxes) = _first_that_fits(world, index, look)
  item = scene.items[chosen]
  label = object_label(item)
  others = [i for i in boxes if i != chosen and object_label(scene.items[i]) != label]
  hard = tuple(Shown(scene=scene, box=boxes[i]) for i in others) if world.hard else ()
  colour = '' if item.colour == NATURAL else f'{item.colour} '
  words = noun_phrase(item.concept, 1, item.colour).split(' ', 1)[1] if colour else named(item)
  return Blueprint(Shown(f'the {words}', scene), Shown(scene=scene, box=boxes[chosen]), label, hard)


def _visible(scene: Scene, drawing: Drawing, size: int) -> dict[int, tuple[int, int, int, int]]:
  """Returns the boxes of the objects that stand there once and are seen nearly whole."""
  out = {}
  for index, (item, boxes) in enumerate(zip(scene.items, drawing.boxes, strict=True)):
    x0, y0, x1, y1 = boxes[0]
    whole = max(x1 - x0, y1 - y0) >= _SHARE * item.size * size
    if item.count == 1 and whole and min(x1 - x0, y1 - y0) >= _SIDE:
      out[index] = (x0, y0, x1, y1)
  return out


def named(item: Item) -> str:
  """Returns what an object is called after 'the': 'cat', 'cats' or 'bunch of grapes'."""
  return plural(item.concept) if item.count > 1 else singular(item.concept)


MAKERS: Mapping[str, Maker] = {
  'classification': _classification,
  'vqa': _vqa,
  'image_to_caption': _image_to_caption,
  'caption_to_image': _caption_to_image,
  'composed': _composed,
  'grounding': _grounding,
}
