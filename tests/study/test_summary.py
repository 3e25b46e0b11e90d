"""The tables and the plot of a study's results, from numbers alone."""

import numpy as np
import pytest

from align_jax.config import build
from align_jax.evaluation.report import HEADLINE, METRICS
from align_jax.study.config import StudyConfig
from align_jax.study.summary import tables, write_summary
from configs import demo, study_diversity, study_gmail


def study(config=study_gmail):
  config = build(StudyConfig, config.get_config().to_dict())
  values = {}
  for number, arm in enumerate(config.arms):
    for reading in arm.readings:
      row = arm.name if len(arm.readings) == 1 else f'{arm.name} ({reading})'
      values[row] = {key: [0.1 + 0.01 * number, 0.2, 0.3] for key in config.headline}
  return config, values


def test_tables_hold_every_arm_with_mean_and_spread():
  config, values = study()
  lines = tables(config, values).splitlines()
  for arm in config.arms:
    assert sum(line.startswith(f'| {arm.title} |') for line in lines) == 1
  found = next(line for line in lines if line.startswith('| real only |'))
  seeds = 100 * np.array([0.11, 0.2, 0.3])
  assert f'| {seeds.mean():.1f} ± {seeds.std(ddof=1):.1f} |' in found
  assert sum('aligned_encoder' in line for line in lines) == sum(
    len(arm.readings) > 1 for arm in config.arms
  )
  assert METRICS[HEADLINE[0]].label in lines[2]


@pytest.mark.parametrize(('config', 'groups'), [(study_gmail, 7), (demo, 1), (study_diversity, 2)])
def test_files_are_written(tmp_path, config, groups):
  write_summary(tmp_path, *study(config))
  assert (tmp_path / 'results.md').read_text().count('### ') == groups
  assert (tmp_path / 'results.png').read_bytes().startswith(b'\x89PNG')
