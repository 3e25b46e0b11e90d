"""The prompts: how many, how diverse, and some to read."""

import collections

from align_jax.evaluation.pictures import shorten
from align_jax.evaluation.report import Cell, Details, Section, Table
from align_jax.synth.report.data import Number, Part, ReportConfig, ReportData, draw

_LABELS = {
  'mean_pairwise_distance': 'mean pairwise distance',
  'distinct_1': 'distinct\u20111',
  'distinct_2': 'distinct\u20112',
  'distinct_3': 'distinct\u20113',
}
_EXAMPLES = 8


def make_prompts(data: ReportData, config: ReportConfig) -> Part:
  """Returns the diversity of each strategy, and prompts drawn at random."""
  by_strategy = collections.defaultdict(list)
  for row in data.prompts:
    by_strategy[row.strategy].append(row)
  names = [*by_strategy, *(s for s in data.prompt_diversity if s not in by_strategy)]
  measures = list(dict.fromkeys(m for v in data.prompt_diversity.values() for m in v))
  rows, numbers = [], dict[str, Number]()
  for name in names:
    prompts, measured = by_strategy.get(name, []), data.prompt_diversity.get(name, {})
    categories = len({row.category for row in prompts})
    numbers[f'prompts.{name}.count'] = len(prompts)
    numbers[f'prompts.{name}.categories'] = categories
    numbers |= {f'prompts.{name}.{measure}': value for measure, value in measured.items()}
    cells = [Cell(f'{len(prompts):,}'), Cell(f'{categories:,}')]
    rows.append((name, (*cells, *(_cell(measured.get(m)) for m in measures))))
  sections: list[Section] = [
    Table(
      'Prompt diversity',
      ('prompts', 'categories', *(_LABELS.get(m, m.replace('_', ' ')) for m in measures)),
      tuple(rows),
      'Mean pairwise distance: 1 − cosine of the embeddings of two prompts, averaged over pairs. '
      'Distinct\u2011n: different runs of n words, of all there are.'
      if measures
      else '',
    )
  ]
  examples = []
  for name, prompts in by_strategy.items():
    some = [prompts[i] for i in draw((p.id for p in prompts), _EXAMPLES, config.seed)]
    lines = [f'{shorten(p.category, 40)}: {shorten(p.text, 300)}' for p in some]
    examples.append((name, '\n'.join(lines)))
  sections.append(Details('Prompts drawn at random', tuple(examples)))
  return Part(tuple(sections), numbers)


def _cell(value: Number) -> Cell:
  if value is None:
    return Cell('–')
  return Cell(f'{value:,}' if isinstance(value, int) else f'{value:.3f}')
