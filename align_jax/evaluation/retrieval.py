"""Image-text retrieval: recall at k and median rank, both ways."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from align_jax.evaluation.features import Features

# Cosines closer than this count as equal: about ten times float32's rounding of a dot product, so
# that the order in which a matrix product adds up cannot decide who is first.
TIE = 1e-6
_BLOCK = 1 << 23  # similarities held at once: 32 MiB


def retrieve(
  features: Features, *, ks: Sequence[int] = (1, 5, 10), same_caption: bool = True
) -> dict[str, float]:
  """Recall at k and median rank of both directions.

  Image to text: an image is a hit if any of its captions is among the k nearest. Text to image:
  every caption of every image is a query of its own. Images without a caption are no queries, but
  stay among the candidates.

  Args:
    ks: ranks to report.
    same_caption: a caption that several images share is right for each of them: as a query it may
      find any of those images, and the texts to choose from are the distinct captions. False
      keeps to the pairs as recorded (the usual COCO protocol).

  Returns:
    `t2i.r1`, `t2i.median_rank`, `i2t.r1`, ...: recalls as shares in [0, 1], ranks from 1.

  Raises:
    ValueError: no captions.
  """
  if not features.texts:
    raise ValueError('retrieval: no captions')
  t2i, i2t = (
    text_to_image_ranks(features, same_caption),
    image_to_text_ranks(features, same_caption),
  )
  out: dict[str, float] = {}
  for name, ranks in (('t2i', t2i), ('i2t', i2t)):
    out |= {f'{name}.r{k}': float(np.mean(ranks <= k)) for k in ks}
    out[f'{name}.median_rank'] = float(np.median(ranks))
  return out


def text_to_image_ranks(features: Features, same_caption: bool = True) -> Int[np.ndarray, 'texts']:
  """Returns of every caption the rank of its best right image, from 1."""
  owner = features.text_owner
  if not same_caption:
    return first_right_rank(
      features.text, features.image, [owner[i : i + 1] for i in range(len(owner))]
    )
  code, _ = _distinct(features.texts)
  images = _gather(code, owner)
  return first_right_rank(features.text, features.image, [images[c] for c in code])


def image_to_text_ranks(
  features: Features, same_caption: bool = True
) -> Int[np.ndarray, 'queries']:
  """Returns of every image that has captions the rank of its best right caption, from 1."""
  owner = features.text_owner
  code, first = _distinct(features.texts)
  if not same_caption:
    code, first = np.arange(len(owner)), np.arange(len(owner))
  captions = _gather(owner, code)
  queries = np.unique(owner)
  return first_right_rank(
    features.image[queries], features.text[first], [captions[i] for i in queries]
  )


def first_right_rank(
  queries: Float[np.ndarray, 'queries dim'],
  candidates: Float[np.ndarray, 'candidates dim'],
  right: Sequence[np.ndarray],
) -> Int[np.ndarray, 'queries']:
  """Returns of each query one plus the number of wrong candidates ahead of its best right one.

  Ties count against the model: a wrong candidate as near as the right one (within `TIE`) is ahead
  of it. So constant embeddings, where everything ties, score nothing rather than everything.

  Args:
    right: of each query the rows of its right candidates, at least one.
  """
  ranks = np.empty(len(queries), np.int64)
  step = max(1, _BLOCK // max(1, len(candidates)))
  for start in range(0, len(queries), step):
    mine = right[start : start + step]
    near = queries[start : start + step] @ candidates.T
    row = np.repeat(np.arange(len(mine)), [len(r) for r in mine])
    column = np.concatenate(mine)
    best = np.full(len(mine), -np.inf, near.dtype)
    np.maximum.at(best, row, near[row, column])
    near[row, column] = -np.inf
    # `not (<)` instead of `>=`: a similarity that is not a number is ahead too.
    ranks[start : start + step] = 1 + (~(near < best[:, None] - TIE)).sum(axis=1)
  return ranks


def nearest(
  queries: Float[np.ndarray, 'queries dim'], candidates: Float[np.ndarray, 'candidates dim'], k: int
) -> tuple[Int[np.ndarray, 'queries k'], Float[np.ndarray, 'queries k']]:
  """Returns the rows and cosines of the k nearest candidates, nearest first; k at most all."""
  k = min(k, len(candidates))
  rows = np.empty((len(queries), k), np.int64)
  cosines = np.empty((len(queries), k), np.float32)
  step = max(1, _BLOCK // max(1, len(candidates)))
  for start in range(0, len(queries), step):
    near = queries[start : start + step] @ candidates.T
    some = np.argpartition(-near, k - 1, axis=1)[:, :k]
    value = np.take_along_axis(near, some, axis=1)
    order = np.lexsort((some, -value), axis=1)  # equal cosines: the earlier row first
    rows[start : start + step] = np.take_along_axis(some, order, axis=1)
    cosines[start : start + step] = np.take_along_axis(value, order, axis=1)
  return rows, cosines


def _distinct(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
  """Returns each text's number among the distinct ones, and each distinct text's first row."""
  place: dict[str, int] = {}
  first: list[int] = []
  for row, text in enumerate(texts):
    if text not in place:
      place[text] = len(first)
      first.append(row)
  return np.asarray([place[text] for text in texts], np.int64), np.asarray(first, np.int64)


def _gather(key: np.ndarray, value: np.ndarray) -> dict[int, np.ndarray]:
  """Returns of each key its values."""
  order = np.argsort(key, kind='stable')
  keys, starts = np.unique(key[order], return_index=True)
  return dict(zip(keys.tolist(), np.split(value[order], starts[1:]), strict=True))
