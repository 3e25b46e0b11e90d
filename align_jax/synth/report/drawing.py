"""Figures of the engine's report, in the style of `evaluation.plots`."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from align_jax.evaluation import plots

_ASKED, _KEPT, _FAILED, _DROPPED = '#8c8c8c', '#009e73', '#d55e00', '#e69f00'
_MOST_STEPS = 12
_MOST_STEPS_DRAWN = 200  # of an outline as letters; a longer one is smaller as pixels
_DPI = 120  # of the points of a map: they are pixels within the drawing, its letters stay letters


@dataclasses.dataclass(frozen=True)
class Cloud:
  """Points of one kind in a map; a cloud without a name is not in the legend."""

  name: str
  points: Float[np.ndarray, 'n 2']
  colour: str
  mark: str


def funnel(asked: int, losses: Mapping[str, int], kept: int) -> bytes:
  """Draws what is left after each loss, from top to bottom, as SVG.

  Args:
    asked: images at the start.
    losses: name to how many go, in order; `failed: …` have a colour of their own.
    kept: what is left.
  """
  steps = list(losses.items())
  if len(steps) > _MOST_STEPS:
    rest = steps[_MOST_STEPS - 1 :]
    steps = [*steps[: _MOST_STEPS - 1], (f'{len(rest)} other reasons', sum(n for _, n in rest))]
  bars = [('asked', 0, asked, _ASKED)]
  left = asked
  for name, number in steps:
    left -= number
    bars.append((name, left, number, _FAILED if name.startswith('failed') else _DROPPED))
  bars.append(('kept', 0, kept, _KEPT))
  with rc_context(plots.STYLE):
    figure = Figure(figsize=(5.4, 1.0 + 0.32 * len(bars)), layout='constrained')
    axes = figure.add_subplot()
    for place, (_, start, number, colour) in enumerate(bars):
      axes.barh(place, number, left=start, color=colour, height=0.7)
      axes.annotate(
        f'{number:,}' if place in (0, len(bars) - 1) else f'−{number:,}',
        (start + number, place),
        xytext=(4, 0),
        textcoords='offset points',
        va='center',
        fontsize=9,
      )
    axes.set_yticks(
      range(len(bars)), [name if len(name) < 33 else name[:32] + '…' for name, *_ in bars]
    )
    axes.invert_yaxis()
    axes.grid(False, axis='y')
    axes.set_xlim(0, 1.15 * max(1, asked))  # room for the number behind the longest bar
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel('images')
    return plots.svg(figure)


def counts(parts: Mapping[str, Sequence[int]], *, x_label: str) -> bytes:
  """Draws the images of each category, one part on the other, as SVG.

  Args:
    parts: `real`, `kept` and `not kept`: one number a category.
  """
  colours = {'real': plots.REAL, 'kept': plots.GENERATED, 'not kept': plots.PALETTE[6]}
  with rc_context(plots.STYLE):
    figure, axes = plots.blank()
    figure.set_dpi(_DPI)
    number = max(map(len, parts.values()))
    low = np.zeros(number + 1)
    for name, values in parts.items():
      high = low + np.asarray([*values[:1], *values], np.float64)
      if any(values):
        label = name if name == 'real' else f'generated, {name}'
        axes.fill_between(
          range(number + 1),
          low,
          high,
          step='pre',
          color=colours[name],
          linewidth=0,
          label=label,
          rasterized=number > _MOST_STEPS_DRAWN,
        )
      low = high
    axes.set_xlim(0, number)
    axes.set_ylim(0, None)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel(x_label)
    axes.set_ylabel('images')
    plots.legend(axes, len(parts))
    return plots.svg(figure)


def histogram(
  generated: Float[np.ndarray, 'generated'],
  real: Float[np.ndarray, 'real'],
  *,
  lower: Sequence[float] = (),
  upper: float | None = None,
  x_label: str = '',
) -> bytes:
  """Draws how scores of real and of generated images are spread, with the cuts, as SVG.

  Args:
    real: empty if there are none.
    lower: cuts from below; of several, their middle is a line and their range a band.
    upper: cut from above.
  """
  with rc_context(plots.STYLE):
    figure, axes = plots.blank()
    every = np.concatenate([generated, real, lower, [] if upper is None else [upper]])
    low, high = float(every.min()), float(every.max())
    margin = (high - low) / 40 or 0.5
    bins = np.linspace(low - margin, high + margin, 43).tolist()
    for name, values, colour in (
      ('real', real, plots.REAL),
      ('generated', generated, plots.GENERATED),
    ):
      if len(values):
        axes.hist(
          values,
          bins,
          weights=np.full(len(values), 100 / len(values)),
          color=colour,
          alpha=0.35,
          histtype='stepfilled',
          edgecolor=colour,
          linewidth=1.5,
          label=f'{name}: mean {values.mean():.2f}',
        )
    if len(lower):
      if len(lower) > 1:
        axes.axvspan(min(lower), max(lower), color=plots.PALETTE[6], alpha=0.2, linewidth=0)
      middle = float(np.median(lower))
      words = f'cut at {middle:.2f}' if len(lower) == 1 else f'cuts, middle {middle:.2f}'
      axes.axvline(middle, color=_FAILED, linewidth=1.8, linestyle='--', label=words)
    if upper is not None:
      axes.axvline(upper, color=_FAILED, linewidth=1.8, linestyle=':', label=f'cut at {upper:.2f}')
    axes.set_xlabel(x_label)
    axes.set_ylabel('images of each kind (%)')
    plots.legend(axes, 2)
    return plots.svg(figure)


def clouds(items: Sequence[Cloud]) -> bytes:
  """Draws kinds of points in the plane as SVG; within it the points are pixels."""
  with rc_context(plots.STYLE):
    figure = Figure(figsize=(5.4, 5.4), dpi=_DPI, layout='constrained')
    axes = figure.add_subplot()
    total = sum(len(cloud.points) for cloud in items)
    size = float(np.clip(9000 / max(1, total), 8, 30))
    # A share of each kind in turn: drawn last as a whole, one would hide the others.
    for part in range(8):
      for cloud in items:
        some = cloud.points[part::8]
        axes.scatter(
          some[:, 0],
          some[:, 1],
          s=size,
          c=cloud.colour,
          marker=cloud.mark,
          alpha=0.7,
          linewidths=0,
          rasterized=True,
        )
    for cloud in items:
      if cloud.name:
        axes.scatter([], [], s=28, c=cloud.colour, marker=cloud.mark, label=cloud.name)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel('UMAP, first axis')
    axes.set_ylabel('UMAP, second axis')
    plots.legend(axes, len(items))
    return plots.svg(figure)
