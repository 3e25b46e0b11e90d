"""A study of embedders as a picture: hit@1 by prompt and strategy, and how clusters are."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from align_jax.embedding_study.config import EmbeddingStudyConfig
from align_jax.embedding_study.runner import Found
from align_jax.evaluation.plots import PALETTE

_MARKS = ('o', 's', '^', 'D', 'v', 'P', 'X', '*')
_HATCHES = ('', '///', '...')  # tell the second strategy of a colour from the first


def plot(config: EmbeddingStudyConfig, found: Found) -> bytes:
  """Returns the picture as PNG: bars with a dot for each seed, and clusters of the first level."""
  figure = Figure(figsize=(12, 5), layout='constrained')
  left, right = figure.subplots(1, 2, width_ratios=(2.2, 1))
  _draw_levels(left, config, found)
  _draw_clusters(right, config, found.by_strategy(config.levels[0].name))
  figure.legend(
    *left.get_legend_handles_labels(),
    loc='outside lower center',
    ncols=5,
    fontsize=8,
    frameon=False,
  )
  for axes in (left, right):
    axes.spines[['top', 'right']].set_visible(False)
  image = io.BytesIO()
  figure.savefig(image, dpi=150)
  return image.getvalue()


def _draw_levels(axes: Axes, config: EmbeddingStudyConfig, found: Found) -> None:
  width = 0.8 / len(config.strategies)
  for place, level in enumerate(config.levels):
    rows = found.by_strategy(level.name)
    for number, strategy in enumerate(config.strategies):
      values = 100 * np.asarray(rows.get(strategy.name, {}).get('average', ()))
      if not len(values):
        continue
      at = place + (number - (len(config.strategies) - 1) / 2) * width
      turn, colour = divmod(number, len(PALETTE))
      axes.bar(
        at,
        values.mean(),
        width * 0.9,
        color=PALETTE[colour],
        hatch=_HATCHES[turn % len(_HATCHES)],
        edgecolor='white',
        alpha=0.75,
        label=strategy.title if place == 0 else None,
      )
      axes.plot(np.full(len(values), at), values, '.', color='black', markersize=3)
    if level.name in found.zero_shot:
      before = 100 * found.zero_shot[level.name]['average']
      label = 'before any contrastive step' if place == 0 else None
      axes.plot([place - 0.42, place + 0.42], [before] * 2, '--', color='black', lw=1, label=label)
  axes.set_xticks(range(len(config.levels)), [f'prompt: {each.title}' for each in config.levels])
  axes.set_ylabel('hit@1, all tasks (%)')


def _draw_clusters(
  axes: Axes, config: EmbeddingStudyConfig, rows: Mapping[str, Mapping[str, Sequence[float]]]
) -> None:
  for number, strategy in enumerate(config.strategies):
    row = rows.get(strategy.name, {})
    if 'false_negatives' in row and 'true_negative_cosine' in row:
      axes.plot(
        100 * np.mean(row['false_negatives']),
        np.mean(row['true_negative_cosine']),
        _MARKS[number % len(_MARKS)],
        color=PALETTE[number % len(PALETTE)],
        markersize=8,
        label=strategy.title,
      )
  if axes.lines:
    axes.legend(loc='best', fontsize=7, frameon=False)
  axes.set_xlabel(f'false negatives (%), prompt: {config.levels[0].title}')
  axes.set_ylabel('cosine of true negatives (harder ↑)')
