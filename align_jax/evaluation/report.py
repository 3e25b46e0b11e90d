"""The report page: sections in, one HTML file out that needs neither server nor network."""

import base64
import dataclasses
import html
import re
from collections.abc import Mapping, Sequence
from typing import Literal

import jinja2
import numpy as np
from markupsafe import Markup

from align_jax.evaluation import plots
from align_jax.evaluation.pictures import Row
from align_jax.files import write_file
from align_jax.storage import AnyPath


@dataclasses.dataclass(frozen=True)
class Metric:
  """How a number is shown: a heading, which direction is better ('' for a diagnosis), its unit."""

  label: str
  better: Literal['higher', 'lower', ''] = ''
  percent: bool = False


METRICS = {
  'retrieval.t2i.r1': Metric('Text → image R@1', 'higher', True),
  'retrieval.t2i.r5': Metric('Text → image R@5', 'higher', True),
  'retrieval.t2i.r10': Metric('Text → image R@10', 'higher', True),
  'retrieval.t2i.median_rank': Metric('Text → image median rank', 'lower'),
  'retrieval.i2t.r1': Metric('Image → text R@1', 'higher', True),
  'retrieval.i2t.r5': Metric('Image → text R@5', 'higher', True),
  'retrieval.i2t.r10': Metric('Image → text R@10', 'higher', True),
  'retrieval.i2t.median_rank': Metric('Image → text median rank', 'lower'),
  'zero_shot.top1': Metric('Zero-shot top\u20111', 'higher', True),
  'zero_shot.top5': Metric('Zero-shot top\u20115', 'higher', True),
  'zero_shot.balanced': Metric('Zero-shot balanced', 'higher', True),
  'zero_shot.frequent': Metric('Zero-shot, frequent classes', 'higher', True),
  'zero_shot.common': Metric('Zero-shot, common classes', 'higher', True),
  'zero_shot.rare': Metric('Zero-shot, rare classes', 'higher', True),
  'probe.linear': Metric('Linear probe', 'higher', True),
  'probe.knn': Metric('kNN probe', 'higher', True),
  'probe.unknown': Metric('Probe: unknown class', '', True),
  'captions.exact': Metric('Captions all right', 'higher', True),
  'captions.object': Metric('Objects named', 'higher', True),
  'captions.colour': Metric('Objects with colour', 'higher', True),
  'captions.count': Metric('Objects with number', 'higher', True),
  'captions.attributes': Metric('Objects with both', 'higher', True),
  'captions.invented': Metric('Named, but not there', 'lower', True),
  'captions.bleu4': Metric('BLEU\u20114', 'higher', True),
  'captions.cider': Metric('CIDEr\u2011D', 'higher'),
  'captions.clip_score': Metric('CLIPScore', 'higher'),
  'captions.ref_clip_score': Metric('RefCLIPScore', 'higher'),
  # Of the gap, less is not simply better: a collapsed model has none.
  'gap.auc': Metric('Gap AUC'),
  'gap.paired_cosine': Metric('Paired cosine'),
  'gap.unpaired_cosine': Metric('Unpaired cosine'),
  'gap.centroid_distance': Metric('Centroid distance'),
  'gap.alignment': Metric('Alignment'),
  'gap.uniformity': Metric('Uniformity, real'),
  'gap.uniformity_generated': Metric('Uniformity, generated'),
  # Of a batch plan: harder is not simply better.
  'plan.false_negatives': Metric('False negatives of the plan', '', True),
  'plan.true_negative_cosine': Metric('Cosine of its true negatives'),
  'plan.negative_cosine': Metric('Cosine of its negatives'),
  'plan.positive_cosine': Metric('Cosine of its positives'),
  'plan.above': Metric('Negatives above the positive', '', True),
  'plan.members': Metric('Pairs in a cluster', '', True),
}
HEADLINE = (
  'retrieval.t2i.r1',
  'retrieval.i2t.r1',
  'zero_shot.top1',
  'probe.linear',
  'probe.knn',
  'gap.auc',
  'gap.paired_cosine',
)


def metric_table(
  title: str,
  results: Mapping[str, Mapping[str, float | Sequence[float]]],
  *,
  keys: Sequence[str] | None = None,
  names: Mapping[str, str] | None = None,
  note: str = 'Measured on held-out real images.',
  metrics: Mapping[str, Metric] = METRICS,
) -> 'Table':
  """Returns a table of arms (rows) by metrics (columns), the best value of a column marked.

  Args:
    results: arm to metric key to a value, or to one value a seed: shown as mean ± sample standard
      deviation. A metric that an arm does not have leaves its cell empty.
    keys: the columns; None: the headline metrics that any arm has.
    names: arm to what the reader sees.
    note: the line under the title.
    metrics: how each is shown.
  """
  if keys is None:
    keys = [key for key in HEADLINE if any(key in values for values in results.values())]
  columns = []
  for key in keys:
    metric = metrics.get(key, Metric(key))
    cells = [_cell(values.get(key), metric.percent) for values in results.values()]
    columns.append(_mark_best(cells, metric.better))
  seeds = max((np.size(v) for values in results.values() for v in values.values()), default=1)
  if seeds > 1:
    note += f' Mean ± standard deviation of {seeds} seeds.'
  rows = tuple(
    ((names or {}).get(arm, arm), tuple(column[i] for column in columns))
    for i, arm in enumerate(results)
  )
  heads = (metrics.get(key, Metric(key)) for key in keys)
  return Table(title, tuple(f'{m.label}{" (%)" if m.percent else ""}' for m in heads), rows, note)


def write_report(path: AnyPath | str, report: 'Report') -> None:
  """Writes the page; a reader sees either the page before or the whole new one.

  Raises:
    UserError: the folder cannot be written to, or the disk is full.
  """
  write_file(path, render(report))


