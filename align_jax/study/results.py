"""What a study found, as numbers: per arm, reading and metric one value a seed."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from align_jax.evaluation.sections import versions
from align_jax.files import write_file
from align_jax.study.runner import Run

# The metrics a verdict speaks of: those where more is plainly better.
JUDGED = (
  'retrieval.t2i.r1',
  'retrieval.i2t.r1',
  'zero_shot.top1',
  'probe.linear',
  'probe.knn',
)

_ONE_SEED = 0.04

Values = Mapping[str, Mapping[str, list[float]]]  # row -> metric -> one value a seed


def by_arm(runs: Sequence[Run], *, all_readings: bool = False) -> Values:
  """Collects scores: arm -> metric -> values over the seeds.

  With `all_readings` an arm of several readings makes a row each, `arm (reading)`; otherwise its
  first reading, the headline, stands for the arm.
  """
  out: dict[str, dict[str, list[float]]] = {}
  for run in runs:
    readings = list(run.scores)
    for reading in readings if all_readings else readings[:1]:
      row = f'{run.arm} ({reading})' if all_readings and len(readings) > 1 else run.arm
      for key, value in run.scores[reading].items():
        out.setdefault(row, {}).setdefault(key, []).append(value)
  return out


def compare(
  values: Values, arm: str, other: str, keys: Sequence[str] = JUDGED
) -> list[tuple[str, float, float]]:
  """Paired differences `arm - other` over the seeds: (metric, mean, standard error).

  With one seed the error is not known and comes back as NaN.
  """
  out = []
  for key in keys:
    if key in values.get(arm, {}) and key in values.get(other, {}):
      gap = np.subtract(values[arm][key], values[other][key])
      error = gap.std(ddof=1) / np.sqrt(len(gap)) if len(gap) > 1 else float('nan')
      out.append((key, float(gap.mean()), float(error)))
  return out


def margin(error: float, seeds: int) -> float:
  """How large a difference must be: the 95 % interval of the paired t test over the seeds.

  One seed says nothing of its spread; two standard deviations of the difference of two shares of
  1,000 answers stand in for it, at least.
  """
  from scipy import stats  # here: it takes a second to import

  return float(stats.t.ppf(0.975, seeds - 1) * error) if seeds > 1 else _ONE_SEED


def listed(items: Sequence[str]) -> str:
  """Returns `a, b and c`."""
  return items[0] if len(items) == 1 else f'{", ".join(items[:-1])} and {items[-1]}'


def write_metrics(path: Path, runs: Sequence[Run], seconds: float) -> None:
  """Writes metrics.json: `arms` has the means of each arm's headline reading under flat keys."""
  headline, full = by_arm(runs), by_arm(runs, all_readings=True)
  content: dict[str, Any] = {
    'arms': {arm: _means(metrics) for arm, metrics in headline.items()},
    'readings': {row: _means(metrics) for row, metrics in full.items() if row not in headline},
    'per_seed': full,
    'seeds': sorted({run.seed for run in runs}),
    'seconds': round(seconds, 1),
    'versions': versions(),
  }
  write_file(path, json.dumps(content, indent=1) + '\n')


def _means(metrics: Mapping[str, Sequence[float]]) -> dict[str, float]:
  return {key: float(np.mean(v)) for key, v in metrics.items()}
