"""Pictures: kept ones by category and generator, and dropped ones by reason."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from align_jax.evaluation.pictures import Picture, Row, shorten
from align_jax.evaluation.report import Pictures
from align_jax.synth.report.categories import CategoryCount, count_categories
from align_jax.synth.report.data import Part, ReportConfig, ReportData, draw
from align_jax.synth.report.funnel import Outcome, outcomes, reason_counts
from align_jax.synth.rows import DecisionRow, ImageRow

# PNG bytes of all pictures together: on the page a third more, well within its 2 MB
MOST_BYTES = 700_000
_MOST_GENERATORS = 4
_MOST_REASONS = 8
_KEPT, _DROPPED = 'Kept, by category and generator', 'Dropped, by reason'
_NEAREST = 'Kept, but nearest to the cut'
_GRIDS = {  # each grid's share of the bytes, and what is said of it
  _KEPT: (0.5, 'Drawn at random, not chosen; categories from most to fewest real images.'),
  _DROPPED: (
    0.35,
    'Drawn at random of each first reason, with what was measured. If these are good, the filter '
    'is too strict.',
  ),
  _NEAREST: (0.15, 'If these are bad, the threshold is too low.'),
}


@dataclasses.dataclass(frozen=True)
class Wanted:
  """A picture to show: a real or a generated image, and the words under it."""

  id: str
  caption: str = ''
  real: bool = False


@dataclasses.dataclass(frozen=True)
class Line:
  """Pictures side by side under a title."""

  title: str
  pictures: tuple[Wanted, ...]


def wanted_pictures(data: ReportData, config: ReportConfig) -> tuple[list[str], list[str]]:
  """Returns the ids of the real and of the generated images whose thumbnails the page shows.

  They follow from the rows alone: fill them in with `evaluation.pictures.thumbnail(image, 64)`.
  """
  lines = [line for _, lines in _plan(data, outcomes(data), config) for line in lines]
  every = [wanted for line in lines for wanted in line.pictures]
  real = dict.fromkeys(w.id for w in every if w.real)
  return list(real), list(dict.fromkeys(w.id for w in every if not w.real))


def make_samples(data: ReportData, found: Sequence[Outcome], config: ReportConfig) -> Part:
  """Returns the grids, of the pictures that the data has, until they are `MOST_BYTES`.

  Args:
    found: what became of each of the images.
  """
  left, missing = 0, 0
  sections = []
  for title, lines in _plan(data, found, config):
    share, note = _GRIDS[title]
    left += int(share * MOST_BYTES)  # what one grid does not need, the next may have
    shown: dict[tuple[int, int], Picture] = {}
    places = [(i, j) for i, line in enumerate(lines) for j in range(len(line.pictures))]
    for i, j in sorted(
      places, key=lambda place: place[::-1]
    ):  # each line's first before any second
      wanted = lines[i].pictures[j]
      png = (data.real_thumbnails if wanted.real else data.thumbnails).get(wanted.id, b'')
      if png and len(png) > left:
        missing += 1
      elif png:
        left -= len(png)
        shown[i, j] = Picture(png, wanted.caption)
    rows = []
    for i, line in enumerate(lines):
      pictures = tuple(shown[i, j] for j in range(len(line.pictures)) if (i, j) in shown)
      if pictures:
        rows.append(Row(line.title, pictures))
    sections.append(Pictures(title, tuple(rows), note))
  if missing:
    sections = [
      dataclasses.replace(
        s, note=f'{s.note} {missing:,} pictures are left out, to keep the page small.'
      )
      for s in sections
    ]
  return Part(tuple(sections), {'samples.left_out': missing})


def _plan(
  data: ReportData, found: Sequence[Outcome], config: ReportConfig
) -> list[tuple[str, list[Line]]]:
  decisions = {row.id: row for row in data.decisions}
  pairs = list(zip(data.images, found, strict=True))
  kept = [image for image, o in pairs if o.kind == 'kept']
  return [
    (_KEPT, _category_lines(data, kept, found, config)),
    (_DROPPED, _dropped_lines(pairs, found, decisions, config)),
    (_NEAREST, _margin_lines(data, kept, config)),
  ]


def _category_lines(
  data: ReportData, kept: Sequence[ImageRow], found: Sequence[Outcome], config: ReportConfig
) -> list[Line]:
  by_group: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
  for image in kept:
    by_group[image.category, image.generator].append(image.id)
  asked = collections.Counter((image.category, image.generator) for image in data.images)
  often = collections.Counter(image.generator for image in data.images)
  generators = sorted(often, key=lambda name: (-often[name], name))[:_MOST_GENERATORS]
  real: dict[str, list[str]] = collections.defaultdict(list)
  for id_, category in zip(data.real_ids, data.real_categories, strict=True):
    real[category].append(id_)
  out = []
  for count in _choose(count_categories(data, found), config.categories_shown):
    name = count.category.name
    title = shorten(name, 40) + (' (extra)' if count.category.extra else '')
    some = _some(real[name], config.pictures_each, config)
    out.append(Line(f'{title} · real', tuple(Wanted(id_, real=True) for id_ in some)))
    for generator in generators:
      ids = by_group[name, generator]
      of = f'{len(ids):,} of {asked[name, generator]:,} kept'
      some = _some(ids, config.pictures_each, config)
      out.append(Line(f'{title} · {generator}, {of}', tuple(Wanted(id_) for id_ in some)))
  return out


def _choose(counts: Sequence[CategoryCount], most: int) -> list[CategoryCount]:
  """Takes categories that have kept images: evenly from many to few real ones, a third extra."""
  own = [c for c in counts if c.kept and not c.category.extra]
  extra = [c for c in counts if c.kept and c.category.extra]
  few = min(len(extra), max(most // 3, most - len(own)))
  return [*_evenly(own, most - few), *_evenly(extra, few)]


def _evenly(items: Sequence[CategoryCount], most: int) -> list[CategoryCount]:
  if most < 1:
    return []
  places = np.unique(np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int))
  return [items[i] for i in places]


def _margin_lines(data: ReportData, kept: Iterable[ImageRow], config: ReportConfig) -> list[Line]:
  """Of each score that was cut from below, the kept images that are least above the cut."""
  names = {image.id: image.category for image in kept}
  out = []
  for cut in data.thresholds:
    margins = []
    for row in data.scores:
      value = getattr(row, cut.score)
      lower = cut.by_category.get(names.get(row.id, ''), cut.lower)
      if row.id in names and value is not None and lower is not None:
        own = f' (cut {lower:.3f})' if cut.by_category else ''
        margins.append((value - lower, row.id, f'{value:.3f}{own}'))
    pictures = tuple(
      Wanted(id_, f'{words}, {shorten(names[id_], 24)}')
      for _, id_, words in sorted(margins)[: config.dropped_each]
    )
    where = '' if cut.by_category or cut.lower is None else f' at {cut.lower:.3f}'
    out.append(Line(f'{cut.score}, least above the cut{where}', pictures))
  return out


def _dropped_lines(
  pairs: Sequence[tuple[ImageRow, Outcome]],
  found: Sequence[Outcome],
  decisions: Mapping[str, DecisionRow],
  config: ReportConfig,
) -> list[Line]:
  out = []
  for reason, number in list(reason_counts(found, 'dropped').items())[:_MOST_REASONS]:
    images = {image.id: image for image, o in pairs if o == Outcome('dropped', reason)}
    pictures: list[Wanted] = []
    for id_ in _some(list(images), config.dropped_each, config):
      row = decisions[id_]
      measured = row.reasons[0].removeprefix(reason).strip() if row.reasons else ''
      words = ', '.join(w for w in (measured, shorten(images[id_].category, 24)) if w)
      pictures.append(Wanted(id_, words))
      if row.duplicate_of and len(row.reasons) == 1:  # it is this reason that speaks of it
        pictures.append(Wanted(row.duplicate_of, 'is like this one'))
    out.append(
      Line(f'{reason}, {number:,} dropped', tuple(pictures[: max(0, config.dropped_each)]))
    )
  return out


def _some(ids: Sequence[str], most: int, config: ReportConfig) -> list[str]:
  return [ids[i] for i in draw(ids, most, config.seed)]
