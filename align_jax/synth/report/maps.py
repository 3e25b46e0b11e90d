"""One map of real and generated embeddings, coloured by all that may have parted them."""

import collections
from collections.abc import Mapping, Sequence

import numpy as np

from align_jax.evaluation import plots
from align_jax.evaluation.pictures import shorten
from align_jax.evaluation.report import Figure, Figures
from align_jax.synth.report import drawing
from align_jax.synth.report.data import Part, ReportConfig, ReportData, draw
from align_jax.synth.report.drawing import Cloud
from align_jax.synth.report.funnel import Outcome

_REAL, _OTHERS = '#8c8c8c', '#adadad'
_COLOURS = plots.PALETTE[:6]
_MARKS = ('^', 's', 'D', 'v', 'P', 'X')
_FATES = {
  'kept': ('#009e73', '^'),
  'dropped': ('#d55e00', 'X'),
  'undecided': ('#56b4e9', 's'),
}


def make_maps(data: ReportData, found: Sequence[Outcome], config: ReportConfig) -> Part:
  """Returns the map, drawn once a colouring; nothing without generated embeddings.

  Args:
    found: what became of each of the images.
  """
  if not len(data.embeddings):
    return Part()
  images = {image.id: (image, o) for image, o in zip(data.images, found, strict=True)}
  chosen = draw(data.embedded, config.map_points, config.seed)
  real_rows = draw(data.real_ids, config.map_points, config.seed)
  rows = [images[data.embedded[i]] for i in chosen]
  dim = data.embeddings.shape[1]
  real, generated = plots.umap_map(
    data.real_embeddings[real_rows].reshape(-1, dim), data.embeddings[chosen], config.seed
  )
  real_categories = [data.real_categories[i] for i in real_rows]
  categories = [image.category for image, _ in rows]
  background = [Cloud('real', real, _REAL, 'o')] if len(real) else []
  drawn = [
    ('by generator', [*background, *_clouds(generated, [i.generator for i, _ in rows])]),
    ('by prompt strategy', [*background, *_clouds(generated, [i.strategy for i, _ in rows])]),
    (
      'by category: circles are real, triangles generated images',
      _by_category(real, real_categories, generated, categories),
    ),
  ]
  fates = np.asarray([o.kind for _, o in rows], object)
  if set(fates) & {'kept', 'dropped'}:
    clouds = [Cloud(k, generated[fates == k], *v) for k, v in _FATES.items() if (fates == k).any()]
    drawn.append(('by what became of it', [*background, *clouds]))
  items = tuple(Figure(drawing.clouds(clouds), f'Coloured {words}.') for words, clouds in drawn)
  shown = (
    f'{len(real):,} of {len(data.real_ids):,} real and {len(generated):,} of '
    f'{len(data.embedded):,} generated images'
  )
  note = (
    f'UMAP of the embeddings, laid out once: {shown}, drawn at random. Which points mix has '
    'meaning; distances between far groups, and the axes, have none.'
  )
  numbers = {'map.real': len(real), 'map.generated': len(generated)}
  return Part((Figures('Map of real and generated images', items, note),), numbers)


def _clouds(points: np.ndarray, names: Sequence[str]) -> list[Cloud]:
  """One cloud a name: the most frequent ones in colours, the rest in grey."""
  first, code = _frequent(names, len(_COLOURS))
  out = [
    Cloud(shorten(name, 28), points[code == i], _COLOURS[i], _MARKS[i])
    for i, name in enumerate(first)
  ]
  return _with_rest(out, {'^': points[code < 0]}, len(set(names)) - len(first))


def _by_category(
  real: np.ndarray, real_names: Sequence[str], generated: np.ndarray, names: Sequence[str]
) -> list[Cloud]:
  first, code = _frequent([*names, *real_names], len(_COLOURS))
  made, kept = code[: len(names)], code[len(names) :]
  out = []
  for i, name in enumerate(first):
    out.append(Cloud(shorten(name, 28), generated[made == i], _COLOURS[i], '^'))
    if (kept == i).any():
      out.append(Cloud('', real[kept == i], _COLOURS[i], 'o'))
  others = len({*names, *real_names}) - len(first)
  return _with_rest(out, {'^': generated[made < 0], 'o': real[kept < 0]}, others)


def _with_rest(items: list[Cloud], rest: Mapping[str, np.ndarray], count: int) -> list[Cloud]:
  """Adds the points of all other names: beneath in the drawing, last in the legend."""
  under = [Cloud('', points, _OTHERS, mark) for mark, points in rest.items() if len(points)]
  label = [Cloud(f'{count:,} others', np.zeros((0, 2)), _OTHERS, next(iter(rest)))]
  return [*under, *items, *(label if under else [])]


def _frequent(names: Sequence[str], most: int) -> tuple[list[str], np.ndarray]:
  """Returns the most frequent names, and of each its place among them; -1 for the rest."""
  counts = collections.Counter(names)
  first = sorted(counts, key=lambda name: (-counts[name], name))[:most]
  place = {name: i for i, name in enumerate(first)}
  return first, np.asarray([place.get(name, -1) for name in names], np.int64)
