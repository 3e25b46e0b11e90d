"""Looking at embeddings: pictures, neighbours, the modality gap, a map with images on hover.

Every function returns a `View`: as the last expression of a notebook cell it shows itself, and
`save` writes it as a page. Neither needs a network.
"""

import base64
import dataclasses
import hashlib
import io
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from markupsafe import Markup
from PIL import Image

from align_jax.api import AnyImage, nearest, open_picture
from align_jax.errors import UserError, require
from align_jax.evaluation import gap, plots
from align_jax.evaluation.pictures import Picture, Row, shorten, thumbnail
from align_jax.evaluation.report import make_environment
from align_jax.files import write_file

_SHOWN = 96  # pixels, of a picture on the screen: the template's number as well
_WIDE, _HIGH, _EDGE = 640, 440, 14  # of a map, in its own units
# the marks of a map, from their middle
_SHAPES = {'real': 'M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0', 'generated': 'M0 -5l4.7 8.2h-9.4z'}
_HEADS = ('distance of the means', 'cosine of pairs', 'cosine of others')


def show_images(images: Sequence[AnyImage], titles: Sequence[str] = ()) -> 'View':
  """Shows pictures side by side.

  Args:
    images: pictures of Pillow, uint8 arrays, names of files, or the bytes of files.
    titles: the text under each, none or as many.

  Raises:
    UserError: an image that cannot be decoded, or another number of titles.
  """
  _agree('titles', titles, images, optional=True)
  words = [shorten(title) for title in titles] or [''] * len(images)
  tiles = (Picture(_png(image, i), words[i]) for i, image in enumerate(images))
  return View('Images', _pieces().rows([Row('', tuple(tiles))]))


def show_neighbours(
  query_vectors: Float[np.ndarray, 'q dim'],
  candidate_vectors: Float[np.ndarray, 'n dim'],
  queries: Sequence[AnyImage],
  candidates: Sequence[AnyImage],
  *,
  count: int = 5,
  partners: Sequence[int] = (),
) -> 'View':
  """Shows each query with the candidates of highest cosine, best first.

  Args:
    query_vectors, candidate_vectors: unit-norm embeddings.
    queries, candidates: what they are of, row by row: images or texts. A `str` is a text here; name
      a file by a `Path`.
    count: how many candidates of each.
    partners: of each query the row of the candidate that belongs to it, which is framed; or none.

  Raises:
    UserError: an image that cannot be decoded, or numbers that do not agree.
  """
  _agree('queries', queries, query_vectors)
  _agree('candidates', candidates, candidate_vectors)
  _agree('partners', partners, queries, optional=True)
  places, cosines = nearest(query_vectors, candidate_vectors, count)
  rows = []
  for i, query in enumerate(queries):
    tiles = [_face(query, i, '', 'query')]
    for place, cosine in zip(places[i].tolist(), cosines[i].tolist(), strict=True):
      mine = len(partners) > 0 and partners[i] == place
      tiles.append(_face(candidates[place], place, f'{cosine:.2f}', 'partner' if mine else ''))
    rows.append(Row('', tuple(tiles)))
  return View('Nearest neighbours', _pieces().rows(rows))


def measure_gap(
  real: Float[np.ndarray, 'pairs dim'], generated: Float[np.ndarray, 'pairs dim']
) -> dict[str, float]:
  """Measures how far apart generated images and their real partners lie.

  Args:
    real, generated: unit-norm embeddings; row i of one is the partner of row i of the other.

  Returns: `centroid_distance` (of the means, in [0, 2]), `paired_cosine` (mean over the pairs) and
    `unpaired_cosine` (mean over all that are no pair: the floor under it).

  Raises:
    UserError: fewer than two pairs.
  """
  require(len(real) >= 2, 'measure_gap', f'needs two pairs or more, not {len(real)}')
  return {
    'centroid_distance': gap.centroid_distance(real, generated),
    'paired_cosine': float(gap.paired_cosines(real, generated).mean()),
    'unpaired_cosine': gap.unpaired_cosine(real, generated),
  }


