"""`emoji:concepts` and `emoji:scenes`: options in, a source out."""

import dataclasses
import math
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from array_record.python.array_record_data_source import ArrayRecordDataSource

from align_jax.data.emoji.cache import cached_file, licence
from align_jax.data.emoji.colours import NATURAL, PALETTE
from align_jax.data.emoji.concepts import scene_concepts, single_concepts
from align_jax.data.emoji.records import Plan, PortraitPlan, ScenePlan
from align_jax.data.emoji.scenes import World, held_out_pairs, is_held_out
from align_jax.data.record import Record, decode
from align_jax.errors import UserError, did_you_mean

Captions = Literal['short', 'long', 'both']
T = TypeVar('T')

SPLIT_SIZES = {'train': 8000, 'extra': 8000, 'test': 1000, 'compositions': 1000}
_CAPTIONS = ('both', 'long', 'short')
_ALL_COLOURS = (NATURAL, *PALETTE)


@runtime_checkable
class Spec(Protocol):
  """What the pack reads of a `sources.spec.ParsedSpec`; named here to import little."""

  @property
  def path(self) -> str: ...

  @property
  def options(self) -> Mapping[str, str]: ...

  @property
  def text(self) -> str: ...


@dataclasses.dataclass(frozen=True)
class SceneOptions:
  """Options of `emoji:scenes`.

  Attributes:
    size: side of the pictures in pixels, 32 to 256.
    split: train, extra, test or compositions.
    count: records; 0 for as many as the split has by default. Record i is the same for any count.
    concepts: how many of the scene concepts appear.
    min_objects, max_objects: different concepts in a scene, 1 to 4.
    seed: another one makes another pack of the same distribution.
    tail: exponent of the Zipf law of concepts; 0 makes them equally frequent.
    colours: names separated by commas; 'natural' leaves a drawing as it is. '' for all.
    captions: short, long or both.
  """

  size: int = 32
  split: str = 'train'
  count: int = 0
  concepts: int = 120
  min_objects: int = 1
  max_objects: int = 3
  seed: int = 0
  tail: float = 0.0
  colours: str = ''
  captions: str = 'both'


@dataclasses.dataclass(frozen=True)
class ConceptOptions:
  """Options of `emoji:concepts`.

  Attributes:
    size: side of the pictures in pixels, 32 to 256.
    concepts: how many of the scene concepts; 0 for everything that OpenMoji draws and names.
    colours: names separated by commas, each concept appears in each; '' for 'natural' alone.
    count: the first so many records; 0 for all.
    captions: short, long or both.
  """

  size: int = 64
  concepts: int = 0
  colours: str = ''
  count: int = 0
  captions: str = 'both'


class EmojiSource:
  """Records of the pack, read from its cached file. Thread safe and picklable.

  Attributes:
    spec: the text that opens it again.
    licence: CC BY-SA 4.0, with the authors.
  """

  def __init__(self, spec: str, path: Path, plan: Plan, count: int, captions: Captions):
    self.spec = spec
    self.licence = licence()
    self._path = path
    self._plan = plan
    self._count = count
    self._captions = captions
    try:
      self._reader = ArrayRecordDataSource([str(path)])
      short = len(self._reader) < count
    except (OSError, ValueError, RuntimeError) as error:
      raise UserError(f'{path}: damaged ({error}); delete it to have it drawn again') from error
    if short:
      raise UserError(f'{path}: fewer than {count} records; delete it to have it drawn again')

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, index: int) -> Record:
    if not 0 <= index < self._count:
      raise IndexError(f'record {index} of {self._count}')
    record = decode(self._reader[index], f'{self._path} record {index}')
    if self._captions == 'both':
      return record
    wanted = record.truth[f'caption_{self._captions}']
    return dataclasses.replace(record, captions=(wanted,))

  def ids(self) -> Sequence[str]:
    """Returns the id of every record without reading one."""
    return [self._plan.record_id(index) for index in range(self._count)]

  def pair_ids(self) -> Sequence[str]:
    """Returns '' for every record: these are real pictures, partners of others."""
    return [''] * self._count


