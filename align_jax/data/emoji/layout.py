"""Where objects stand: sizes and centres as shares of the canvas, and the words for them."""

import random
from collections.abc import Sequence

# How many cells each band of the canvas holds, by number of instances.
_BANDS: dict[int, tuple[tuple[int, ...], ...]] = {
  1: ((1,),),
  2: ((2,),),
  3: ((1, 2), (2, 1)),
  4: ((2, 2),),
  5: ((2, 3), (3, 2)),
}
# Longest sides of objects, by number of instances; few, so that sprites of all are soon made.
_SIZES: dict[int, tuple[float, ...]] = {
  1: (0.36, 0.48, 0.54, 0.68, 0.84),
  2: (0.36, 0.46, 0.54),
  3: (0.36, 0.46, 0.54),
  4: (0.36, 0.46, 0.50),
  5: (0.34, 0.40),
}
MAX_INSTANCES = max(_BANDS)

_SMALL, _LARGE = 0.38, 0.6  # sizes below and above have a word of their own
_THIRD = 0.38  # centres nearer to an edge than this stand 'at' that edge
_APART = 0.1  # gap between centres from which a relation is told


def draw_sizes(rng: random.Random, counts: Sequence[int]) -> list[float]:
  """Draws one size (longest side) for each object, its `counts` of instances sharing it."""
  choices = _SIZES[sum(counts)]
  return [choices[int(rng.random() * len(choices))] for _ in counts]


def draw_centres(rng: random.Random, sizes: Sequence[float]) -> list[tuple[float, float]]:
  """Draws a centre (x, y) for each instance, so that the instances overlap little.

  The canvas is cut into bands and the bands into cells, one for each instance; within its cell the
  instance stands anywhere. Instances a little larger than their cells overlap their neighbours.

  Args:
    rng: only `random()` is called, whose numbers Python keeps the same across versions.
    sizes: of the instances, in [0, 1].
  """
  choices = _BANDS[len(sizes)]
  bands = choices[int(rng.random() * len(choices))]
  turned = rng.random() < 0.5
  cells = [
    (column / cells_here, band / len(bands), 1 / cells_here, 1 / len(bands))
    for band, cells_here in enumerate(bands)
    for column in range(cells_here)
  ]
  for i in range(len(cells) - 1, 0, -1):  # Fisher and Yates, by `random()` alone
    j = int(rng.random() * (i + 1))
    cells[i], cells[j] = cells[j], cells[i]
  out = []
  for size, (left, top, width, height) in zip(sizes, cells, strict=True):
    x = _within(rng, left, width, size)
    y = _within(rng, top, height, size)
    out.append((y, x) if turned else (x, y))
  return out


def position_word(x: float, y: float) -> str:
  """Returns 'top left', 'left', 'centre', ... for a centre in [0, 1]²."""
  vertical = 'top' if y < _THIRD else 'bottom' if y > 1 - _THIRD else ''
  horizontal = 'left' if x < _THIRD else 'right' if x > 1 - _THIRD else ''
  return f'{vertical} {horizontal}'.strip() or 'centre'


def size_word(size: float) -> str:
  """Returns 'small', 'medium' or 'large' for a longest side in [0, 1]."""
  return 'small' if size < _SMALL else 'large' if size > _LARGE else 'medium'


def relations(objects: Sequence[Sequence[tuple[float, float]]]) -> list[list[int | str]]:
  """Returns what holds between whole objects, as `[i, 'left of' or 'above', j]`.

  Args:
    objects: the centres of each object's instances; all of i's must stand before all of j's.
  """
  out: list[list[int | str]] = []
  for i, first in enumerate(objects):
    for j, second in enumerate(objects):
      if i == j:
        continue
      for axis, name in enumerate(('left of', 'above')):
        if max(c[axis] for c in first) + _APART < min(c[axis] for c in second):
          out.append([i, name, j])
  return out


def _within(rng: random.Random, start: float, length: float, size: float) -> float:
  """Draws a centre for `size` within a cell, or the cell's middle; never outside the canvas."""
  slack = max(length - size, 0.0)
  centre = start + length / 2 + (rng.random() - 0.5) * slack
  return min(max(centre, size / 2), 1 - size / 2)
