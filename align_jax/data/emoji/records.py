"""From a plan, which numbers its scenes, to records with their exact ground truth."""

import dataclasses
import functools
from typing import Any, Protocol, runtime_checkable

from align_jax.data.emoji.captions import long_caption, short_caption
from align_jax.data.emoji.colours import NATURAL
from align_jax.data.emoji.concepts import Concept
from align_jax.data.emoji.drawing import Drawing, Painter, encode_png
from align_jax.data.emoji.layout import position_word, relations, size_word
from align_jax.data.emoji.scenes import Sampler, Scene, Split, World, portrait
from align_jax.data.record import Record


@runtime_checkable
class Plan(Protocol):
  """Numbered scenes at one size."""

  @property
  def size(self) -> int: ...

  @property
  def split(self) -> str: ...

  def record_id(self, index: int) -> str: ...

  def scene(self, index: int) -> Scene: ...


@dataclasses.dataclass(frozen=True)
class ScenePlan:
  """Scenes of one split, without end."""

  size: int
  split: Split
  world: World

  def record_id(self, index: int) -> str:
    return f'emoji-{self.split}-{index:06d}'

  def scene(self, index: int) -> Scene:
    return self._sampler.scene(self.split, index)

  @functools.cached_property
  def _sampler(self) -> Sampler:
    return Sampler(self.world)


@dataclasses.dataclass(frozen=True)
class PortraitPlan:
  """Single concepts, one after another, each in every colour."""

  size: int
  pairs: tuple[tuple[Concept, str], ...]
  split: str = 'concepts'

  def record_id(self, index: int) -> str:
    concept, colour = self.pairs[index]
    return f'emoji-concepts-{concept.code}' + ('' if colour == NATURAL else f'-{colour}')

  def scene(self, index: int) -> Scene:
    return portrait(*self.pairs[index])


def make_record(plan: Plan, painter: Painter, index: int) -> Record:
  """Draws record `index` of a plan; it carries both captions, the short one first."""
  scene = plan.scene(index)
  drawing = painter.draw(scene)
  truth = _truth(scene, drawing, plan.split)
  return Record(
    id=plan.record_id(index),
    image=encode_png(drawing.image),
    captions=(truth['caption_short'], truth['caption_long']),
    labels=tuple(item.concept.name for item in scene.items),
    source_id=' '.join(['openmoji', *(item.concept.code for item in scene.items)]),
    truth=truth,
  )


def _truth(scene: Scene, drawing: Drawing, split: str) -> dict[str, Any]:
  objects = []
  for item, boxes in zip(scene.items, drawing.boxes, strict=True):
    objects.append(
      {
        'concept': item.concept.code,
        'label': item.concept.name,
        'colour': item.colour,
        'count': item.count,
        'boxes': boxes,
        'size': size_word(item.size),
        'position': [position_word(x, y) for x, y in item.centres],
        'held_out': item.held_out,
      }
    )
  background = scene.background
  return {
    'caption_short': short_caption(scene),
    'caption_long': long_caption(scene),
    'background': [background.first]
    if background.plain
    else [background.first, background.second, 'across' if background.across else 'down'],
    'objects': objects,
    'masks': drawing.masks,
    'relations': relations([item.centres for item in scene.items]),
    'split': split,
    'seed': scene.seed,
  }
