"""Images of each category: real ones, those asked for, those kept."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from align_jax.evaluation.pictures import shorten
from align_jax.evaluation.report import Cell, Details, Facts, Figure, Section, Table
from align_jax.synth.report import drawing
from align_jax.synth.report.data import Number, Part, ReportData, percent
from align_jax.synth.report.funnel import Outcome
from align_jax.synth.rows import Category

_MOST_ROWS = 20  # of the table; with more categories, the rest stands in the folded list
_NAME = 32  # characters of a name in that list


@dataclasses.dataclass(frozen=True)
class CategoryCount:
  """A category, its images asked for and kept, and what most of the dropped were dropped for."""

  category: Category
  asked: int
  kept: int
  reason: str = ''

  @property
  def share(self) -> float:
    """Kept of those asked for; 1 where none was."""
    return self.kept / self.asked if self.asked else 1.0


def count_categories(data: ReportData, found: Sequence[Outcome]) -> list[CategoryCount]:
  """Counts by category: own ones first, those with many real images first.

  Args:
    found: what became of each of the images.
  """
  asked = collections.Counter(image.category for image in data.images)
  pairs = list(zip(data.images, found, strict=True))
  kept = collections.Counter(image.category for image, o in pairs if o.kind == 'kept')
  reasons: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
  for image, outcome in pairs:
    if outcome.kind in ('dropped', 'failed'):
      reasons[image.category][outcome.reason] += 1
  known = {c.name: c for c in data.categories}
  every = [*data.categories, *(Category(name) for name in asked if name not in known)]
  return [
    CategoryCount(
      category,
      asked[category.name],
      kept[category.name],
      reasons[category.name].most_common(1)[0][0] if reasons[category.name] else '',
    )
    for category in sorted(every, key=lambda c: (c.extra, -c.real_images, c.name))
  ]


def make_categories(counts: Sequence[CategoryCount]) -> Part:
  """Returns summary and plot, a table, and the list of all where they are many."""
  if not counts:
    return Part()
  numbers: dict[str, Number] = {
    'categories.own': sum(not c.category.extra for c in counts),
    'categories.extra': sum(c.category.extra for c in counts),
    'categories.real_images': sum(c.category.real_images for c in counts),
    'categories.without_kept': sum(not c.kept for c in counts),
  }
  for c in counts:
    name = c.category.name
    numbers[f'category.{name}.real'] = c.category.real_images
    numbers[f'category.{name}.asked'] = c.asked
    numbers[f'category.{name}.kept'] = c.kept
  sections: list[Section] = [_summary(counts, numbers)]
  if len(counts) <= _MOST_ROWS:
    sections.append(_table('Images of each category', counts, ''))
  else:
    worst = sorted(counts, key=lambda c: (c.share, -c.asked, c.category.name))[:_MOST_ROWS]
    sections.append(
      _table(
        'Categories that lost most',
        worst,
        f'The {_MOST_ROWS} of {len(counts):,} categories with the smallest share kept; the list '
        'after it has all.',
      )
    )
    sections.append(Details('All categories', ((f'{len(counts):,} categories', _listing(counts)),)))
  return Part(tuple(sections), numbers)


def _summary(counts: Sequence[CategoryCount], numbers: Mapping[str, Number]) -> Facts:
  own = [c for c in counts if not c.category.extra]
  extra = [c for c in counts if c.category.extra]
  rows = []
  for name, some in (('own', own), ('extra', extra)):
    if some:
      kept, asked = sum(c.kept for c in some), sum(c.asked for c in some)
      rows += [
        (f'{name} categories', f'{len(some):,}'),
        (f'{name}: real images', f'{sum(c.category.real_images for c in some):,}'),
        (f'{name}: generated, kept', f'{kept:,} of {asked:,}'),
        (f'{name}: kept by category', _spread([c.kept for c in some])),
      ]
  rows.append(('categories with none kept', f'{numbers["categories.without_kept"]:,}'))
  rarest = [c for c in own if c.category.real_images] or own
  rows += [(f'fewest real: {c.category.name}', _both(c)) for c in rarest[-3:]]
  parts = {
    'real': [c.category.real_images for c in counts],
    'kept': [c.kept for c in counts],
    'not kept': [c.asked - c.kept for c in counts],
  }
  figures: tuple[Figure, ...] = ()
  if any(map(any, parts.values())):
    svg = drawing.counts(
      parts,
      x_label='category, those with most real images first'
      + (', extra ones last' if own and extra else ''),
    )
    figures = (Figure(svg, 'Images of each category, one on the other.'),)
  return Facts('Categories', tuple(rows), figures)


def _spread(values: Sequence[int]) -> str:
  return f'{min(values):,} to {max(values):,}, median {np.median(values):,.0f}'


def _both(c: CategoryCount) -> str:
  return f'{c.category.real_images:,} real, {c.kept:,} kept'


def _table(title: str, counts: Sequence[CategoryCount], note: str) -> Table:
  rows = tuple(
    (
      shorten(c.category.name, 60),
      (
        Cell(_kind(c.category)),
        Cell(f'{c.category.real_images:,}'),
        Cell(f'{c.asked:,}'),
        Cell(f'{c.kept:,}'),
        Cell(percent(c.kept, c.asked)),
        Cell(c.reason or '–'),
      ),
    )
    for c in counts
  )
  return Table(title, ('kind', 'real', 'asked', 'kept', 'kept share', 'lost most to'), rows, note)


def _kind(category: Category) -> str:
  if not category.extra:
    return 'own'
  return 'extra' if category.similarity is None else f'extra, {category.similarity:.2f}'


def _listing(counts: Sequence[CategoryCount]) -> str:
  """All categories in columns of fixed width: 1,500 of them are 100 kB."""
  head = ('category', 'kind', 'real', 'asked', 'kept', 'share', 'lost most to')
  lines = [
    (
      c.category.name if len(c.category.name) <= _NAME else c.category.name[: _NAME - 1] + '…',
      _kind(c.category),
      str(c.category.real_images),
      str(c.asked),
      str(c.kept),
      percent(c.kept, c.asked),
      c.reason[:_NAME],
    )
    for c in counts
  ]
  wide = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
  return '\n'.join(
    '  '.join(
      text.ljust(w) if i in (0, 1, 6) else text.rjust(w)
      for i, (text, w) in enumerate(zip(line, wide, strict=True))
    ).rstrip()
    for line in (head, *lines)
  )
