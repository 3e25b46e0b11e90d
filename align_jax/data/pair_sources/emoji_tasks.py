"""`emojitasks:NAMES`: embedding tasks made of emoji scenes, with exact ground truth."""

import functools
import random
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from align_jax.data.emoji.cache import licence
from align_jax.data.emoji.colours import NATURAL, PALETTE
from align_jax.data.emoji.concepts import scene_concepts
from align_jax.data.emoji.drawing import Drawing, Painter, encode_png
from align_jax.data.emoji.pack import SPLIT_SIZES
from align_jax.data.emoji.scenes import Scene, World, held_out_pairs, is_held_out
from align_jax.data.pair_record import Candidates, Content, Contents, PairRecord, PairSource
from align_jax.data.pair_sources.emoji_blueprints import (
  MAKERS,
  Blueprint,
  Shown,
  TaskWorld,
  make_blueprint,
)
from align_jax.data.pair_sources.emoji_edits import below
from align_jax.data.pair_sources.emoji_questions import QUESTIONS
from align_jax.data.pair_sources.joined import JoinedPairs
from align_jax.data.pair_sources.options import choice_option, names_option, whole_option
from align_jax.data.sources.base import check_index
from align_jax.data.sources.spec import ParsedSpec, with_options
from align_jax.errors import UserError, did_you_mean

TASKS = tuple(MAKERS)
SPLITS = ('train', 'test', 'compositions')
META_TASKS: Mapping[str, tuple[str, ...]] = {
  'classification': ('classification',),
  'vqa': ('vqa',),
  'retrieval': ('image_to_caption', 'caption_to_image', 'composed'),
  'grounding': ('grounding',),
}
# to the query, and to the candidates
INSTRUCTIONS: Mapping[str, tuple[str, str]] = {
  'classification': ('Name the object in the image.', ''),
  'vqa': ('Answer the question about the image.', ''),
  'image_to_caption': ('Find the caption that describes the image.', ''),
  'caption_to_image': ('Find the image that the caption describes.', 'Represent the image.'),
  'composed': ('Find the image that shows this one with the change.', 'Represent the image.'),
  'grounding': ('Find the part of the image that shows what is named.', 'Represent the image.'),
}
_TRIES = 50  # pairs looked at for each candidate that is still wanted


def open_emoji_tasks(spec: ParsedSpec) -> PairSource:
  """Opens one task, several with commas between, or `all`, one after another.

  Options: `split`, train, test or compositions; `count`, pairs of each task (pair i is the same for
  any count); `size`, side of the pictures; `concepts`, `max_objects`, `colours` and `seed` of the
  scenes, as of `emoji:scenes`, but by default every object is painted, so that captions name its
  colour; `kinds` of questions; `candidates` of each query, outside training.

  Raises:
    UserError: an unknown task, option or value, or a missing package.
  """
  spec.check(
    ('split', 'count', 'size', 'concepts', 'max_objects', 'colours', 'seed', 'kinds', 'candidates'),
    generic=False,
  )
  names = list(TASKS) if spec.path == 'all' else spec.path.split(',')
  for name in names:
    if name not in TASKS:
      raise UserError(f"{spec.text}: no task '{name}'{did_you_mean(name, ('all', *TASKS))}")
  sources = [_open_task(spec, name) for name in names]
  return sources[0] if len(sources) == 1 else JoinedPairs(spec.text, sources)


