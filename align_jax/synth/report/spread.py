"""How generated embeddings lie to real ones: by what became of them, by generator, by strategy."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from align_jax.evaluation.distribution import Comparison, category_dispersion, compare, dispersion
from align_jax.evaluation.report import Cell, Table
from align_jax.synth.report.data import Number, Part, ReportConfig, ReportData, draw
from align_jax.synth.report.funnel import Outcome

# A group of fewer images does not bring the others down to its own number.
FEWEST = 200
_REAL = 'real images'
_TITLES = {
  'outcome': 'Distribution: kept and dropped',
  'generator': 'Distribution by generator',
  'strategy': 'Distribution by prompt strategy',
}
FRECHET = 'Fréchet distance on the encoder’s features, not FID'


@dataclasses.dataclass(frozen=True)
class Group:
  """Images measured together.

  Attributes:
    name: of the group.
    count: images of it that have embeddings.
    measured: its comparison with the real images; on as many rows as `generated_count` says.
    dispersion: of all its images; None of fewer than two.
    within: mean over its categories of their dispersion; None without a category of two.
  """

  name: str
  count: int
  measured: Comparison | None
  dispersion: float | None
  within: float | None


def make_spread(data: ReportData, found: Sequence[Outcome], config: ReportConfig) -> Part:
  """Returns a table of groups by what became of the images, one by generator, one by strategy.

  Args:
    found: what became of each of the images.
  """
  if not len(data.embeddings):
    return Part()
  families, categories = _families(data, found)
  reference, other = _halves(data, config)
  measured: dict[str, list[Group]] = {}
  numbers: dict[str, Number] = {}
  for family, groups in families.items():
    if family != 'outcome' and len(groups) < 2:
      continue  # the first table has it
    measured[family] = _measure(data, categories, groups, reference, other, config)
    for group in measured[family]:
      name = f'distribution.{family}.{group.name.replace(" ", "_")}'
      numbers |= {f'{name}.{key}': value for key, value in _values(group).items()}
  notes = {'outcome': _note(measured, data.encoder)}
  return Part(
    tuple(_table(_TITLES[f], groups, notes.get(f, '')) for f, groups in measured.items()), numbers
  )


def _families(
  data: ReportData, found: Sequence[Outcome]
) -> tuple[dict[str, dict[str, np.ndarray]], list[str]]:
  """Returns the rows of each group, by what parts them; and the category of every row."""
  images = {image.id: (image, o) for image, o in zip(data.images, found, strict=True)}
  rows = [images[id_] for id_ in data.embedded]
  categories = [image.category for image, _ in rows]
  # Without real images, extra categories mostly, there is nothing of their kind to compare with.
  known = set(data.real_categories)
  own = np.asarray([not known or category in known for category in categories])

  def split(names: Sequence[str]) -> dict[str, np.ndarray]:
    named = np.asarray(names, object)
    return {name: np.flatnonzero((named == name) & own) for name in sorted(set(names))}

  fates = split([outcome.kind for _, outcome in rows])
  families: dict[str, dict[str, np.ndarray]] = {
    'outcome': {
      'all': np.flatnonzero(own),
      **{kind: fates[kind] for kind in ('kept', 'dropped') if kind in fates},
      'without real images': np.flatnonzero(~own),
    },
    'generator': split([image.generator for image, _ in rows]),
    'strategy': split([image.strategy for image, _ in rows]),
  }
  return {
    family: {name: group for name, group in groups.items() if len(group)}
    for family, groups in families.items()
  }, categories


def _halves(data: ReportData, config: ReportConfig) -> tuple[np.ndarray, np.ndarray]:
  """Draws real images to compare with, and others that show what real ones score themselves.

  With few real images all are compared with, and there is no other half.
  """
  order = np.asarray(draw(data.real_ids, len(data.real_ids), config.seed), np.int64)
  if len(order) < 2 * FEWEST:
    return order[: config.metric_rows], order[:0]
  half = min(len(order) // 2, config.metric_rows)
  return order[:half], order[half : 2 * half]


def _measure(
  data: ReportData,
  categories: Sequence[str],
  groups: Mapping[str, np.ndarray],
  reference: np.ndarray,
  other: np.ndarray,
  config: ReportConfig,
) -> list[Group]:
  """Measures groups of generated images on equally many rows, and the other half of the real."""
  even = min((len(g) for g in groups.values() if len(g) >= FEWEST), default=config.metric_rows)
  even = min(even, config.metric_rows)
  real = data.real_embeddings[reference]
  out = []
  if len(data.real_embeddings):
    held = data.real_embeddings[other[:even]]
    measured = compare(real, held, config.neighbours) if len(held) else None
    out.append(_group(_REAL, data.real_embeddings, data.real_categories, measured))
  for name, group in groups.items():
    x = data.embeddings[group]
    some = x[draw((data.embedded[i] for i in group), even, config.seed)]
    measured = compare(real, some, config.neighbours) if len(real) else None
    out.append(_group(name, x, [categories[i] for i in group], measured))
  return out


def _group(
  name: str, x: np.ndarray, categories: Sequence[str], measured: Comparison | None
) -> Group:
  within = list(category_dispersion(x, categories).values())
  return Group(
    name=name,
    count=len(x),
    measured=measured,
    dispersion=dispersion(x) if len(x) > 1 else None,
    within=float(np.mean(within)) if within else None,
  )


def _values(group: Group) -> dict[str, Number]:
  m = group.measured
  manifold = None if m is None else m.manifold
  return {
    'images': group.count,
    'measured': 0 if m is None else m.generated_count,
    'dispersion': group.dispersion,
    'category_dispersion': group.within,
    'precision': None if manifold is None else manifold.precision,
    'recall': None if manifold is None else manifold.recall,
    'density': None if manifold is None else manifold.density,
    'coverage': None if manifold is None else manifold.coverage,
    'frechet_not_fid': None if m is None else m.frechet,
    'kernel': None if m is None else m.kernel,
  }


def _table(title: str, groups: Sequence[Group], note: str) -> Table:
  heads = (
    'images',
    'measured',
    'dispersion',
    'within category',
    'precision',
    'recall',
    'density',
    'coverage',
    'Fréchet (not FID)',
    'kernel × 1000',
  )
  rows = []
  for group in groups:
    values = _values(group)
    if values['kernel'] is not None:
      values['kernel'] *= 1000
    rows.append((group.name, tuple(_cell(value) for value in values.values())))
  return Table(title, heads, tuple(rows), note)


def _note(families: Mapping[str, Sequence[Group]], encoder: str) -> str:
  """What a reader of all tables should know; a caveat of several groups once, of the smallest."""
  groups = [group for family in families.values() for group in family]
  measured = [(g.name, g.measured) for g in groups if g.measured is not None]
  where = f' ({encoder})' if encoder else ''
  parts = [f'Dispersion is 1 − the mean cosine of two images; {FRECHET}{where}.']
  if measured:
    parts.append(
      'The groups of a table are measured on equally many images, those of fewer than '
      f'{FEWEST} on all they have: compare them with nothing. All rows but the one so named are '
      'of categories that have real images.'
    )
  else:
    parts.append('Without embeddings of real images nothing is compared.')
  if any(name == _REAL for name, _ in measured):
    parts.append('The first row is one half of the real images against the other.')
  noted = [(m.generated_count, name, m.notes) for name, m in measured if m.notes]
  if noted:
    _, name, notes = min(noted)
    parts.append(f'Small samples ({name}): {"; ".join(notes)}.')
  return ' '.join(parts)


def _cell(value: Number) -> Cell:
  if value is None:
    return Cell('–')
  return Cell(f'{value:,}' if isinstance(value, int) else f'{value:.3f}')