def open_emoji(spec: Spec) -> EmojiSource:
  """Opens the built-in pack; draws it at first use (see `cache`).

  Args:
    spec: its path is `scenes` or `concepts`, its options are those of `SceneOptions` or
      `ConceptOptions`.

  Raises:
    UserError: an unknown path, option or value, a missing package, an unwritable cache folder.
  """
  if spec.path == 'scenes':
    return _open_scenes(spec, _read_options(spec, SceneOptions))
  if spec.path == 'concepts':
    return _open_concepts(spec, _read_options(spec, ConceptOptions))
  known = ('concepts', 'scenes')
  raise UserError(f"{spec.text}: no pack '{spec.path}'{did_you_mean(spec.path, known)}")


def _open_scenes(spec: Spec, options: SceneOptions) -> EmojiSource:
  text = spec.text
  _check_range(text, 'size', options.size, 32, 256)
  _check_name(text, 'split', options.split, SPLIT_SIZES)
  _check_range(text, 'max_objects', options.max_objects, 1, 4)
  _check_range(text, 'min_objects', options.min_objects, 1, options.max_objects)
  _check_range(text, 'count', options.count, 0, 10**8)
  _check_range(text, 'tail', options.tail, 0, 3)
  captions = _read_captions(text, options.captions)
  world = World(
    concepts=scene_concepts(options.concepts),
    colours=_read_colours(text, options.colours, _ALL_COLOURS),
    min_objects=options.min_objects,
    max_objects=options.max_objects,
    tail=options.tail,
    seed=options.seed,
  )
  if options.split == 'compositions' and not held_out_pairs(world):
    raise UserError(f'{text}: no held-out compositions; allow more colours or concepts')
  usable = [
    concept
    for concept in world.concepts
    if not all(is_held_out(concept, colour) for colour in world.colours)
  ]
  # one more than in a scene: the held-out object of a composition may be one of them
  if len(usable) <= options.max_objects:
    raise UserError(
      f'{text}: {len(usable)} usable concepts are too few for max_objects={options.max_objects}; '
      'raise concepts or allow more colours'
    )
  split = typing.cast(Any, options.split)
  plan = ScenePlan(options.size, split, world)
  count = options.count or SPLIT_SIZES[options.split]
  return EmojiSource(text, cached_file(plan, count, text), plan, count, captions)


def _open_concepts(spec: Spec, options: ConceptOptions) -> EmojiSource:
  text = spec.text
  _check_range(text, 'size', options.size, 32, 256)
  captions = _read_captions(text, options.captions)
  colours = _read_colours(text, options.colours, (NATURAL,))
  concepts = scene_concepts(options.concepts) if options.concepts else single_concepts()
  pairs = tuple((concept, colour) for concept in concepts for colour in colours)
  _check_range(text, 'count', options.count, 0, len(pairs))
  plan = PortraitPlan(options.size, pairs)
  count = options.count or len(pairs)
  return EmojiSource(text, cached_file(plan, count, text), plan, count, captions)


def _read_options(spec: Spec, kind: type[T]) -> T:
  """Returns the options of a spec as a dataclass of str, int and float fields."""
  hints = typing.get_type_hints(kind)
  values: dict[str, Any] = {}
  for name, value in spec.options.items():
    if name not in hints:
      raise UserError(f"{spec.text}: unknown option '{name}'{did_you_mean(name, hints)}")
    try:
      values[name] = hints[name](value)
    except ValueError as error:
      what = 'a whole number' if hints[name] is int else 'a number'
      raise UserError(f"{spec.text}: {name}='{value}' is not {what}") from error
  return kind(**values)


def _read_colours(text: str, value: str, default: tuple[str, ...]) -> tuple[str, ...]:
  names = [name.strip() for name in value.split(',')] if value else list(default)
  for name in names:
    _check_name(text, 'colours', name, _ALL_COLOURS)
  # in the palette's order, so that the order of writing does not make another pack
  return tuple(name for name in _ALL_COLOURS if name in names)


def _read_captions(text: str, value: str) -> Captions:
  _check_name(text, 'captions', value, _CAPTIONS)
  return typing.cast(Captions, value)


def _check_name(text: str, option: str, value: str, known: Iterable[str]) -> None:
  if value not in known:
    raise UserError(f"{text}: unknown {option} '{value}'{did_you_mean(value, known)}")


def _check_range(text: str, option: str, value: int | float, low: int, high: int) -> None:
  if not (math.isfinite(value) and low <= value <= high):
    raise UserError(f'{text}: {option}={value} is outside {low} to {high}')