class EmojiTaskSource:
  """Pairs of one task, drawn when they are asked for. Thread safe and picklable.

  Attributes:
    spec: the text that opens it again.
    licence: CC BY-SA 4.0, with the authors.
    task: its name.
  """

  def __init__(self, spec: str, task: str, world: TaskWorld, count: int, candidates: int):
    """`candidates`: of each query; 0 in training."""
    self.spec = spec
    self.licence = licence()
    self.task = task
    self._world = world
    self._count = count
    self._candidates = candidates
    self._local = threading.local()
    self._blueprints: dict[int, Blueprint] = {}

  def __getstate__(self) -> dict[str, Any]:
    return {k: v for k, v in self.__dict__.items() if k not in ('_local', '_blueprints')}

  def __setstate__(self, state: Mapping[str, Any]) -> None:
    self.__dict__.update(state)
    self._local = threading.local()
    self._blueprints = {}

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, index: int) -> PairRecord:
    check_index(index, len(self))
    plan = self.blueprint(index)
    instruction, candidate_instruction = INSTRUCTIONS[self.task]
    candidates: Candidates = ()
    if self._candidates:
      shown = self._choose(index)
      candidates = Contents([s.id for s in shown], functools.partial(self._pick, tuple(shown)))
    return PairRecord(
      id=self._name(index),
      task=self.task,
      query=self._render(plan.query),
      positive=self._render(plan.positive),
      instruction=instruction,
      candidate_instruction=candidate_instruction,
      label=f'{self.task}: {plan.label}',
      candidates=candidates,
    )

  def ids(self) -> Sequence[str]:
    return [self._name(index) for index in range(self._count)]

  def blueprint(self, index: int) -> Blueprint:
    """Returns what pair `index` is made of; of an evaluation it is kept."""
    plan = self._blueprints.get(index)
    if plan is None:
      plan = make_blueprint(self.task, self._world, index, self._draw)
      if self._candidates:
        self._blueprints[index] = plan
    return plan

  def _name(self, index: int) -> str:
    return f'emoji-{self.task}-{self._world.split}-{index:06d}'

  def _choose(self, index: int) -> list[Shown]:
    """Returns the candidates of a pair: the positive, its near misses, then those of other pairs.

    None but the first matches: their labels differ.
    """
    plan = self.blueprint(index)
    chosen = {s.id: s for s in (plan.positive, *plan.hard)}
    if self.task == 'classification':  # every class is there already
      return list(chosen.values())
    rng = random.Random(index)
    pool = max(self._count, 2 * self._candidates)
    for _ in range(_TRIES * self._candidates):
      if len(chosen) >= self._candidates:
        return list(chosen.values())[: self._candidates]
      other = self.blueprint(below(rng, pool))
      if other.label != plan.label:
        chosen.setdefault(other.positive.id, other.positive)
    raise UserError(
      f'{self.spec}: {len(chosen)} of {self._candidates} candidates for pair {index}; lower '
      'candidates, or allow more concepts and colours'
    )

  def _pick(self, shown: tuple[Shown, ...], index: int) -> Content:
    return self._render(shown[index])

  def _render(self, shown: Shown) -> Content:
    if shown.scene is None:
      return Content(shown.text, id=shown.id)
    image = self._draw(shown.scene).image
    if shown.box is not None:
      x0, y0, x1, y1 = shown.box
      image = image[y0:y1, x0:x1]
    return Content(shown.text, (encode_png(image),), shown.id)

  def _draw(self, scene: Scene) -> Drawing:
    """Draws a scene; each thread has a painter of its own."""
    painter = getattr(self._local, 'painter', None)
    if painter is None:
      painter = self._local.painter = Painter(self._world.size)
    return painter.draw(scene)


def _open_task(spec: ParsedSpec, task: str) -> EmojiTaskSource:
  split: Any = choice_option(spec, 'split', SPLITS)
  most = whole_option(spec, 'max_objects', 3, 1, 4)
  seed = whole_option(spec, 'seed', 0, 0)
  world = World(
    concepts=scene_concepts(whole_option(spec, 'concepts', 120, 2)),
    colours=names_option(spec, 'colours', (NATURAL, *PALETTE), tuple(PALETTE)),
    min_objects=2 if task == 'grounding' else 1,
    max_objects=1 if task == 'classification' else max(2, most) if task == 'grounding' else most,
    tail=0.0,
    # each task has scenes of its own: none is solved by what another has shown
    seed=len(TASKS) * seed + TASKS.index(task),
  )
  if split == 'compositions' and not held_out_pairs(world):
    raise UserError(f'{spec.text}: no held-out compositions; allow more colours or concepts')
  usable = [
    c for c in world.concepts if not all(is_held_out(c, colour) for colour in world.colours)
  ]
  # one more than in a scene: the held-out object of a composition may be one of them
  if len(usable) <= world.max_objects:
    raise UserError(
      f'{spec.text}: {len(usable)} usable concepts are too few for {world.max_objects} objects; '
      'raise concepts or allow more colours'
    )
  count = whole_option(spec, 'count', SPLIT_SIZES[split], 1)
  candidates = 0 if split == 'train' else whole_option(spec, 'candidates', 100, 2, 10_000)
  tasks = TaskWorld(
    world=world,
    split=split,
    size=whole_option(spec, 'size', 64, 32, 256),
    kinds=names_option(spec, 'kinds', tuple(QUESTIONS), tuple(QUESTIONS)),
    hard=bool(candidates),
  )
  path = f'emojitasks:{task}'
  return EmojiTaskSource(with_options(path, **spec.options), task, tasks, count, candidates)
