"""A bank of cut-out objects: the records of generated shards (or any with masks), by class."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from align_jax.data.images import ImageError, decode_image
from align_jax.data.sources.base import Source
from align_jax.errors import UserError, did_you_mean
from align_jax.synth.annotation.regions import crop_rgba
from align_jax.synth.paste.compose import Instance
from align_jax.synth.paste.objects import Outline, outlines


@dataclasses.dataclass(frozen=True)
class InstanceBank:
  """Objects by class; their pixels are read when they are asked for. Thread safe, picklable.

  Attributes:
    source: whose records they are in.
    labels: the classes, sorted; each has an instance.
    starts: where the instances of each class begin in `positions` and `numbers`, and where the last
      ones end.
    positions: of the record of each instance, classes one after another.
    numbers: which of the objects of its record it is.
  """

  source: Any
  labels: tuple[str, ...]
  starts: Int[np.ndarray, ' labels_and_end']
  positions: Int[np.ndarray, ' instances']
  numbers: Int[np.ndarray, ' instances']

  def __len__(self) -> int:
    return len(self.positions)

  def counts(self) -> dict[str, int]:
    """Returns how many instances each class has."""
    return dict(zip(self.labels, np.diff(self.starts).tolist(), strict=True))

  def missing(self, labels: Collection[str]) -> list[str]:
    """Returns those of the classes that have no instance: nothing of them can be pasted."""
    return sorted(set(labels) - set(self.labels))

  def load(self, number: int) -> Instance:
    """Cuts out an instance, by its place in `positions`.

    Raises:
      UserError: its record cannot be read, or is not the one that was found there.
    """
    position, which = int(self.positions[number]), int(self.numbers[number])
    record = self.source[position]
    label = self.labels[int(np.searchsorted(self.starts, number, side='right')) - 1]
    found = outlines(record)
    if which >= len(found) or found[which].label != label:
      raise UserError(
        f'{self.source.spec}: record {position} holds no {label!r} any more; open the bank again'
      )
    mask = found[which].mask()
    try:
      image = decode_image(record.image)
    except ImageError as error:
      raise UserError(f'{self.source.spec}: record {record.id}: {error}') from error
    if mask is None or image.shape[:2] != mask.shape:
      raise UserError(
        f'{self.source.spec}: record {record.id}: its mask is not of the size of its image, '
        f'{image.shape[1]} x {image.shape[0]}; annotate it again'
      )
    return Instance(record.id, label, crop_rgba(image, mask))

  def draw(
    self,
    count: int,
    rng: np.random.Generator,
    chances: Float[np.ndarray, ' labels'] | None = None,
  ) -> list[int]:
    """Draws instances with replacement: for each a class, then one of its instances.

    Args:
      count: how many.
      rng: two draws for each, so that the first ones do not depend on how many follow.
      chances: of the classes, see `class_chances`; None: equal ones.

    Returns: their places in `positions`, for `load`.
    """
    if chances is None:
      chances = np.full(len(self.labels), 1 / len(self.labels))
    ends = np.cumsum(chances)
    out = []
    for of_class, of_instance in rng.random((count, 2)).tolist():
      label = min(int(np.searchsorted(ends, of_class * ends[-1], side='right')), len(ends) - 1)
      first, stop = int(self.starts[label]), int(self.starts[label + 1])
      out.append(first + int(of_instance * (stop - first)))
    return out


def open_bank(
  source: Source, *, labels: Collection[str] | None = None, least_pixels: int = 16
) -> InstanceBank:
  """Looks through a source for objects with masks; reads every record once, decodes no image.

  Args:
    source: generated shards of the engine, or any records that `objects.outlines` understands.
    labels: take these classes only; those without instances are left out, see
      `InstanceBank.missing`.
    least_pixels: smaller objects are no use.

  Raises:
    UserError: there is none, or a record cannot be read.
  """
  wanted = None if labels is None else set(labels)
  found: dict[str, list[tuple[int, int]]] = {}
  others: set[str] = set()
  for position in range(len(source)):
    for number, outline in enumerate(outlines(source[position])):
      if not _is_usable(outline, least_pixels):
        continue
      if wanted is None or outline.label in wanted:
        found.setdefault(outline.label, []).append((position, number))
      else:
        others.add(outline.label)
  if not found:
    if others:
      first = sorted(wanted or ())[:1]
      raise UserError(
        f'{source.spec}: no instance of the classes asked for{did_you_mean("".join(first), others)}'
      )
    raise UserError(
      f'{source.spec}: no record with a mask of {least_pixels} pixels or more to paste; make the '
      'shards with config.annotation.method other than none'
    )
  names = tuple(sorted(found))
  places = np.array([place for name in names for place in found[name]], np.int64)
  starts = np.cumsum([0, *(len(found[name]) for name in names)])
  return InstanceBank(source, names, starts, places[:, 0], places[:, 1])


def class_chances(
  bank: InstanceBank, balance: str, real_counts: Mapping[str, int] | None = None
) -> Float[np.ndarray, ' labels']:
  """Returns the chance of each class of a bank to be drawn; they add up to 1.

  Args:
    bank: its classes.
    balance: see `placement.PasteConfig`.
    real_counts: of `inverse`: class → real images; a class that has none counts as having one.

  Raises:
    UserError: `inverse` without counts.
  """
  if balance == 'inverse':
    if not real_counts:
      raise UserError(
        'config.paste.balance: inverse needs the counts of real images by class; name the real '
        'source, or set category'
      )
    weights: Sequence[float] = [1 / max(1, real_counts.get(name, 0)) for name in bank.labels]
  elif balance == 'instance':
    weights = list(bank.counts().values())
  else:
    weights = [1.0] * len(bank.labels)
  chances = np.asarray(weights, np.float64)
  return chances / chances.sum()


def _is_usable(outline: Outline, least_pixels: int) -> bool:
  return bool(outline.rle) and outline.area >= least_pixels