def show_gap(models: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> 'View':
  """Shows `measure_gap` as a table, one line a model, and how the cosines of pairs are spread.

  Args:
    models: a name, such as `before` and `after`, to what `measure_gap` takes: `(real, generated)`,
      float `[pairs, dim]` each.

  Raises:
    UserError: no model, or fewer than two pairs.
  """
  require(bool(models), 'show_gap', 'needs a model: {name: (real, generated)}')
  values = {name: measure_gap(*pairs) for name, pairs in models.items()}
  cosines = {name: gap.paired_cosines(*pairs) for name, pairs in models.items()}
  drawing = plots.cosine_histogram(cosines).decode()
  svg = drawing[drawing.index('<svg') :]  # without the prologue of a file
  return View('Modality gap', _pieces().gap(_HEADS, values, Markup(svg)))


def map_images(
  real_vectors: Float[np.ndarray, 'real dim'],
  generated_vectors: Float[np.ndarray, 'generated dim'],
  real_images: Sequence[AnyImage],
  generated_images: Sequence[AnyImage],
  *,
  captions: Sequence[str] = (),
  partners: Sequence[int] | None = None,
  title: str = '',
  size: int = 48,
  seed: int = 0,
) -> 'View':
  """Draws a UMAP map; the pointer on a mark shows its image, its partner and their cosine.

  Which marks mix says something; how far apart far clusters are says little.

  Args:
    real_vectors, generated_vectors: unit-norm embeddings.
    real_images, generated_images: what they are of, row by row, as in `show_images`.
    captions: of the real images, none or as many; a generated image has its partner's.
    partners: of each generated image the row of its real partner, -1 for none. None: row i belongs
      to row i if there are as many of both, else nothing is paired.
    title: above the map.
    size: side of the pictures kept, pixels.
    seed: of the layout.

  Raises:
    UserError: no image, one that cannot be decoded, or numbers that do not agree.

  Source: McInnes et al. 2018, arXiv 1802.03426.
  """
  _agree('real_images', real_images, real_vectors)
  _agree('generated_images', generated_images, generated_vectors)
  _agree('captions', captions, real_images, optional=True)
  count, total = len(real_images), len(real_images) + len(generated_images)
  require(total > 0, 'map_images', 'needs images')
  if partners is None:
    partners = range(count) if count == total - count else [-1] * (total - count)
  _agree('partners', partners, generated_images)
  require(all(-1 <= p < count for p in partners), 'partners', f'must be rows of {count}, or -1')
  pictures = [
    *(open_picture(image, i) for i, image in enumerate(real_images)),
    *(open_picture(image, i) for i, image in enumerate(generated_images)),
  ]
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # a notebook without ipywidgets: of no concern to a map
    layout = plots.umap_map(real_vectors, generated_vectors, seed)
  places = _fit(np.concatenate(layout))
  marks = []
  for i, (x, y) in enumerate(places):
    kind, own = ('real', i) if i < count else ('generated', partners[i - count])
    words = shorten(captions[own]) if captions and own >= 0 else ''
    marks.append({'i': i, 'x': x, 'y': y, 'kind': kind, 'words': words})
  links = [
    {
      **dict(zip(('x1', 'y1', 'x2', 'y2'), (*places[own], *places[count + j]), strict=True)),
      'real': own,
      'generated': count + j,
      'cosine': f'{float(real_vectors[own] @ generated_vectors[j]):.2f}',
    }
    for j, own in enumerate(partners)
    if own >= 0
  ]
  sheet, across = _sheet(pictures, size)
  digest = hashlib.blake2b(sheet + repr((places, title)).encode(), digest_size=6)
  drawing = {
    'id': f'map-{digest.hexdigest()}',
    'title': title,
    'wide': _WIDE,
    'high': _HIGH,
    # in no order of kinds: drawn last as a whole, one would hide the other
    'marks': [marks[i] for i in np.random.default_rng(0).permutation(total)],
    'links': links,
    'sheet': f'data:image/webp;base64,{base64.b64encode(sheet).decode()}',
    'across': across,
    'down': -(-total // across),
    'sharp': max(max(picture.size) for picture in pictures) <= size,
  }
  return View(title or 'Map of real and generated images', _pieces().map(**drawing))


@dataclasses.dataclass(frozen=True)
class View:
  """Something to look at.

  Attributes:
    title: of the page that `save` writes.
    html: a piece of HTML that holds all it needs: style, pictures, script.
  """

  title: str
  html: str = dataclasses.field(repr=False)

  def _repr_html_(self) -> str:
    return self.html

  def save(self, path: str | os.PathLike[str]) -> None:
    """Writes a page of its own.

    Raises:
      UserError: the folder cannot be written to, or the disk is full.
    """
    write_file(os.fspath(path), str(_pieces().page(self.title, Markup(self.html))).lstrip())


def _pieces() -> Any:
  """The macros of the template."""
  environment = make_environment()
  environment.globals |= {
    'shapes': _SHAPES,
    'real': plots.REAL,
    'generated': plots.GENERATED,
    'after': plots.AFTER,
    'shown': _SHOWN,
  }
  environment.filters['base64'] = lambda data: base64.b64encode(data).decode()
  return environment.get_template('explore.html.j2').module


def _agree(name: str, given: Any, rows: Any, *, optional: bool = False) -> None:
  if len(given) != len(rows) and not (optional and not len(given)):
    raise UserError(f'{name}: {len(given)} given for {len(rows)}; give one for each')


def _face(item: AnyImage, place: int, words: str, mark: Any) -> Picture:
  if isinstance(item, str):
    return Picture(b'', f'{words}  {shorten(item)}'.strip(), mark)
  return Picture(_png(item, place), words, mark)


def _png(image: AnyImage, place: int) -> bytes:
  """A picture no larger than it is shown; a smaller one is enlarged by the page."""
  picture = open_picture(image, place)
  return thumbnail(np.asarray(picture), min(_SHOWN, max(picture.size)))


def _fit(points: np.ndarray) -> list[tuple[float, float]]:
  """Lays points into the drawing, both axes by one scale."""
  low, high = points.min(axis=0), points.max(axis=0)
  room = np.asarray([_WIDE, _HIGH]) - 2 * _EDGE
  scale = float((room / np.maximum(high - low, 1e-9)).min())
  places = np.asarray([_WIDE, _HIGH]) / 2 + (points - (low + high) / 2) * scale
  return [(round(float(x), 1), round(float(y), 1)) for x, y in places]


def _sheet(pictures: Sequence[Image.Image], size: int) -> tuple[bytes, int]:
  """One WebP that holds all pictures, row by row, and how many stand in a row.

  A file each would be three times as large: most of a small file is its header.
  """
  side = min(size, max(max(picture.size) for picture in pictures))
  across = int(np.ceil(np.sqrt(len(pictures))))
  sheet = Image.new('RGBA', (across * side, -(-len(pictures) // across) * side))
  for i, picture in enumerate(pictures):
    small = picture.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    x, y = (side - small.width) // 2, (side - small.height) // 2
    sheet.paste(small, (i % across * side + x, i // across * side + y))
  buffer = io.BytesIO()
  sheet.save(buffer, 'WEBP', quality=75, method=6)
  return buffer.getvalue(), across
