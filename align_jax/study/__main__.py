"""Runs a study and writes its page.

  python -m align_jax.study --config=configs/demo.py --workdir=runs/demo

Stopped at any moment, the same command goes on where it was.
"""

from pathlib import Path

from absl import flags

from align_jax import cli
from align_jax.config import build
from align_jax.evaluation.report import metric_table
from align_jax.study.clock import PAGE
from align_jax.study.config import StudyConfig
from align_jax.study.page import verdict, write_page
from align_jax.study.results import by_arm, write_metrics
from align_jax.study.runner import run_study
from align_jax.study.specs import split_specs
from align_jax.study.summary import write_summary

_CONFIG = cli.define_config()
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the study: runs, metrics, report.', required=True
)


def main() -> None:
  """Runs every piece that is not done; prints the table, writes metrics, results and report."""
  config = build(StudyConfig, _CONFIG.value.to_dict())
  workdir = Path(_WORKDIR.value)
  runs, clock = run_study(config, workdir)
  with clock.piece('report', PAGE):
    specs = split_specs(config, workdir)
    write_page(workdir / 'report.html', config, specs, runs, clock.seconds)
  write_metrics(workdir / 'metrics.json', runs, sum(clock.seconds.values()))
  write_summary(workdir, config, by_arm(runs, all_readings=True))
  print(text_table(config, by_arm(runs)))
  print(verdict(runs, config))
  print(f'report: {workdir / "report.html"}   numbers: {workdir / "metrics.json"}')


def text_table(config: StudyConfig, values) -> str:
  """The headline table for a terminal."""
  names = {arm.name: arm.title for arm in config.arms if not arm.group}
  rows = {name: values[name] for name in names}
  table = metric_table(
    '',
    rows,
    keys=[k for k in config.headline if any(k in row for row in rows.values())],
    names=names,
  )
  cells = [['', *table.heads]]
  for name, row in table.rows:
    cells.append([name, *(c.text + (f' ± {c.spread}' if c.spread else '') for c in row)])
  widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
  return '\n'.join(
    '  '.join(
      c.ljust(w) if i == 0 else c.rjust(w)
      for i, (c, w) in enumerate(zip(line, widths, strict=True))
    )
    for line in cells
  )


if __name__ == '__main__':
  cli.run(main)
