"""Rows of pictures for the report: samples, neighbours, hits and failures."""

import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from align_jax.data.images import ImageError, decode_image
from align_jax.data.sources.base import Source, pair_index
from align_jax.evaluation.features import Features
from align_jax.evaluation.retrieval import nearest, text_to_image_ranks
from align_jax.evaluation.tasks import Pairs

Mark = Literal['', 'right', 'wrong', 'partner', 'query']


@dataclasses.dataclass(frozen=True)
class Picture:
  """One picture of a grid.

  Attributes:
    png: PNG bytes; b'' shows a frame.
    caption: text under it, never inside it.
    mark: frame colour and word: `right`, `wrong`, `partner`, `query` or none.
    text: what the frame shows where there is no picture.
  """

  png: bytes
  caption: str = ''
  mark: Mark = ''
  text: str = ''


@dataclasses.dataclass(frozen=True)
class Row:
  """A line of pictures with a title above it."""

  title: str
  pictures: tuple[Picture, ...]


def thumbnail(image: UInt8[np.ndarray, 'height width 3'], size: int = 96) -> bytes:
  """Returns a PNG whose longer side is about `size`.

  A tiny image is enlarged by a whole factor without smoothing, so that its true pixels show.
  """
  picture = Image.fromarray(image)
  longer = max(picture.size)
  if longer <= size:
    factor = max(1, size // longer)
    wide, high = picture.width * factor, picture.height * factor
    picture = picture.resize((wide, high), Image.Resampling.NEAREST)
  else:
    picture.thumbnail((size, size), Image.Resampling.LANCZOS)
  buffer = io.BytesIO()
  picture.save(buffer, format='PNG', optimize=True)
  return buffer.getvalue()


def thumbnails(source: Source, ids: Iterable[str], size: int = 96) -> dict[str, bytes]:
  """Returns a PNG of each id that the source has and that can be decoded."""
  wanted = dict.fromkeys(ids)
  where = pair_index(source)
  out = {}
  for id_ in wanted:
    if id_ in where:
      try:
        out[id_] = thumbnail(decode_image(source[where[id_]].image), size)
      except ImageError:
        continue  # counted and named where it was read for embedding
  return out


def pair_rows(
  generated: Source, partners: Source, ids: Sequence[str], size: int = 96
) -> tuple[Row, ...]:
  """Returns of each generated id: its real partner, itself and its prompt."""
  where = pair_index(generated)
  records = [generated[where[id_]] for id_ in ids if id_ in where]
  made = thumbnails(generated, [record.id for record in records], size)
  real = thumbnails(partners, [record.pair_id for record in records], size)
  return tuple(
    Row(
      record.prompt or next(iter(record.captions), ''),
      (
        Picture(real.get(record.pair_id, b''), 'real'),
        Picture(made.get(record.id, b''), 'generated'),
      ),
    )
    for record in records
  )


def neighbour_rows(
  pairs: Mapping[str, Pairs],
  real: Source,
  generated: Source,
  queries: Sequence[str],
  *,
  k: int = 5,
  size: int = 96,
) -> tuple[Row, ...]:
  """Returns of each real id one row a name in `pairs` (`before`, `after`): its nearest generated.

  Args:
    pairs: features under one or several encoders, over the same sources.
    queries: ids of real images.
  """
  found: dict[tuple[str, str], list[tuple[str, float, bool]]] = {}
  for name, features in pairs.items():
    row = {id_: i for i, id_ in enumerate(features.real.ids)}
    known = [query for query in queries if query in row]
    if not known:
      continue
    vectors = features.real.image[[row[query] for query in known]]
    rows, cosines = nearest(vectors, features.generated.image, k)
    for query, places, values in zip(known, rows, cosines, strict=True):
      found[query, name] = [
        (features.generated.ids[i], float(c), features.generated.pair_ids[i] == query)
        for i, c in zip(places, values, strict=True)
      ]
  originals = thumbnails(real, queries, size)
  made = thumbnails(generated, [hit[0] for hits in found.values() for hit in hits], size)
  out = []
  for query in queries:
    for name in pairs:
      if (query, name) in found:
        hits = tuple(
          Picture(made.get(id_, b''), f'{cosine:.2f}', 'partner' if pair else '')
          for id_, cosine, pair in found[query, name]
        )
        out.append(Row(name, (Picture(originals.get(query, b''), 'real', 'query'), *hits)))
  return tuple(out)


def retrieval_rows(
  features: Features,
  source: Source,
  *,
  which: Literal['examples', 'failures'],
  count: int = 6,
  k: int = 3,
  seed: int = 0,
  size: int = 96,
) -> tuple[Row, ...]:
  """Returns caption queries with the images they find.

  `examples`: captions drawn at random, with the first k images. `failures`: the captions whose
  right image stands lowest, one an image, with the right image and the k wrong ones found first.
  """
  if not features.texts:
    return ()
  ranks = text_to_image_ranks(features)
  if which == 'examples':
    _, first = np.unique(features.texts, return_index=True)  # a shared caption is shown once
    chosen = np.random.default_rng(seed).permutation(first)[:count]
  else:
    chosen = np.asarray(_worst(features, ranks, count), np.int64)
  if not len(chosen):
    return ()
  shared: dict[str, set[int]] = {}
  for text, owner in zip(features.texts, features.text_owner, strict=True):
    shared.setdefault(text, set()).add(int(owner))
  most = max(len(shared[features.texts[q]]) for q in chosen)
  rows, _ = nearest(features.text[chosen], features.image, k + most)
  picked = []
  for q, places in zip(chosen, rows, strict=True):
    right = shared[features.texts[q]]
    if which == 'failures':
      shown = [int(features.text_owner[q])] + [int(i) for i in places if i not in right][:k]
    else:
      shown = [int(i) for i in places[:k]]
    picked.append((int(q), right, shown))
  png = thumbnails(source, [features.ids[i] for _, _, shown in picked for i in shown], size)
  out = []
  for q, right, shown in picked:
    title = f'{shorten(features.texts[q])}  (rank {ranks[q]} of {len(features.ids)})'
    row = []
    for i in shown:
      # The title says what a right image shows.
      caption = '' if i in right else _caption(features, i)
      mark: Mark = 'right' if i in right else 'wrong'
      row.append(Picture(png.get(features.ids[i], b''), caption, mark))
    out.append(Row(title, tuple(row)))
  return tuple(out)


def shorten(text: str, length: int = 120) -> str:
  """Returns the text cut at a word with an ellipsis if it is longer than `length`."""
  text = ' '.join(text.split())
  return text if len(text) <= length else text[:length].rsplit(' ', 1)[0] + ' …'


def _worst(features: Features, ranks: np.ndarray, count: int) -> list[int]:
  """Returns the captions of the lowest right images, not two of one image or of one text."""
  chosen: list[int] = []
  owners: set[int] = set()
  texts: set[str] = set()
  for q in np.argsort(-ranks, kind='stable'):
    if ranks[q] == 1 or len(chosen) == count:
      break
    owner, text = int(features.text_owner[q]), features.texts[q]
    if owner not in owners and text not in texts:
      chosen.append(int(q))
      owners.add(owner)
      texts.add(text)
  return chosen


def _caption(features: Features, row: int) -> str:
  place = np.searchsorted(features.text_owner, row)  # captions stand in the order of their images
  mine = place < len(features.texts) and features.text_owner[place] == row
  return shorten(features.texts[place], 60) if mine else ''
