"""The funnel from prompts to shards: what became of every image that was asked for."""

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from align_jax.evaluation.report import Cell, Facts, Figure, Section, Table
from align_jax.synth.report import drawing
from align_jax.synth.report.data import Number, Part, ReportData, percent
from align_jax.synth.rows import ImageRow

_MOST_REASONS = 6  # columns of a table; the rest are one
_MOST_NOTES = 12
_BLANK = 'blank'


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What became of an image.

  Attributes:
    kind: `failed`: there is no image; `undecided`: filtration has not seen it.
    reason: name of the failure, or of the first reason for dropping it.
  """

  kind: Literal['kept', 'dropped', 'failed', 'undecided']
  reason: str = ''


def outcomes(data: ReportData) -> list[Outcome]:
  """Returns what became of each of the images."""
  decisions = {row.id: row for row in data.decisions}
  out = []
  for image in data.images:
    decision = decisions.get(image.id)
    if image.failure:
      out.append(Outcome('failed', image.failure))
    elif decision is None:
      out.append(Outcome('undecided'))
    elif decision.kept:
      out.append(Outcome('kept'))
    else:
      out.append(Outcome('dropped', reason_name(decision.reasons[0] if decision.reasons else '')))
  return out


def reason_name(reason: str) -> str:
  """Returns the name of a reason, without what was measured."""
  return reason.split(' ')[0] or 'unknown'


def reason_counts(found: Sequence[Outcome], kind: str) -> dict[str, int]:
  """Counts failures or drops by reason: blank images first, then the most frequent."""
  counts = collections.Counter(o.reason for o in found if o.kind == kind)
  return dict(sorted(counts.items(), key=lambda item: (item[0] != _BLANK, -item[1], item[0])))


def make_funnel(data: ReportData, found: Sequence[Outcome]) -> Part:
  """Returns the funnel, the same by generator and by strategy, and what should be known.

  Args:
    found: `outcomes(data)`.
  """
  kinds = collections.Counter[str](o.kind for o in found)
  failed, dropped = reason_counts(found, 'failed'), reason_counts(found, 'dropped')
  flagged = collections.Counter(
    name for row in data.decisions for name in {reason_name(r) for r in row.reasons}
  )
  numbers: dict[str, Number] = {
    'funnel.categories': len(data.categories),
    'funnel.prompts': len(data.prompts),
    'funnel.asked': len(data.images),
    'funnel.failed': kinds['failed'],
    'funnel.dropped': kinds['dropped'],
    'funnel.undecided': kinds['undecided'],
    'funnel.kept': kinds['kept'],
    **{f'funnel.failed.{name}': n for name, n in failed.items()},
    **{f'funnel.dropped.{name}': n for name, n in dropped.items()},
    **{f'funnel.flagged.{name}': n for name, n in sorted(flagged.items())},
  }
  sections: list[Section] = []
  if data.images or data.prompts:
    sections.append(_facts(data, kinds, failed, dropped))
  for title, what, key in (
    ('By generator', 'generator', lambda image: image.generator),
    ('By prompt strategy', 'strategy', lambda image: image.strategy),
  ):
    table, values = _group_table(title, what, data.images, found, key, tuple(dropped))
    sections.append(table)
    numbers |= values
  sections += [_reason_table(dropped, flagged, kinds['dropped']), _notes(data)]
  return Part(tuple(sections), numbers)


def _facts(
  data: ReportData,
  kinds: Mapping[str, int],
  failed: Mapping[str, int],
  dropped: Mapping[str, int],
) -> Facts:
  asked = len(data.images)
  losses = {f'failed: {name}': n for name, n in failed.items()}
  losses |= {f'dropped: {name}': n for name, n in dropped.items()}
  if kinds['undecided']:
    losses['not decided yet'] = kinds['undecided']
  rows = [
    ('categories', f'{len(data.categories):,}'),
    ('prompts', f'{len(data.prompts):,}'),
    ('images asked for', f'{asked:,}'),
    *((name, f'− {n:,}  ({percent(n, asked)})') for name, n in losses.items()),
    ('kept', f'{kinds["kept"]:,}  ({percent(kinds["kept"], asked)})'),
  ]
  figures = (
    (Figure(drawing.funnel(asked, losses, kinds['kept']), 'What is left after each step.'),)
    if asked
    else ()
  )
  return Facts(
    'From prompts to shards',
    tuple(rows),
    figures,
    'An image that several filters would drop is counted under the first of its reasons.',
  )


def _group_table(
  title: str,
  what: str,
  images: Sequence[ImageRow],
  found: Sequence[Outcome],
  key: Callable[[ImageRow], str],
  reasons: tuple[str, ...],
) -> tuple[Table, dict[str, Number]]:
  """A row for each group: asked, failed, dropped by reason, kept."""
  groups: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
  for image, outcome in zip(images, found, strict=True):
    counts = groups[key(image)]
    counts.update(['asked', outcome.kind])
    if outcome.kind == 'dropped':
      counts[f'dropped.{outcome.reason}'] += 1
  shown = reasons if len(reasons) <= _MOST_REASONS else reasons[: _MOST_REASONS - 1]
  rows, numbers = [], {}
  for name, counts in sorted(groups.items(), key=lambda item: (-item[1]['asked'], item[0])):
    values = [counts['asked'], counts['failed'], *(counts[f'dropped.{r}'] for r in shown)]
    if shown != reasons:
      values.append(counts['dropped'] - sum(values[2:]))
    cells = [Cell(f'{value:,}') for value in [*values, counts['kept']]]
    rows.append((name, (*cells, Cell(percent(counts['kept'], counts['asked'])))))
    for kind in ('asked', 'failed', 'dropped', 'undecided', 'kept'):
      numbers[f'{what}.{name}.{kind}'] = counts[kind]
    for reason in reasons:
      numbers[f'{what}.{name}.dropped.{reason}'] = counts[f'dropped.{reason}']
  heads = ('asked', 'failed', *shown, *(['other reasons'] if shown != reasons else []))
  return Table(title, (*heads, 'kept', 'kept share'), tuple(rows)), dict(numbers)


def _reason_table(first: Mapping[str, int], flagged: Mapping[str, int], dropped: int) -> Table:
  """How often each reason came first, and at all: which filter does what no other does."""
  names = [*first, *(name for name in sorted(flagged) if name not in first)]
  return Table(
    'Reasons for dropping',
    ('first reason', 'of all dropped', 'a reason at all'),
    tuple(
      (
        name,
        (
          Cell(f'{first.get(name, 0):,}'),
          Cell(percent(first.get(name, 0), dropped)),
          Cell(f'{flagged.get(name, 0):,}'),
        ),
      )
      for name in names
    ),
  )


def _notes(data: ReportData) -> Facts:
  """What dropped nothing but should be known: masks that failed, comparisons that fell back."""
  rows = [
    (f'mask: {name}', f'{n:,}')
    for name, n in collections.Counter(r.failure for r in data.annotations).most_common()
    if name
  ]
  usable = [row.area for row in data.annotations if not row.failure]
  if data.annotations:
    mean = f', mean area {percent(sum(usable), len(usable))}' if usable else ''
    rows.insert(0, ('masks', f'{len(usable):,} of {len(data.annotations):,}{mean}'))
  compared = collections.Counter(r.similarity_to for r in data.scores if r.similarity is not None)
  rows += [(f'compared with: {name}', f'{n:,}') for name, n in compared.most_common()]
  alone = sum(row.similarity is None for row in data.scores)
  if alone and compared:
    rows.append(('compared with nothing', f'{alone:,}'))
  notes = collections.Counter(note for row in data.decisions for note in row.notes)
  rows += [(note, f'{n:,}') for note, n in notes.most_common(_MOST_NOTES)]
  if len(notes) > _MOST_NOTES:
    rows.append((f'{len(notes) - _MOST_NOTES:,} other notes', ''))
  return Facts('Masks, comparisons and notes', tuple(rows), note='How many images each is true of.')
