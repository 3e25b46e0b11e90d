"""The report's figures: matplotlib without a display, one palette, readable on light and dark."""

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers; the blue is a little lighter than
# theirs, to stand out from a dark page too.
PALETTE = ('#1f83c4', '#e69f00', '#009e73', '#cc79a7', '#56b4e9', '#d55e00', '#8c8c8c')
REAL, GENERATED = PALETTE[0], PALETTE[1]
BEFORE, AFTER = PALETTE[6], PALETTE[2]
Points = Sequence[tuple[int | float, int | float]]  # (x, y)
_MARKS = ('o', 's', '^', 'D', 'v', 'P', 'X')
# Ink that the SVG swaps by the reader's scheme: matplotlib wants a fixed colour, so a rare one
# stands in for it until the picture is text.
_INK, _RULE = '#123457', '#abcde1'
_SCHEME = (
  '<style>:root{--ink:#3d444d;--rule:#d5dae0}'
  '@media (prefers-color-scheme:dark){:root{--ink:#c3c9d1;--rule:#3a414a}}</style>'
)
STYLE: Any = {  # keys of rcParams, a type of its own in some versions
  'axes.axisbelow': True,
  'axes.edgecolor': _RULE,
  'axes.facecolor': 'none',
  'axes.grid': True,
  'axes.labelcolor': _INK,
  'axes.spines.right': False,
  'axes.spines.top': False,
  'figure.facecolor': 'none',
  'font.family': 'sans-serif',
  'font.sans-serif': ['DejaVu Sans'],
  'font.size': 10,
  'grid.color': _RULE,
  'grid.linewidth': 0.6,
  'legend.frameon': False,
  'legend.labelcolor': _INK,
  'savefig.facecolor': 'none',
  'svg.fonttype': 'none',  # letters stay letters: smaller, sharp, and a reader can select them
  'svg.hashsalt': 'align_jax',  # the same figure gives the same bytes
  'text.color': _INK,
  'text.parse_math': False,  # a dollar sign in a name is a dollar sign
  'xtick.color': _INK,
  'ytick.color': _INK,
  'xtick.labelsize': 9,
  'ytick.labelsize': 9,
  'xtick.major.size': 0,
  'ytick.major.size': 0,
}


def curves(
  series: Mapping[str, Points],
  *,
  x_label: str = 'step',
  y_label: str = '',
  percent: bool = False,
  log_x: bool = False,
) -> bytes:
  """Draws lines as SVG.

  Args:
    series: name to points `(x, y)`; a point that is not finite leaves a hole in its line.
    percent: y is a share in [0, 1], shown as a percentage.
    log_x: x on a base-2 logarithmic scale, for 1×, 2×, 4×, ....
  """
  with rc_context(STYLE):
    figure, axes = blank()
    for i, (name, points) in enumerate(series.items()):
      x, y = np.asarray(points, np.float64).reshape(-1, 2).T
      colour, mark = PALETTE[i % len(PALETTE)], _MARKS[i % len(_MARKS)]
      # Marks as well as colours, but not so many that they hide the line.
      axes.plot(
        x,
        y * (100 if percent else 1),
        color=colour,
        marker=mark,
        markersize=4,
        linewidth=1.8,
        markevery=max(1, len(x) // 8),
        label=name,
      )
    if log_x:
      axes.set_xscale('log', base=2)
      ticks = sorted({float(x) for points in series.values() for x, _ in points})
      axes.set_xticks(ticks, [f'{tick:g}' for tick in ticks])
      axes.minorticks_off()
    axes.set_xlabel(x_label)
    axes.set_ylabel(f'{y_label} (%)'.strip() if percent else y_label)
    legend(axes, len(series))
    return svg(figure)


def stacked(
  edges: Sequence[int | float],
  parts: Mapping[str, Sequence[float]],
  *,
  x_label: str = 'step',
  y_label: str = '',
  top: float | None = None,
) -> bytes:
  """Draws parts of a whole, one on the other and constant between two edges, as SVG.

  Args:
    edges: along x, one more than there are values of a part.
    parts: name to values; one that is 0 throughout is left out.
    top: where y ends; None: above the highest.
  """
  with rc_context(STYLE):
    figure, axes = blank()
    low = np.zeros(len(edges))
    for colour, (name, values) in zip(PALETTE, parts.items(), strict=False):
      if not any(values):
        continue
      high = low + np.asarray([*values[:1], *values], np.float64)
      axes.fill_between(edges, low, high, step='pre', color=colour, linewidth=0, label=name)
      low = high
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, top or None)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    legend(axes, len(parts))
    return svg(figure)


