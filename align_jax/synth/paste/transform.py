"""Pasting on the fly: as a transform of Grain, and as a source over a source.

`CopyPaste` pastes anew each time: `dataset.seed(0).random_map(CopyPaste(...))`. A `PasteSource`
decides by seed and position, so that it can be read in any order, by any process, any number of
times, and training resumes in it exactly: it goes wherever a source goes, `data.pipeline.Part`
among others. Neither is a field of the training config: training knows nothing of the engine. From
the command line, train on what `shards.write_pasted` writes.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence

import grain
import numpy as np
from jaxtyping import UInt8

from align_jax.data.images import ImageError, decode_image
from align_jax.data.record import Record
from align_jax.data.sources.base import Source, check_index, pair_ids, record_ids
from align_jax.errors import UserError
from align_jax.synth.generate import encode_png
from align_jax.synth.paste.compose import Thing, compose
from align_jax.synth.paste.instances import InstanceBank, class_chances
from align_jax.synth.paste.objects import Size, describe, outlines, pack
from align_jax.synth.paste.placement import PasteConfig, place


@dataclasses.dataclass(frozen=True)
class Picture:
  """A picture with instances pasted onto it.

  Attributes:
    record: that it was made of.
    image: the pixels.
    things: what is left of the objects of the record, as far as known.
    pasted: what is seen of those that were pasted.
  """

  record: Record
  image: UInt8[np.ndarray, 'height width 3']
  things: tuple[Thing, ...]
  pasted: tuple[Thing, ...]


class CopyPaste(grain.transforms.RandomMap):
  """Record → `Picture`, by the generator it is given. Thread safe, picklable."""

  def __init__(
    self,
    bank: InstanceBank,
    config: PasteConfig = PasteConfig(),
    *,
    sizes: Mapping[str, Size] | None = None,
    real_counts: Mapping[str, int] | None = None,
  ):
    """Prepares; `digest` tells what is pasted, and how, from anything else, `licence` is its own.

    Args:
      bank: what is pasted.
      config: how.
      sizes: of the classes in real pictures (`objects.measure_sizes`).
      real_counts: of `config.balance='inverse'` (`data.sources.base.label_counts`).

    Raises:
      UserError: no counts where they are needed.
    """
    self.config = config
    self.licence = bank.source.licence
    self._bank = bank
    self._sizes = dict(sizes or {})
    self._chances = class_chances(bank, config.balance, real_counts)
    what = [dataclasses.asdict(config), bank.source.spec, len(bank), self._chances.tolist()]
    known = {name: dataclasses.astuple(size) for name, size in sorted(self._sizes.items())}
    text = json.dumps([*what, known])
    self.digest = f'paste={hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}'

  def random_map(self, element: Record, rng: np.random.Generator) -> Picture:
    """Pastes.

    Raises:
      UserError: the record's image or truth, or an instance, cannot be read.
    """
    config = self.config
    try:
      image = decode_image(element.image)
    except ImageError as error:
      raise UserError(f'record {element.id}: {error}') from error
    height, width = image.shape[:2]
    found = outlines(element)
    for outline in found:
      if (outline.width, outline.height) != (width, height):
        raise UserError(
          f'record {element.id}: objects in a picture of {outline.width} x {outline.height}, but '
          f'its image has {width} x {height}; mend its truth'
        )
    things = [Thing(o.label, o.box, o.mask(), o.source) for o in found]
    count = int(rng.integers(config.least, config.most + 1))
    instances = [self._bank.load(n) for n in self._bank.draw(count, rng, self._chances)]
    placements = place(instances, width, height, self._sizes, config, rng)
    out = compose(
      image, things, placements, feather=config.feather, least_visible=config.least_visible
    )
    return Picture(element, out.image, out.things, out.pasted)


def to_record(picture: Picture, captions: str = 'keep', id_: str = '') -> Record:
  """Makes a record of a picture; what it says of its objects is in `truth['instances']`.

  What else the truth said of the picture as it was is left out; `truth['pasted']` names the record.
  A label whose last object was covered goes, those of the pasted objects come.

  Args:
    picture: see `CopyPaste`.
    captions: `keep`, or `add` what was pasted.
    id_: of the record; '' for that of the picture's own.
  """
  record = picture.record
  height, width = picture.image.shape[:2]
  packed = [
    pack(thing.label, thing.box, thing.mask, width, height, thing.source)
    for thing in (*picture.things, *picture.pasted)
  ]
  before = {outline.label for outline in outlines(record)}
  left = {thing.label for thing in picture.things}
  new = list(dict.fromkeys(thing.label for thing in picture.pasted))
  kept = [label for label in record.labels if label not in before or label in left]
  texts = record.captions
  if captions == 'add' and new:
    texts = tuple(f'{caption.rstrip(" .")}, with {_list(new)}' for caption in texts)
  return dataclasses.replace(
    record,
    id=id_ or record.id,
    image=encode_png(picture.image),
    captions=texts,
    labels=tuple(dict.fromkeys([*kept, *new])),
    truth={
      'instances': [describe(outline) for outline in packed],
      'size': [height, width],
      'pasted': {'onto': record.id, 'count': len(picture.pasted)},
    },
  )


class PasteSource:
  """A source with instances pasted onto its pictures; record i is the same each time it is read."""

  def __init__(self, source: Source, paste: CopyPaste, *, seed: int, times: int = 1):
    """Prepares.

    Args:
      source: of the pictures.
      paste: what is done to them.
      seed: with the position it decides all that is drawn.
      times: how often each picture is used, each time with other instances; with more than once
        ids end in `-paste0`, `-paste1`, ….

    Raises:
      UserError: a bad seed or `times`.
    """
    if not 0 <= seed < 2**63:
      raise UserError(f'paste: seed {seed}; choose 0 to 2**63 - 1')
    if times < 1:
      raise UserError(f'paste: times {times}; choose 1 or more')
    self.spec = f'paste:{source.spec}?seed={seed}&times={times}&{paste.digest}'
    self.licence = _both(source.licence, paste.licence)
    self._source, self._paste = source, paste
    self._seed, self._times = seed, times

  def __len__(self) -> int:
    return self._times * len(self._source)

  def __getitem__(self, index: int) -> Record:
    check_index(index, len(self))
    turn, position = divmod(index, len(self._source))
    record = self._source[position]
    rng = np.random.default_rng([self._seed, index])
    picture = self._paste.random_map(record, rng)
    return to_record(picture, self._paste.config.captions, self._id(record.id, turn))

  def ids(self) -> Sequence[str]:
    every = record_ids(self._source)
    return [self._id(name, turn) for turn in range(self._times) for name in every]

  def pair_ids(self) -> Sequence[str]:
    return list(pair_ids(self._source)) * self._times

  def _id(self, name: str, turn: int) -> str:
    return name if self._times == 1 else f'{name}-paste{turn}'


def _both(first: str, second: str) -> str:
  """A picture that is made of others is under the licences of all of them."""
  return ' and '.join(dict.fromkeys(licence for licence in (first, second) if licence))


def _list(labels: Sequence[str]) -> str:
  """`an apple, a dog and a cat`."""
  parts = [f'an {label}' if label[:1].lower() in 'aeiou' else f'a {label}' for label in labels]
  return parts[0] if len(parts) == 1 else f'{", ".join(parts[:-1])} and {parts[-1]}'
