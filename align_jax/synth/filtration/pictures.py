"""Kept and dropped images side by side, by reason: for a page, and as one picture."""

import collections
import io
from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw

from align_jax.data.images import ImageError, decode_image
from align_jax.evaluation.pictures import Picture, Row, shorten, thumbnail
from align_jax.synth.rows import DecisionRow

KEPT = 'kept'
_MARGIN, _TITLE = 4, 16  # pixels


def reason_rows(
  decisions: Sequence[DecisionRow],
  read: Callable[[str], bytes | None],
  captions: Callable[[str], str] = lambda _: '',
  *,
  each: int = 12,
  size: int = 96,
) -> tuple[Row, ...]:
  """Returns a row of kept images, then one for each reason, the most frequent first.

  Args:
    decisions: of any images.
    read: returns the encoded image of an id; None where there is none.
    captions: what stands under an image besides what was measured, for instance its category.
    each: images of a row, evenly over all of its kind.
    size: of a picture's longer side, pixels.

  Returns: plain text and PNGs; the report's templates escape the text.
  """
  kinds: dict[str, list[DecisionRow]] = collections.defaultdict(list)
  for row in decisions:
    kinds[KEPT if row.kept else row.reasons[0].split(' ')[0]].append(row)
  order = sorted(kinds, key=lambda name: (name != KEPT, -len(kinds[name]), name))
  out = []
  for name in order:
    rows = kinds[name]
    count = min(each, len(rows))
    chosen = [rows[len(rows) * i // count] for i in range(count)]
    pictures = tuple(
      Picture(_png(read(row.id), size), _caption(row, captions(row.id)), _mark(row))
      for row in chosen
    )
    out.append(Row(f'{name} ({len(rows)})', pictures))
  return tuple(out)


def draw_grid(rows: Sequence[Row], size: int = 96) -> bytes:
  """Returns the rows as one PNG, their titles above them; captions are left to a page."""
  columns = max((len(row.pictures) for row in rows), default=1)
  step, high = size + _MARGIN, size + _MARGIN + _TITLE
  canvas = Image.new('RGB', (columns * step + _MARGIN, len(rows) * high + _MARGIN), 'white')
  draw = ImageDraw.Draw(canvas)
  for i, row in enumerate(rows):
    # the built-in font knows Latin letters alone
    title = row.title.encode('latin-1', 'replace').decode('latin-1')
    draw.text((_MARGIN, i * high + 2), shorten(title, columns * 14), fill='black')
    for j, picture in enumerate(row.pictures):
      where = _MARGIN + j * step, i * high + _TITLE
      if picture.png:
        shown = Image.open(io.BytesIO(picture.png))
        shown.thumbnail((size, size))
        canvas.paste(shown, where)
      else:
        draw.rectangle((*where, where[0] + size - 1, where[1] + size - 1), outline='grey')
  out = io.BytesIO()
  canvas.save(out, 'PNG')
  return out.getvalue()


def _png(data: bytes | None, size: int) -> bytes:
  if data is None:
    return b''
  try:
    return thumbnail(decode_image(data), size)
  except ImageError:  # an empty frame says it
    return b''


def _caption(row: DecisionRow, text: str) -> str:
  first = row.reasons[0] if row.reasons else ''
  return ' · '.join(shorten(part, 60) for part in (text, first) if part)


def _mark(row: DecisionRow):
  return 'right' if row.kept else 'wrong'
