"""What a study of embedders found: values over the seeds, tables, and a verdict in words."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from align_jax.embedding_study.config import EmbeddingStudyConfig
from align_jax.embedding_study.runner import Cell, Found, Scores
from align_jax.evaluation.mmeb import EMOJI_MMEB
from align_jax.evaluation.report import Metric, Table, metric_table
from align_jax.evaluation.sections import versions
from align_jax.files import write_file
from align_jax.study.results import listed, margin

_JUDGED = ('average', 'in_distribution', 'out_of_distribution')
_METRICS = {
  'average': Metric('All tasks', 'higher', True),
  'in_distribution': Metric('Test scenes', 'higher', True),
  'out_of_distribution': Metric('Held-out compositions', 'higher', True),
  **{name: Metric(name.capitalize(), 'higher', True) for name in EMOJI_MMEB.meta_tasks},
  **{f'hit1.{name}': Metric(name, 'higher', True) for name in EMOJI_MMEB.tasks},
  'vqa': Metric('VQA', 'higher', True),
  'false_negatives': Metric('False negatives', 'lower', True),
  # harder is not simply better
  'true_negative_cosine': Metric('Cosine of true negatives'),
  'negative_cosine': Metric('Cosine of negatives'),
  'positive_cosine': Metric('Cosine of positives'),
  'above': Metric('Above the positive', '', True),
  'members': Metric('Pairs in a cluster', '', True),
}
_HEADLINE = (*_JUDGED, *EMOJI_MMEB.meta_tasks)
_MINED = ('false_negatives', 'true_negative_cosine', 'positive_cosine', 'above', 'members')

Values = Mapping[str, Mapping[str, Sequence[float]]]  # row -> metric -> one value a seed


def by_strategy(cells: Sequence[Cell], level: str) -> dict[str, dict[str, list[float]]]:
  """The values of a level: strategy -> metric, of its scores and of its plan, -> one a seed."""
  out: dict[str, dict[str, list[float]]] = {}
  for cell in cells:
    if cell.level == level:
      for key, value in {**cell.scores, **cell.mined}.items():
        out.setdefault(cell.strategy, {}).setdefault(key, []).append(value)
  return out


def tables(config: EmbeddingStudyConfig, found: Found) -> list[Table]:
  """All tables, the headline first."""
  titles = {strategy.name: strategy.title for strategy in config.strategies}
  out = []
  for level in config.levels:
    rows: dict[str, Mapping] = dict(by_strategy(found.cells, level.name))
    if rows:
      before = {f'{level.name} before': found.zero_shot[level.name]}
      names = titles | {f'{level.name} before': 'before any contrastive step'}
      note = f'hit@1 after {config.encoded:,} pairs. The model before is one, the same for all.'
      out.append(_table(f'Prompt: {level.title}', {**before, **rows}, _HEADLINE, names, note))
  shown: dict[str, str] = {level.name: level.title for level in config.levels}
  note = 'hit@1 of the generative model as it is, at each level of the prompt. One model.'
  out.insert(0, _table('Before any contrastive step', found.zero_shot, _HEADLINE, shown, note))
  for level in config.levels:
    rows = dict(by_strategy(found.cells, level.name))
    if rows:
      note = (
        'A negative is another member of the cluster; it is false if its candidate truly matches, '
        'though it is another content. Cosines are those of the model that mined.'
      )
      out.append(_table(f'Clusters, prompt: {level.title}', rows, _MINED, titles, note))
  for level in config.levels:
    rows = dict(by_strategy(found.cells, level.name))
    if rows:
      keys = [f'hit1.{task}' for task in EMOJI_MMEB.tasks]
      out.append(_table(f'Tasks, prompt: {level.title}', rows, keys, titles, 'hit@1.'))
  return out


def _table(
  title: str, rows: Values | Mapping, keys: Sequence[str], names: Mapping[str, str], note: str
) -> Table:
  keys = [key for key in keys if any(key in row for row in rows.values())]
  return metric_table(title, rows, keys=keys, names=names, note=note, metrics=_METRICS)


def markdown(table: Table) -> str:
  """A table for a page of Markdown."""
  lines = [f'### {table.title}', '', f'| | {" | ".join(table.heads)} |']
  lines.append('| --- |' + ' ---: |' * len(table.heads))
  for name, cells in table.rows:
    texts = [c.text + (f' ± {c.spread}' if c.spread else '') for c in cells]
    lines.append(f'| {name} | {" | ".join(texts)} |')
  return '\n'.join([*lines, '', table.note, ''])


def verdict(config: EmbeddingStudyConfig, found: Found) -> str:
  """Says what holds: does a strategy beat another, and do levels matter?"""
  lines = [_zero_shot(config, found)]
  strategies = {strategy.name: strategy.title for strategy in config.strategies}
  levels = {level.name: level.title for level in config.levels}
  asked = clear = 0
  for level in levels:
    for one, other in config.comparisons:
      said, of, firm = _compared(_cells_of(found, level, one), _cells_of(found, level, other))
      asked, clear = asked + of, clear + firm
      if of:
        lines.append(f'{levels[level]}: {strategies[one]} against {strategies[other]}: {said}')
  for one, other in itertools.combinations(levels, 2):
    said, of, firm = _compared(_level(found, one, other), _level(found, other, one))
    asked, clear = asked + of, clear + firm
    if of:
      lines.append(f'Prompt {levels[one]} against {levels[other]}, mean of strategies: {said}')
  if asked:
    lines.append(
      f'{asked} differences were looked at, {clear} of them clear: about one in twenty would seem '
      'so by chance.'
    )
  if len(config.seeds) == 1 and asked:
    lines.append('One seed: differences of four points and less are taken for noise.')
  missing = config.cells - len(found.cells)
  if missing:
    lines.append(f'Under way: {missing} of {config.cells} cells are still missing.')
  return '\n'.join(lines)


def _zero_shot(config: EmbeddingStudyConfig, found: Found) -> str:
  each = [
    f'{level.title} {100 * found.zero_shot[level.name]["average"]:.1f} %'
    for level in config.levels
    if level.name in found.zero_shot
  ]
  return f'Before any contrastive step: {", ".join(each)} (one model: no spread).'


PerSeed = Mapping[int, Scores]


def _cells_of(found: Found, level: str, strategy: str) -> PerSeed:
  return {c.seed: c.scores for c in found.cells if (c.level, c.strategy) == (level, strategy)}


def _level(found: Found, level: str, other: str) -> PerSeed:
  """The mean of a level over the strategies that are there for the other one as well, by seed."""
  there = [{(c.strategy, c.seed) for c in found.cells if c.level == x} for x in (level, other)]
  both = there[0] & there[1]
  out = {}
  for seed in sorted({seed for _, seed in both}):
    some = [
      c.scores
      for c in found.cells
      if c.level == level and c.seed == seed and (c.strategy, seed) in both
    ]
    out[seed] = {key: float(np.mean([s[key] for s in some])) for key in _JUDGED if key in some[0]}
  return out


def _compared(one: PerSeed, other: PerSeed) -> tuple[str, int, int]:
  """What is firm of the first less the second, paired over the seeds that both have.

  Returns: in words; how many differences there are, and how many of them are clear.
  """
  seeds = sorted(one.keys() & other.keys())
  words: dict[str, list[str]] = {'better': [], 'worse': [], 'even': []}
  for key in _JUDGED:
    gaps = np.asarray([one[s][key] - other[s][key] for s in seeds if key in one[s]])
    if len(gaps):
      error = gaps.std(ddof=1) / np.sqrt(len(gaps)) if len(gaps) > 1 else float('nan')
      mean, firm = float(gaps.mean()), margin(float(error), len(gaps))
      kind = 'even' if abs(mean) <= firm else 'better' if mean > 0 else 'worse'
      points = f'{100 * mean:+.1f} ± {100 * firm:.1f} points'
      words[kind].append(f'{_METRICS[key].label.lower()} ({points})')
  said = []
  if words['better']:
    said.append(f'the first is better on {listed(words["better"])}')
  if words['worse']:
    said.append(f'the second is better on {listed(words["worse"])}')
  if words['even']:
    said.append(f'no clear difference on {listed(words["even"])}')
  clear = len(words['better']) + len(words['worse'])
  return '; '.join(said) + '.', clear + len(words['even']), clear


def write_metrics(
  path: Path, config: EmbeddingStudyConfig, found: Found, seconds: Mapping[str, float]
) -> None:
  """Writes metrics.json: of every level and strategy the means, and every seed's values."""
  names = [level.name for level in config.levels]
  values = {level: by_strategy(found.cells, level) for level in names}
  content = {
    'zero_shot': found.zero_shot,
    'cells': {
      level: {row: {key: float(np.mean(v)) for key, v in m.items()} for row, m in rows.items()}
      for level, rows in values.items()
    },
    'per_seed': values,
    'seeds': list(config.seeds),
    'encoded_pairs': config.encoded,
    'missing': config.cells - len(found.cells),
    'seconds': round(sum(seconds.values()), 1),
    'versions': versions(),
  }
  write_file(path, json.dumps(content, indent=1) + '\n')