def make_environment() -> jinja2.Environment:
  """What finds this package's templates; text is escaped, and a name without a value an error."""
  return jinja2.Environment(
    loader=jinja2.PackageLoader('align_jax.evaluation'),
    autoescape=True,  # by hand: the default looks at the file's ending, and ours is .j2
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )


def render(report: 'Report') -> str:
  """Returns the page as text."""
  environment = make_environment()
  environment.filters['data_uri'] = _data_uri
  environment.filters['code'] = _code
  environment.filters['anchor'] = lambda text: re.sub(r'[^a-z0-9]+', '-', text.lower()).strip('-')
  environment.filters['kind'] = lambda section: type(section).__name__
  drawn = (s.figures() if isinstance(s, Curves) else s for s in report.sections)
  sections = [s for s in drawn if _filled(s)]
  return environment.get_template('report.html.j2').render(report=report, sections=sections)


@dataclasses.dataclass(frozen=True)
class Cell:
  """One value of a table: its text, the spread after ±, whether it is the column's best."""

  text: str
  spread: str = ''
  best: bool = False
  value: float | None = None


@dataclasses.dataclass(frozen=True)
class Table:
  """Named rows of cells under headings; `metric_table` makes one from results."""

  title: str
  heads: tuple[str, ...]
  rows: tuple[tuple[str, tuple[Cell, ...]], ...]
  note: str = ''


@dataclasses.dataclass(frozen=True)
class Figure:
  """One drawing: SVG or PNG bytes, and the text under it, which also describes it to the blind.

  Attributes:
    legend: colour (CSS) and name of what is shown, where the drawing itself has no room.
    wide: it takes the whole width of the page.
  """

  image: bytes
  caption: str = ''
  legend: tuple[tuple[str, str], ...] = ()
  wide: bool = False


@dataclasses.dataclass(frozen=True)
class Figures:
  """Drawings side by side, where the screen is wide enough."""

  title: str
  items: tuple[Figure, ...]
  note: str = ''


@dataclasses.dataclass(frozen=True)
class Curve:
  """Lines over a shared axis: name to points `(step, value)`."""

  series: Mapping[str, plots.Points]
  caption: str = ''
  x_label: str = 'step'
  y_label: str = ''
  percent: bool = False
  log_x: bool = False


@dataclasses.dataclass(frozen=True)
class Curves:
  """Line plots side by side."""

  title: str
  items: tuple[Curve, ...]
  note: str = ''

  def figures(self) -> Figures:
    """Draws them; lines without a point are left out."""
    drawn = []
    for item in self.items:
      series = {name: points for name, points in item.series.items() if len(points)}
      if series:
        svg = plots.curves(
          series,
          x_label=item.x_label,
          y_label=item.y_label,
          percent=item.percent,
          log_x=item.log_x,
        )
        drawn.append(Figure(svg, item.caption))
    return Figures(self.title, tuple(drawn), self.note)


@dataclasses.dataclass(frozen=True)
class Pictures:
  """Rows of pictures, each row with its own title."""

  title: str
  rows: tuple[Row, ...]
  note: str = ''


@dataclasses.dataclass(frozen=True)
class Facts:
  """Named values in a small table, with drawings beside it."""

  title: str
  rows: tuple[tuple[str, str], ...]
  figures: tuple[Figure, ...] = ()
  note: str = ''


@dataclasses.dataclass(frozen=True)
class Text:
  """Paragraphs, apart by an empty line."""

  title: str
  text: str
  note: str = ''


@dataclasses.dataclass(frozen=True)
class Details:
  """Named blocks of fixed-width text, folded away: command, versions, config, licence, timings."""

  title: str
  items: tuple[tuple[str, str], ...]
  note: str = ''


Section = Table | Figures | Curves | Pictures | Facts | Text | Details


@dataclasses.dataclass(frozen=True)
class Report:
  """A page.

  Attributes:
    title: what was run.
    verdict: the outcome in one sentence, for a reader who reads nothing else; lines where there are
      several findings.
    sections: in the order shown; one with nothing in it is left out.
    lead: a short line under the verdict: data, size, time.
  """

  title: str
  verdict: str
  sections: tuple[Section, ...]
  lead: str = ''


def _filled(section: 'Section') -> bool:
  return any(getattr(section, name, ()) for name in ('rows', 'items', 'text'))


def _cell(value: float | Sequence[float] | None, percent: bool) -> Cell:
  values = np.atleast_1d(np.asarray([] if value is None else value, np.float64))
  if not values.size:
    return Cell('–')
  scale, digits = (100, 1) if percent else (1, 3)
  mean = float(values.mean()) * scale
  if not np.isfinite(mean):
    return Cell('not finite')
  spread = f'{values.std(ddof=1) * scale:.{digits}f}' if values.size > 1 else ''
  return Cell(f'{mean:.{digits}f}', spread, value=mean)


def _mark_best(cells: Sequence[Cell], better: str) -> list[Cell]:
  """Marks the best of a column, and what reads the same; nothing where there is no choice."""
  values = [cell.value for cell in cells if cell.value is not None]
  if not better or len(values) < 2:
    return list(cells)
  best = max(values) if better == 'higher' else min(values)
  shown = next(cell.text for cell in cells if cell.value == best)
  return [dataclasses.replace(cell, best=cell.text == shown) for cell in cells]


def _data_uri(image: bytes) -> str:
  kind = 'png' if image.startswith(b'\x89PNG') else 'svg+xml'
  return f'data:image/{kind};base64,{base64.b64encode(image).decode()}'


def _code(text: str) -> Markup:
  """Returns `text` escaped, with long words free to break after the marks that join them."""
  return Markup(re.sub(r'([/=,])', r'\1<wbr>', html.escape(text, quote=False)))
