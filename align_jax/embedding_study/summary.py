"""What a study of embedders found: values over the seeds, tables, and a verdict in words."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from align_jax.embedding_study.config import EmbeddingStudyConfig
from align_jax.embedding_study.differences import JUDGED, differences
from align_jax.embedding_study.runner import Found
from align_jax.evaluation.mmeb import EMOJI_MMEB
from align_jax.evaluation.report import Cell, Metric, Table, metric_table
from align_jax.evaluation.sections import versions
from align_jax.files import write_file
from align_jax.study.results import listed

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
_HEADLINE = (*JUDGED, *EMOJI_MMEB.meta_tasks)
_MINED = ('false_negatives', 'true_negative_cosine', 'positive_cosine', 'above', 'members')

Values = Mapping[str, Mapping[str, Sequence[float]]]  # row -> metric -> one value a seed


def tables(config: EmbeddingStudyConfig, found: Found) -> list[Table]:
  """All tables, the headline first."""
  titles = {strategy.name: strategy.title for strategy in config.strategies}
  out = []
  for level in config.levels:
    rows: dict[str, Mapping] = dict(found.by_strategy(level.name))
    if rows:
      before = {f'{level.name} before': found.zero_shot[level.name]}
      names = titles | {f'{level.name} before': 'before any contrastive step'}
      note = f'hit@1 after {config.encoded:,} pairs. The model before is one, the same for all.'
      out.append(_table(f'Prompt: {level.title}', {**before, **rows}, _HEADLINE, names, note))
  shown: dict[str, str] = {level.name: level.title for level in config.levels}
  note = 'hit@1 of the generative model as it is, at each level of the prompt. One model.'
  out.insert(0, _table('Before any contrastive step', found.zero_shot, _HEADLINE, shown, note))
  out += _difference_table(config, found)
  for level in config.levels:
    rows = dict(found.by_strategy(level.name))
    if rows:
      note = (
        'A negative is another member of the cluster; it is false if its candidate truly matches, '
        'though it is another content; matches across tasks are not counted. Cosines are those of '
        'the model that mined.'
      )
      out.append(_table(f'Clusters, prompt: {level.title}', rows, _MINED, titles, note))
  for level in config.levels:
    rows = dict(found.by_strategy(level.name))
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
    marks = ('**' if c.best else '' for c in cells)
    shown = (c.text + (f' ± {c.spread}' if c.spread else '') for c in cells)
    texts = (f'{mark}{text}{mark}' for mark, text in zip(marks, shown, strict=True))
    lines.append(f'| {name} | {" | ".join(texts)} |')
  return '\n'.join([*lines, '', table.note, ''])


def verdict(config: EmbeddingStudyConfig, found: Found) -> str:
  """Says what holds: a line for each strategy or level that is clearly better than another."""
  lines = [_zero_shot(config, found)]
  compared = differences(config, found)
  for each in compared:
    for better, sign in ((each.one, 1), (each.other, -1)):
      clear = {key: gap for key, gap in each.gaps.items() if gap.clear and sign * gap.mean > 0}
      if clear:
        than = each.other if sign > 0 else each.one
        said = [
          f'{_METRICS[key].label.lower()} (+{100 * abs(gap.mean):.1f} ± {100 * gap.margin:.1f})'
          for key, gap in clear.items()
        ]
        lines.append(f'{_title(each.where, better, "better than", than)}: {listed(said)}.')
  gaps = [gap for each in compared for gap in each.gaps.values()]
  if gaps:
    lines.append(
      f'{len(gaps)} differences were looked at (table below), {sum(g.clear for g in gaps)} of them '
      'clear: about one in twenty would seem so by chance.'
    )
  if len(config.seeds) == 1 and gaps:
    lines.append('One seed: differences of four points and less are taken for noise.')
  missing = config.cells - len(found.cells)
  if missing:
    lines.append(f'Under way: {missing} of {config.cells} cells are still missing.')
  return '\n'.join(lines)


def _title(where: str, one: str, how: str, other: str) -> str:
  """A comparison in words; without a place levels are compared."""
  return f'{where}: {one} {how} {other}' if where else f'Prompt {one} {how} {other}'


def _zero_shot(config: EmbeddingStudyConfig, found: Found) -> str:
  each = [
    f'{level.title} {100 * found.zero_shot[level.name]["average"]:.1f} %'
    for level in config.levels
    if level.name in found.zero_shot
  ]
  return f'Before any contrastive step: {", ".join(each)} (one model: no spread).'


def _difference_table(config: EmbeddingStudyConfig, found: Found) -> list[Table]:
  """The differences, the clear ones marked; nothing where none is known yet."""
  compared = differences(config, found)
  if not compared:
    return []
  rows = []
  for each in compared:
    cells = []
    for key in JUDGED:
      gap = each.gaps.get(key)
      cells.append(
        Cell('–')
        if gap is None
        else Cell(f'{100 * gap.mean:+.1f}', f'{100 * gap.margin:.1f}', gap.clear)
      )
    rows.append((_title(each.where, each.one, 'less', each.other), tuple(cells)))
  note = (
    'Points of hit@1, paired by seed; after ± the 95 % interval of the t test, and bold what is '
    'beyond it. Prompts by the mean of their strategies.'
  )
  heads = tuple(_METRICS[key].label for key in JUDGED)
  return [Table('Differences', heads, tuple(rows), note)]


def write_metrics(
  path: Path, config: EmbeddingStudyConfig, found: Found, seconds: Mapping[str, float]
) -> None:
  """Writes metrics.json: of every level and strategy the means, and every seed's values."""
  names = [level.name for level in config.levels]
  values = {level: found.by_strategy(level) for level in names}
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
