"""What the truth of a record says of the objects in its image.

Three forms are read: `truth['instances']` (what pasting writes), `truth['annotation']` (what the
engine writes of a generated image: one object, named by the record's first label) and
`truth['objects']` beside `truth['masks']` (the built-in scenes).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool
from pycocotools import mask as coco

from align_jax.data.record import Record
from align_jax.data.sources.base import Source
from align_jax.errors import UserError
from align_jax.synth.annotation.regions import Box
from align_jax.synth.annotation.rle import area_of, decode, encode


@dataclasses.dataclass(frozen=True)
class Outline:
  """An object of a picture, its mask still packed.

  Attributes:
    label: class name.
    box: x, y, width, height, pixels.
    width, height: of the picture.
    rle: the mask in COCO's compressed run lengths; '' if only the box is known.
    source: id of the instance that was pasted here; '' for what was there before.
  """

  label: str
  box: Box
  width: int
  height: int
  rle: str = ''
  source: str = ''

  @property
  def area(self) -> int:
    """Pixels of the mask, or of the box where no mask is known."""
    if not self.rle:
      return self.box[2] * self.box[3]
    return area_of(self.rle, self.height, self.width)

  @property
  def root_area(self) -> float:
    """Root of the object's share of the picture, 0 to 1: its size, whatever the picture's."""
    return math.sqrt(self.area / (self.width * self.height))

  def mask(self) -> Bool[np.ndarray, 'height width'] | None:
    """Unpacks the mask.

    Raises:
      UserError: it is damaged.
    """
    return decode(self.rle, self.height, self.width) if self.rle else None


def outlines(record: Record) -> list[Outline]:
  """Returns the objects that a record tells of; [] if it tells of none.

  Objects of which nothing is seen are left out.

  Raises:
    UserError: the truth is not in the form that it seems to be in.
  """
  truth = record.truth
  try:
    if 'instances' in truth:
      height, width = (int(side) for side in truth['size'])
      found = [_pasted(entry, width, height) for entry in truth['instances']]
    elif 'annotation' in truth:
      found = [_annotated(record)]
    elif 'objects' in truth and 'masks' in truth:
      found = _scene(truth)
    else:
      found = []
    return [outline for outline in found if outline.area > 0]
  except (LookupError, TypeError, ValueError) as error:
    what = str(error) if isinstance(error, UserError) else repr(error)
    raise UserError(
      f'record {record.id}: its truth says nothing sound of its objects ({what}); write it again'
    ) from error


def describe(outline: Outline) -> dict[str, Any]:
  """Returns an object in the form of `truth['instances']`."""
  entry: dict[str, Any] = {
    'label': outline.label,
    'box': list(outline.box),
    'area': outline.area,
    'rle': outline.rle,
  }
  return {**entry, 'source': outline.source} if outline.source else entry


def pack(
  label: str,
  box: Box,
  mask: Bool[np.ndarray, 'height width'] | None,
  width: int,
  height: int,
  source: str = '',
) -> Outline:
  """Packs an object."""
  return Outline(label, box, width, height, '' if mask is None else encode(mask), source)


@dataclasses.dataclass(frozen=True)
class Size:
  """How large the objects of a class are in real pictures.

  Attributes:
    mean, spread: of the root of their share of the picture (`Outline.root_area`); the spread is
      their standard deviation.
    count: of objects that were measured.
  """

  mean: float
  spread: float
  count: int


def measure_sizes(source: Source) -> dict[str, Size]:
  """Measures the objects of real pictures, by class; reads every record once, decodes no image.

  Raises:
    UserError: a record that cannot be read, or whose truth is damaged.
  """
  sums: dict[str, tuple[int, float, float]] = {}
  for index in range(len(source)):
    for outline in outlines(source[index]):
      # sums of the value and of its square: sizes are within 0 and 1, float64 loses nothing
      count, total, squares = sums.get(outline.label, (0, 0.0, 0.0))
      root = outline.root_area
      sums[outline.label] = count + 1, total + root, squares + root * root
  return {
    label: Size(total / n, math.sqrt(max(0.0, squares / n - (total / n) ** 2)), n)
    for label, (n, total, squares) in sorted(sums.items())
  }


def _pasted(entry: Mapping[str, Any], width: int, height: int) -> Outline:
  return Outline(
    label=str(entry['label']),
    box=_box(entry['box']),
    width=width,
    height=height,
    rle=str(entry['rle']),
    source=str(entry.get('source', '')),
  )


def _annotated(record: Record) -> Outline:
  found = record.truth['annotation']
  height, width = (int(side) for side in found['size'])
  if not record.labels:
    raise UserError('no label to name the annotated object')
  return Outline(record.labels[0], _box(found['box']), width, height, str(found['rle']))


def _scene(truth: Mapping[str, Any]) -> list[Outline]:
  """Boxes there are left, top, right, bottom, by item; masks are in their order, unpacked runs."""
  boxes = [(item['label'], box) for item in truth['objects'] for box in item['boxes']]
  out = []
  for (label, (left, top, right, bottom)), mask in zip(boxes, truth['masks'], strict=True):
    height, width = (int(side) for side in mask['size'])
    runs = {'size': [height, width], 'counts': [int(run) for run in mask['counts']]}
    rle = coco.frPyObjects(runs, height, width)['counts'].decode('ascii')
    out.append(
      Outline(str(label), _box((left, top, right - left, bottom - top)), width, height, rle)
    )
  return out


def _box(values: Any) -> Box:
  x, y, width, height = (int(value) for value in values)
  return x, y, width, height
