"""Runs a study of embedders and writes its page.

  python -m align_jax.embedding_study --config=configs/study_saha.py --workdir=runs/study_saha

Stopped at any moment, the same command goes on where it was. The page is written anew after each
level and seed, of what there is by then.
"""

from pathlib import Path

from absl import flags

from align_jax import cli
from align_jax.config import build
from align_jax.embedding_study.config import EmbeddingStudyConfig
from align_jax.embedding_study.page import write_results
from align_jax.embedding_study.runner import Found, run_study
from align_jax.embedding_study.summary import markdown, tables, verdict
from align_jax.study.clock import Clock

_CONFIG = cli.define_config()
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the study: runs, metrics, report.', required=True
)


def main() -> None:
  """Runs every piece that is not done; prints tables and verdict, writes the page."""
  config = build(EmbeddingStudyConfig, _CONFIG.value.to_dict())
  workdir = Path(_WORKDIR.value)

  def write(found: Found, clock: Clock) -> None:
    write_results(workdir, config, found, clock.seconds)

  found, clock = run_study(config, workdir, write)
  write(found, clock)
  print('\n'.join(markdown(table) for table in tables(config, found)))
  print(verdict(config, found))
  print(f'report: {workdir / "report.html"}   numbers: {workdir / "metrics.json"}')


if __name__ == '__main__':
  cli.run(main)
