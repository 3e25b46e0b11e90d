"""The report's section on how fast a run trained, from its metrics and the record of its starts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from align_jax.evaluation import plots
from align_jax.evaluation.report import Facts, Figure

# Key of the metrics -> what a reader sees, in the order they are stacked.
PARTS = {
  'time/data_s': 'data wait',
  'time/transfer_s': 'transfer',
  'time/compute_s': 'compute',
  'time/save_s': 'saving',
  'time/eval_s': 'evaluation',
}
_MOST = 150  # columns of the plot: a long run's lines are averaged
_CUT = 3.0  # times the median: where a peak (an evaluation, say) is cut off

Line = Mapping[str, Any]


def speed_section(lines: Sequence[Line], starts: Sequence[Line]) -> Facts:
  """Returns the section "Training speed"; it is empty for a run that recorded no times.

  Args:
    lines: of `metrics.jsonl`.
    starts: of `starts.json`.
  """
  title = 'Training speed'
  timed = [m for m in lines if m.get('time/step_s')]
  if not timed:
    return Facts(title, ())
  edges, steps = _spans(timed, starts)
  seconds = np.asarray([[m[key] for key in PARTS] for m in timed], np.float64)
  totals = steps @ seconds
  share = totals / totals.sum()
  last = timed[-1]
  rows = [
    ('Steps', f'{last["step"]:,}'),
    ('Examples per second', f'{_median(timed, "examples_per_s"):,.0f}'),
    ('Time of a step', _seconds(_median(timed, 'time/step_s'))),
    *((f'Share of {name}', f'{s:.1%}') for name, s in zip(PARTS.values(), share, strict=True)),
  ]
  note = 'Rates are those of the median line of metrics; shares are of all the time measured.'
  if any('mfu' in m for m in timed) and starts:
    rows.append(('MFU', f'{_median(timed, "mfu"):.1%}'))
    note += ' ' + _formula(timed, starts[-1])
  rows += [
    ('Goodput', f'{last["goodput"]:.1%}'),
    ('Restarts', f'{last["restarts"]:.0f}'),
    *(
      (f'Peak memory, {where}', f'{max(m[key] for m in timed if key in m):.2f} GiB')
      for where, key in (
        ('device', 'memory/device_peak_gib'),
        ('host', 'memory/host_peak_gib'),
      )
      if key in last
    ),
  ]
  compiled = sum(m.get('time/compile_s', 0.0) for m in timed)
  if compiled:
    rows.append(('Compiling', _seconds(compiled)))
  return Facts(title, tuple(rows), (_figure(edges, steps, seconds),), note)


def _figure(edges: np.ndarray, steps: np.ndarray, seconds: np.ndarray) -> Figure:
  first = np.arange(0, len(steps), -(-len(steps) // _MOST))  # of each group of lines
  weight = np.add.reduceat(steps, first)
  means = np.add.reduceat(seconds * steps[:, None], first) / weight[:, None]
  edges = np.append(edges[first], edges[-1])
  height = means.sum(axis=1)
  top = min(1.05 * height.max(), _CUT * float(np.median(height)))
  unit, scale = ('ms', 1e3) if top < 1 else ('s', 1.0)
  svg = plots.stacked(
    edges.tolist(),
    {name: (scale * means[:, i]).tolist() for i, name in enumerate(PARTS.values())},
    y_label=f'{unit} per step',
    top=scale * top,
  )
  cut = ' Higher peaks are cut off.' if height.max() > top else ''
  return Figure(svg, f'Where the time of a step goes, as the host sees it.{cut}')


def _spans(timed: Sequence[Line], starts: Sequence[Line]) -> tuple[np.ndarray, np.ndarray]:
  """The steps that each line speaks of: where they begin (and the end), how many they are.

  The steps between a line and a restart after it are in no line; the next one stands for them.
  """
  ends = [m['step'] for m in timed]
  begin = max((s['step'] for s in starts if s['step'] < ends[0]), default=0)
  edges = np.asarray([begin, *ends], np.float64)
  return edges, np.diff(edges)


def _formula(timed: Sequence[Line], start: Line) -> str:
  step, peak = _median(timed, 'time/step_s'), start['peak_flops']
  return (
    f'MFU = model FLOPs of a step / (time of a step × devices × peak of a device) = '
    f'{start["step_flops"]:.3g} / ({step:.3g} s × {start["devices"]} × {peak / 1e12:g} TFLOP/s), '
    f'{start["chip"]}, bf16.'
  )


def _median(lines: Sequence[Line], key: str) -> float:
  return float(np.median([m[key] for m in lines if m.get(key) is not None]))


def _seconds(value: float) -> str:
  return f'{1e3 * value:.3g} ms' if value < 1 else f'{value:,.1f} s'
