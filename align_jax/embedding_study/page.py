"""The page of a study of embedders, and its files."""

import sys
from collections.abc import Mapping
from pathlib import Path

from align_jax.data.pair_sources import open_pairs
from align_jax.embedding_study.config import EmbeddingStudyConfig
from align_jax.embedding_study.plot import plot
from align_jax.embedding_study.runner import Found
from align_jax.embedding_study.summary import markdown, tables, verdict, write_metrics
from align_jax.evaluation import sections
from align_jax.evaluation.report import (
  Curve,
  Curves,
  Details,
  Figure,
  Figures,
  Report,
  Text,
  write_report,
)
from align_jax.files import write_file
from align_jax.train.metrics import read_metrics

_QUESTION = (
  'Every cell starts from the same generative model and encodes as many pairs. Its pairs are '
  'embedded by that model at the prompt of the cell, the strategy makes clusters of them, and '
  'training follows the clusters: a batch holds whole ones. Of other seeds are the pairs, the '
  'clusters, their order and the adapters; the model that they start from is of one seed, so that '
  'the spread says nothing about it.'
)
_CAPTION = (
  'Left: hit@1 of all tasks together, a dot for each seed. Right: how hard the true negatives of '
  'the clusters are, and how many of all negatives are false.'
)


def write_results(
  workdir: Path, config: EmbeddingStudyConfig, found: Found, seconds: Mapping[str, float]
) -> None:
  """Writes `report.html`, `results.md`, `results.png` and `metrics.json`, also of one under way."""
  made, said, drawn = tables(config, found), verdict(config, found), plot(config, found)
  report = Report(
    title=config.title,
    verdict=said,
    lead=f'{len(config.levels)} prompts, {len(config.strategies)} strategies, '
    f'{len(config.seeds)} seeds; {len(found.cells)} of {config.cells} cells, {config.encoded:,} '
    f'encoded pairs each; {sum(seconds.values()) / 60:.0f} minutes.',
    sections=(
      Figures('All strategies', (Figure(drawn, _CAPTION, wide=True),)),
      *made,
      Text('What was compared', _QUESTION),
      *_curves(config, found),
      _details(config, seconds),
    ),
  )
  write_report(workdir / 'report.html', report)
  parts = [*(line + '\n' for line in said.splitlines()), *map(markdown, made)]
  write_file(workdir / 'results.md', '\n'.join(parts))
  write_file(workdir / 'results.png', drawn)
  write_metrics(workdir / 'metrics.json', config, found, seconds)


def _curves(config: EmbeddingStudyConfig, found: Found) -> list[Curves]:
  """The loss of each strategy: on its own batches, so that harder ones stand higher."""
  seed = config.seeds[0]
  titles = {strategy.name: strategy.title for strategy in config.strategies}
  items = []
  for level in config.levels:
    lines = {
      titles[cell.strategy]: [
        (float(line['step']), line['loss'])
        for line in read_metrics(cell.run)
        if line.get('loss') is not None
      ]
      for cell in found.cells
      if (cell.level, cell.seed) == (level.name, seed)
    }
    items.append(Curve(lines, f'Prompt: {level.title}.', y_label='nats'))
  return [Curves('Training', tuple(items), f'Loss on own batches, seed {seed}.')]


def _details(config: EmbeddingStudyConfig, seconds: Mapping[str, float]) -> Details:
  spec = config.pairs_of(config.seeds[0])
  return sections.run_details(sys.orig_argv, config, {spec: open_pairs(spec).licence}, seconds)
