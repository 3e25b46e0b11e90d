import io
import xml.etree.ElementTree as ET

import numpy as np
from PIL import Image

from align_jax.evaluation import plots


def test_curves_are_small_svg_that_follows_the_scheme():
  svg = plots.curves(
    {'a <b> & c $5': [(0, 0.1), (1, 0.5), (2, float('nan'))], 'one point': [(0, 0.2)]}, percent=True
  )
  ET.fromstring(svg)  # well formed, names escaped
  text = svg.decode()
  assert 'prefers-color-scheme:dark' in text
  assert 'var(--ink)' in text
  assert plots._INK not in text
  assert len(svg) < 30_000


def test_the_same_figure_gives_the_same_bytes():
  series = {'x': [(1, 0.5), (2, 0.6), (4, 0.7), (8, 0.9)]}
  assert plots.curves(series, log_x=True) == plots.curves(series, log_x=True)


def test_histogram_of_any_cosines():
  for values in (np.ones(5), np.linspace(-1, 1, 9), np.asarray([0.3])):
    ET.fromstring(plots.cosine_histogram({'before': values, 'after': np.full(4, 0.9)}))


def test_scatter_is_a_picture(unit):
  x, y = unit(20, 2), unit(9, 2, seed=1)
  png = plots.scatter(x.astype(np.float64), y.astype(np.float64), [(0, 3)])
  image = Image.open(io.BytesIO(png))
  assert image.mode == 'RGBA'
  assert image.getpixel((0, 0))[3] == 0  # transparent: light and dark pages show through


def test_map_is_deterministic_and_splits_the_rows(unit):
  x, y = unit(30), unit(12, seed=1)
  first, second = plots.umap_map(x, y), plots.umap_map(x, y)
  assert first[0].shape == (30, 2)
  assert first[1].shape == (12, 2)
  np.testing.assert_array_equal(first[0], second[0])


def test_map_of_a_few_or_of_equal_points(unit):
  for rows in (1, 2, 3):
    real, generated = plots.umap_map(unit(rows), unit(rows, seed=1))
    assert real.shape == generated.shape == (rows, 2)
  same = np.repeat(unit(1), 20, axis=0)
  real, _ = plots.umap_map(same, same)
  assert np.isfinite(real).all()


def test_stacked_parts_are_svg_and_empty_ones_are_left_out():
  parts = {'data': [1.0, 2.0], 'transfer': [0.0, 0.0], 'compute': [3.0, 1.0]}
  text = plots.stacked([0, 5, 10], parts, y_label='ms', top=4.0).decode()
  ET.fromstring(text)
  assert 'data' in text and 'compute' in text and 'transfer' not in text
