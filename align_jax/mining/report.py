"""What mining did, as a page of text."""

import dataclasses
import math
from collections.abc import Mapping

from align_jax.mining.hardness import BINS, Hardness, Spread
from align_jax.mining.strategy import Mined

_WIDTH = 40  # characters of the longest bar
# what a count counts, in the order in which they are told; `{k}` and so on are other counts
TOLD = {
  'unreadable': 'pairs left out: they cannot be read',
  'not_finite': 'pairs left out: an embedding that is not finite',
  'repeated': 'pairs left out: there already',
  'no_owner': 'candidates left out: no owner',
  'no_positive': 'queries left out: no positive',
  'own': 'candidates left out: positives of the query',
  'margin': 'candidates left out: within the margin of the positive',
  'percentage': 'candidates left out: above the percentage of the positive',
  'label': 'candidates left out: of the same label',
  'skipped': 'candidates left out: among the first ranks',
  'same_owner': 'candidates left out: their owner is there already',
  'gathered': 'owners gathered',
  'similar_queries': 'owners left out: their queries are the most similar',
  'second_phase': 'clusters made of leftovers',
  'left_over': 'queries in no cluster',
  'ranked': 'ranked pairs of pairs',
  'hidden': 'kept apart: hidden matches',
  'edges': 'edges that go both ways',
  'hard': 'hard partners',
  'moved': 'pairs moved so that clusters are of equal size',
  'dealt': 'pairs dealt out to other clusters',
  'swaps': 'swaps',
  'with_hidden': 'pairs with a hidden match after all',
  'twice': 'members left out: there twice',
  'known_match': 'members left out: a known match of another',
  'filled': 'places filled by lot',
  'filled_other_task': 'of them from other tasks',
  'too_few': 'clusters left out: could not be filled',
}


def text_report(
  mined: Mined, false_negatives: float | None = None, skipped: Mapping[str, int] | None = None
) -> str:
  """Returns how many clusters there are, how hard they are, and what was left out and why.

  Args:
    mined: what mining found.
    false_negatives: see `hardness.false_negative_rate`; None or nan: nobody knows.
    skipped: what the data's source has left out, by reason.
  """
  hardness, counts = mined.hardness, mined.counts
  size = mined.clusters.shape[1]
  members = f'{hardness.members:,} of {counts["pairs"]:,} pairs'
  lines = [
    f'{mined.strategy}: {len(mined.clusters):,} clusters of {size} ({size - 1} hard negatives); '
    f'{members} are in one',
  ]
  settings = ', '.join(f'{name}={value}' for name, value in mined.settings.items())
  lines += [f'settings: {settings}', '', *_table(hardness), '']
  lines.append(f'{hardness.above:.2%} of the negatives are at least as near as the positive')
  if false_negatives is not None and not math.isnan(false_negatives):
    lines.append(
      f'{false_negatives:.2%} of the negatives are false: truly matches, by their labels'
    )
  if hardness.known_matches:
    lines.append(f'{hardness.known_matches:,} negatives are known matches, to be masked')
  if mined.recall is not None:
    lines.append(f'recall of the approximate search: {mined.recall:.4f}')
  lines += ['', 'hardness of the negatives', *_histogram(hardness), '']
  lines += [f'{n:>14,}  left out by the source: {why}' for why, n in (skipped or {}).items()]
  known = [name for name in TOLD if counts.get(name)]
  lines += [f'{counts[name]:>14,}  {TOLD[name]}' for name in known]
  return '\n'.join(lines).rstrip() + '\n'


def _table(hardness: Hardness) -> list[str]:
  """As sentence-transformers prints it."""
  columns: tuple[Spread, ...] = (hardness.positive, hardness.negative, hardness.difference)
  lines = [f'{"":16}{"positive":>14}{"negative":>14}{"difference":>14}']
  for field in dataclasses.fields(Spread):
    values = [getattr(column, field.name) for column in columns]
    cells = [f'{v:>14,}' if field.name == 'count' else f'{v:>14.4f}' for v in values]
    lines.append(f'{field.name.replace("_", " "):16}' + ''.join(cells))
  return lines


def _histogram(hardness: Hardness) -> list[str]:
  """A bar for each bin, from the first to the last that is not empty."""
  full = [i for i, count in enumerate(hardness.histogram) if count]
  if not full:
    return ['  no negatives']
  longest = max(hardness.histogram)
  lines = []
  for i in range(full[0], full[-1] + 1):
    count, low = hardness.histogram[i], -1 + 2 * i / BINS
    bar = '#' * round(_WIDTH * count / longest)
    lines.append(f'  {low:5.2f} to {low + 2 / BINS:5.2f} {count:>12,} {bar}'.rstrip())
  return lines
