"""Where the filters cut: scores of generated images beside those of real ones."""

from collections.abc import Sequence

import numpy as np

from align_jax.evaluation.report import Figure, Figures
from align_jax.synth.report import drawing
from align_jax.synth.report.data import Number, Part, ReportData, Threshold

LABELS = {
  'similarity': 'mean cosine to the real images of the category',
  'text': 'cosine of the image and its text',
  'area': 'share of the image that the mask covers',
  'spread': 'standard deviation of the pixels (0 to 255)',
}


def make_thresholds(data: ReportData) -> Part:
  """Returns a histogram for each threshold that there are scores for."""
  category = {image.id: image.category for image in data.images}
  items, numbers = [], dict[str, Number]()
  for cut in data.thresholds:
    scored = [row for row in data.scores if getattr(row, cut.score) is not None]
    values = np.asarray([getattr(row, cut.score) for row in scored], np.float64)
    of = [category.get(row.id, '') for row in scored]
    real = np.asarray(cut.real, np.float64)
    real = real[np.isfinite(real)]
    fine = np.isfinite(values)
    if not fine.any():
      continue
    passed = _passes(values, of, cut)
    name = f'threshold.{cut.score}'
    numbers |= {
      f'{name}.lower': cut.lower,
      f'{name}.upper': cut.upper,
      f'{name}.scored': len(values),
      f'{name}.generated_passed': float(passed.mean()),
      f'{name}.generated_mean': float(values[fine].mean()),
      f'{name}.real': len(real),
      f'{name}.real_passed': None,
      f'{name}.real_mean': float(real.mean()) if len(real) else None,
    }
    words = [f'{100 * passed.mean():.1f} % of {len(values):,} generated images pass']
    if len(real) and not cut.by_category:
      share = float(_passes(real, [''] * len(real), cut).mean())
      numbers[f'{name}.real_passed'] = share
      words.append(f'{100 * share:.1f} % of {len(real):,} held-out real images would')
    caption = f'{cut.score.capitalize()}: {", ".join(words)}.{f" {cut.note}." if cut.note else ""}'
    svg = drawing.histogram(
      values[fine],
      real,
      lower=_lower(cut),
      upper=cut.upper,
      x_label=LABELS.get(cut.score, cut.score),
    )
    items.append(Figure(svg, caption))
  note = 'What lies beyond a dashed line is dropped; a band holds the lines of single categories.'
  return Part((Figures('Thresholds', tuple(items), note),), numbers)


def _lower(cut: Threshold) -> list[float]:
  return [*cut.by_category.values(), *([] if cut.lower is None else [cut.lower])]


def _passes(values: np.ndarray, categories: Sequence[str], cut: Threshold) -> np.ndarray:
  """Whether each value is within the cuts of its category; one that is no number is not."""
  everywhere = -np.inf if cut.lower is None else cut.lower
  lower = np.asarray([cut.by_category.get(name, everywhere) for name in categories])
  return (values >= lower) & (values <= (np.inf if cut.upper is None else cut.upper))
