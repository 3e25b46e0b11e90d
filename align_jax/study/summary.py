"""What a study found, for a page of Markdown: tables with the spread over seeds, and one plot."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from align_jax.evaluation.plots import PALETTE
from align_jax.evaluation.report import METRICS, Metric
from align_jax.files import write_file
from align_jax.study.config import Arm, StudyConfig
from align_jax.study.results import Values

_HATCHES = ('', '///', '...')  # tell the second arm of a colour from the first
_SHOWN = 5  # of the headline metrics: those where more is better


def write_summary(folder: Path, config: StudyConfig, values: Values) -> None:
  """Writes `results.md` and `results.png`.

  Args:
    folder: where to.
    config: the study.
    values: row -> metric -> one value a seed; an arm of several readings has a row for each,
      `arm (reading)`.
  """
  write_file(folder / 'results.md', tables(config, values))
  plot(config, values).savefig(folder / 'results.png', dpi=150)


def tables(config: StudyConfig, values: Values) -> str:
  """One Markdown table for each group of arms; mean ± standard deviation over the seeds."""
  out = []
  for group in dict.fromkeys(arm.group for arm in config.arms):
    heads = [METRICS[key].label for key in config.headline]
    out += [f'### {group or "The arms"}', '', f'| arm | {" | ".join(heads)} |']
    out.append('| --- |' + ' --- |' * len(heads))
    for arm in config.arms:
      if arm.group != group:
        continue
      for row, title in _rows(arm, values):
        cells = [_cell(values[row].get(key, ()), METRICS[key]) for key in config.headline]
        out.append(f'| {title} | {" | ".join(cells)} |')
    out.append('')
  return '\n'.join(out)


def _rows(arm: Arm, values: Values) -> list[tuple[str, str]]:
  """The rows of an arm and their titles."""
  if arm.name in values:
    return [(arm.name, arm.title)]
  rows = [f'{arm.name} ({reading})' for reading in arm.readings]
  titles = [arm.title] + [f'{arm.title}, read by {r}' for r in arm.readings[1:]]
  return [(row, title) for row, title in zip(rows, titles, strict=True) if row in values]


def _cell(found: Sequence[float], metric: Metric) -> str:
  if not len(found):
    return '–'
  times, digits = (100, 1) if metric.percent else (1, 3)
  spread = f' ± {times * np.std(found, ddof=1):.{digits}f}' if len(found) > 1 else ''
  return f'{times * np.mean(found):.{digits}f}{spread}'


def plot(config: StudyConfig, values: Values) -> Figure:
  """The headline arms by metric, every seed a dot; beside it what more generated images bring.

  The second where the study has trends, or an arm with more of them.
  """
  scaling = _scaling(config, values)
  many = sum(not arm.group for arm in config.arms) > len(PALETTE)
  figure = Figure(figsize=(12, 6) if many else (10, 4.2), layout='constrained')
  if len(scaling) < 2 and not config.trends:
    _draw_arms(figure.subplots(), config, values)
    return figure
  left, right = figure.subplots(1, 2, width_ratios=(1.9, 1))
  _draw_arms(left, config, values)
  if config.trends:
    _draw_trends(right, config, values)
  else:
    _draw_scaling(right, scaling, config.headline[:_SHOWN])
  return figure


def _draw_arms(axes: Axes, config: StudyConfig, values: Values) -> None:
  keys = config.headline[:_SHOWN]
  arms = [arm for arm in config.arms if not arm.group and _rows(arm, values)]
  width = 0.8 / max(1, len(arms))
  for number, arm in enumerate(arms):
    row = values[_rows(arm, values)[0][0]]
    at = np.arange(len(keys)) + (number - (len(arms) - 1) / 2) * width
    each = [100 * np.asarray(row[key]) for key in keys]
    turn, place = divmod(number, len(PALETTE))
    axes.bar(
      at,
      [e.mean() for e in each],
      width * 0.9,
      color=PALETTE[place],
      label=arm.title,
      alpha=0.75,
      hatch=_HATCHES[turn % len(_HATCHES)],
      edgecolor='white',
    )
    for x, e in zip(at, each, strict=True):
      axes.plot(np.full(len(e), x), e, '.', color='black', markersize=3)
  labels = [textwrap.fill(METRICS[key].label, 16) for key in keys]
  axes.set_xticks(range(len(keys)), labels, fontsize=8)
  axes.set_ylabel('percent')
  if len(arms) > len(PALETTE):  # below: above the bars there is no room for so many
    axes.legend(fontsize=7, frameon=False, ncols=2, loc='upper center', bbox_to_anchor=(0.5, -0.1))
  else:
    axes.legend(fontsize=7, frameon=False)
  axes.spines[['top', 'right']].set_visible(False)


def _draw_trends(axes: Axes, config: StudyConfig, values: Values) -> None:
  """The first headline metric over the number of generated images, a line for each trend."""
  key = config.headline[0]
  counts: set[int] = set()
  for number, (title, names) in enumerate(config.trends.items()):
    arms = [arm for arm in config.arms if arm.name in names and _rows(arm, values)]
    each = [100 * np.asarray(values[_rows(arm, values)[0][0]][key]) for arm in arms]
    counts |= {arm.generated for arm in arms}
    axes.errorbar(
      [arm.generated * 1.03**number for arm in arms],  # beside each other
      [e.mean() for e in each],
      [e.std(ddof=1) if len(e) > 1 else 0.0 for e in each],
      marker='o',
      markersize=4,
      capsize=2,
      color=PALETTE[number % len(PALETTE)],
      label=title,
    )
  axes.set_xscale('log', base=2)
  axes.set_xticks(sorted(counts), [f'{count:,}' for count in sorted(counts)], fontsize=8)
  axes.minorticks_off()
  axes.legend(fontsize=7, frameon=False)
  axes.set_xlabel('generated images')
  axes.set_ylabel(f'{METRICS[key].label}, percent')
  axes.spines[['top', 'right']].set_visible(False)


def _scaling(config: StudyConfig, values: Values) -> Mapping[int, Mapping[str, Sequence[float]]]:
  """Generated images -> scores, of the aligned arm and those that differ from it in that alone."""
  reference = next((arm for arm in config.arms if arm.name == 'aligned'), None)
  if reference is None:
    return {}
  return {
    arm.generated: values[_rows(arm, values)[0][0]]
    for arm in config.arms
    if arm.stages == reference.stages and _rows(arm, values)
  }


def _draw_scaling(
  axes: Axes, scaling: Mapping[int, Mapping[str, Sequence[float]]], keys: Sequence[str]
) -> None:
  counts = sorted(scaling)
  for number, key in enumerate(keys):
    each = [100 * np.asarray(scaling[count][key]) for count in counts]
    spread = [e.std(ddof=1) if len(e) > 1 else 0.0 for e in each]
    axes.errorbar(
      counts,
      [e.mean() for e in each],
      spread,
      marker='o',
      markersize=4,
      capsize=2,
      color=PALETTE[number],
      label=METRICS[key].label,
    )
  axes.set_xscale('log', base=2)
  axes.set_xticks(counts, [f'{count:,}' for count in counts], fontsize=8)
  axes.legend(fontsize=7, frameon=False)
  axes.set_xlabel('generated images (aligned arm)')
  axes.spines[['top', 'right']].set_visible(False)