def cosine_histogram(values: Mapping[str, Float[np.ndarray, '_']]) -> bytes:
  """Draws how the cosines of real-generated pairs are spread, one outline a name, as SVG."""
  with rc_context(STYLE):
    figure, axes = blank()
    everything = np.concatenate([np.asarray(v, np.float64) for v in values.values()])
    low = float(np.floor(max(-1.0, everything.min()) * 20) / 20)
    bins = np.linspace(min(low, 0.9), 1.0, 41).tolist()
    colours = (BEFORE, AFTER, *PALETTE[:2])
    for i, (name, cosines) in enumerate(values.items()):
      colour = colours[i % len(colours)]
      share = np.full(len(cosines), 100 / max(1, len(cosines)))
      axes.hist(
        np.clip(cosines, bins[0], 1.0),
        bins,
        weights=share,
        color=colour,
        alpha=0.35,
        histtype='stepfilled',
        edgecolor=colour,
        linewidth=1.5,
        label=f'{name}: mean {np.mean(cosines):.2f}',
      )
      axes.axvline(float(np.mean(cosines)), color=colour, linewidth=1.5, linestyle='--')
    axes.set_xlabel('cosine of a generated image and its real partner')
    axes.set_ylabel('pairs (%)')
    legend(axes, 1)
    return svg(figure)


def scatter(
  real: Float[np.ndarray, 'real 2'],
  generated: Float[np.ndarray, 'generated 2'],
  links: Sequence[tuple[int, int]] = (),
) -> bytes:
  """Draws a map of real and generated images as PNG; some pairs `(real, generated)` are linked."""
  with rc_context(STYLE):
    figure = Figure(figsize=(4.4, 4.4), layout='constrained')
    axes = figure.add_subplot()
    size = float(np.clip(9000 / max(1, len(real) + len(generated)), 5, 30))
    for a, b in links:
      ends = np.stack([real[a], generated[b]])
      axes.plot(*ends.T, color='#808080', linewidth=0.8, alpha=0.8, zorder=1)
    # A share of each kind in turn: drawn last as a whole, one would hide the other.
    for part in range(8):
      for points, colour, mark in ((real, REAL, 'o'), (generated, GENERATED, '^')):
        some = points[part::8]
        axes.scatter(
          some[:, 0], some[:, 1], s=size, c=colour, marker=mark, alpha=0.7, linewidths=0, zorder=2
        )
    axes.set_axis_off()
    axes.set_aspect('equal', adjustable='datalim')
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=150, metadata={'Software': ''})
    return buffer.getvalue()


def umap_map(
  real: Float[np.ndarray, 'real dim'], generated: Float[np.ndarray, 'generated dim'], seed: int = 0
) -> tuple[Float[np.ndarray, 'real 2'], Float[np.ndarray, 'generated 2']]:
  """Lays real and generated embeddings out in the plane, together, by cosine.

  Distances between far clusters mean little in such a map; which points mix does.

  Source: McInnes et al. 2018, arXiv 1802.03426.
  """
  # Imported here: umap pulls in numba and compiles, seconds that only a report should pay.
  import umap

  both = np.concatenate([real, generated]).astype(np.float32)
  if len(both) < 8:  # too few for a neighbour graph: the two main directions instead
    centred = both - both.mean(axis=0)
    spread = np.linalg.svd(centred, full_matrices=False)[2][:2]
    plane = centred @ spread.T
    plane = np.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))
  else:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # a fixed seed means one thread, which umap warns about
      # Started from the main directions: the spectral start fails on equal or few points.
      layout = umap.UMAP(
        n_neighbors=min(15, len(both) - 1),
        min_dist=0.3,
        metric='cosine',
        init='pca',
        random_state=seed,
        n_jobs=1,
      )
      plane = layout.fit_transform(both)
  plane = np.nan_to_num(np.asarray(plane, np.float64))
  return plane[: len(real)], plane[len(real) :]


def blank() -> tuple[Figure, Axes]:
  """Returns an empty figure of the size that all plots of a page have."""
  # No pyplot: its figures live in global state and would pile up.
  figure = Figure(figsize=(5.4, 3.2), layout='constrained')
  return figure, figure.add_subplot()


def legend(axes: Axes, count: int) -> None:
  """Puts the legend above the plot, in two columns for more than one entry."""
  if axes.get_legend_handles_labels()[0]:
    axes.legend(
      loc='lower left',
      bbox_to_anchor=(0, 1),
      ncols=2 if count > 1 else 1,
      fontsize=9,
      borderaxespad=0,
      handlelength=1.6,
      columnspacing=1.2,
    )


def svg(figure: Figure) -> bytes:
  """Returns the figure as SVG whose ink follows the page's colours, light or dark."""
  buffer = io.BytesIO()
  figure.savefig(buffer, format='svg', metadata={'Date': None, 'Creator': None})
  text = buffer.getvalue().decode()
  text = text.replace(_INK, 'var(--ink)').replace(_RULE, 'var(--rule)')
  text = text.replace("'DejaVu Sans'", "system-ui, 'DejaVu Sans'")
  text = re.sub(r'(<svg[^>]*>)', lambda m: m.group(1) + _SCHEME, text, count=1)
  return text.encode()
