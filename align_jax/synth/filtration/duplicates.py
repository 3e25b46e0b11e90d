"""Near-duplicates: each image against those kept before it, in order, part after part."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, UInt64

from align_jax.errors import UserError, require
from align_jax.synth.hashes import BITS, hamming, to_bits

_ROWS, _COLUMNS = 512, 8192  # images of a block, and kept ones that they are compared with
# Products of float32 vectors differ in their last digits with the size of the block; a cosine so
# near the threshold is computed again on its own, in float64, so that blocks cannot decide.
_UNSURE = 1e-4


@dataclasses.dataclass(frozen=True)
class DuplicateConfig:
  """What counts as the same image again.

  Attributes:
    rule: `none`; `hash`: perceptual hashes within `distance`; `embedding`: cosine of at least
      `cosine`; `either` or `both` of the two.
    distance: bits in which two 64-bit hashes may differ.
    cosine: of image embeddings.
    scope: compared with kept images of the same `category`, or of `all`.
  """

  rule: Literal['none', 'hash', 'embedding', 'either', 'both'] = 'both'
  distance: int = 6
  cosine: float = 0.97
  scope: Literal['category', 'all'] = 'category'

  def __post_init__(self) -> None:
    where = 'config.filtration.duplicates'
    require(0 <= self.distance < BITS, f'{where}.distance', f'{self.distance}: 0 to {BITS - 1}')
    require(-1 < self.cosine <= 1, f'{where}.cosine', f'{self.cosine} is outside (-1, 1]')

  @property
  def uses_hash(self) -> bool:
    return self.rule in ('hash', 'either', 'both')

  @property
  def uses_embedding(self) -> bool:
    return self.rule in ('embedding', 'either', 'both')


class DuplicateIndex:
  """The images kept so far. What it says is what comparing all pairs, one by one, would say.

  An image is a duplicate of the first kept image that it is too much like; a duplicate is not
  kept, so that a chain of small steps does not make its end a duplicate of its beginning.

  Attributes:
    config: what counts as a duplicate.
  """

  def __init__(self, config: DuplicateConfig):
    self.config = config
    self._kept: dict[str, _Kept] = {}

  def __len__(self) -> int:
    return sum(len(kept) for kept in self._kept.values())

  def add(
    self,
    ids: Sequence[str],
    categories: Sequence[str],
    hashes: Sequence[str],
    embeddings: Float[np.ndarray, 'n dim'],
  ) -> None:
    """Enters images that were kept, without comparing them: those of an earlier run."""
    bits = to_bits(hashes)
    for key, rows in self._groups(categories).items():
      kept = self._kept.setdefault(key, _Kept())
      kept.add([ids[i] for i in rows], bits[rows], embeddings[rows])

  def feed(
    self,
    ids: Sequence[str],
    categories: Sequence[str],
    hashes: Sequence[str],
    embeddings: Float[np.ndarray, 'n dim'],
  ) -> list[str]:
    """Compares images with those kept before, in order, and keeps the new ones.

    Args:
      ids, categories: of the images; only of those that nothing else dropped, for what is dropped
        is no reason to drop what looks like it.
      hashes: see `hashes.perceptual_hash`; unused by the rule `embedding`.
      embeddings: unit vectors; unused by the rule `hash`.

    Returns: of each the id of the kept image that it is too much like, '' for those kept.

    Raises:
      UserError: embeddings that are not finite or of another size than those before, or bad hashes.
    """
    if self.config.rule == 'none':
      return [''] * len(ids)
    if self.config.uses_embedding and not np.isfinite(embeddings).all():
      raise UserError('duplicates: embeddings that are not finite; drop those images before')
    bits = to_bits(hashes) if self.config.uses_hash else np.zeros(len(ids), np.uint64)
    out = [''] * len(ids)
    for key, rows in self._groups(categories).items():
      kept = self._kept.setdefault(key, _Kept())
      for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        found = self._block(kept, [ids[i] for i in part], bits[part], embeddings[part])
        for i, of in zip(part.tolist(), found, strict=True):
          out[i] = of
    return out

  def _groups(self, categories: Sequence[str]) -> dict[str, np.ndarray]:
    if self.config.scope == 'all':
      return {'': np.arange(len(categories))} if len(categories) else {}
    rows: dict[str, list[int]] = {}
    for i, name in enumerate(categories):
      rows.setdefault(name, []).append(i)
    return {name: np.asarray(some) for name, some in rows.items()}

  def _block(self, kept: '_Kept', ids: list[str], bits: np.ndarray, x: np.ndarray) -> list[str]:
    """Compares a block with the kept images, then its own images in turn; keeps the new ones."""
    out = [''] * len(ids)
    for start in range(0, len(kept), _COLUMNS):
      left = np.asarray([i for i, of in enumerate(out) if not of], np.int64)
      if not len(left):
        return out
      some = slice(start, min(start + _COLUMNS, len(kept)))
      first = self._first(bits[left], x[left], kept.bits[some], kept.embeddings[some])
      for i, place in zip(left.tolist(), first.tolist(), strict=True):
        if place >= 0:
          out[i] = kept.ids[start + place]
    rest = np.asarray([i for i, of in enumerate(out) if not of], np.int64)
    if not len(rest):
      return out
    sure, maybe = self._alike(bits[rest], x[rest], bits[rest], x[rest])
    fresh: list[int] = []  # places in `rest`
    for place, i in enumerate(rest.tolist()):
      before = np.asarray(fresh, np.int64)
      for other in before[(sure | maybe)[place, before]].tolist():
        if sure[place, other] or self._is_alike(bits[i], x[i], bits[rest[other]], x[rest[other]]):
          out[i] = ids[rest[other]]
          break
      else:
        fresh.append(place)
    new = rest[fresh]
    kept.add([ids[i] for i in new], bits[new], x[new])
    return out

  def _first(
    self, bits: np.ndarray, x: np.ndarray, kept_bits: np.ndarray, kept: np.ndarray
  ) -> np.ndarray:
    """The first kept image that each is too much like; -1 where there is none."""
    sure, maybe = self._alike(bits, x, kept_bits, kept)
    first = np.where(sure.any(axis=1), sure.argmax(axis=1), -1)
    for i in np.flatnonzero(maybe.any(axis=1)).tolist():
      end = first[i] if first[i] >= 0 else len(kept)
      for j in np.flatnonzero(maybe[i, :end]).tolist():
        if self._is_alike(bits[i], x[i], kept_bits[j], kept[j]):
          first[i] = j
          break
    return first

  def _alike(
    self,
    bits: UInt64[np.ndarray, 'n'],
    x: Float[np.ndarray, 'n dim'],
    kept_bits: UInt64[np.ndarray, 'm'],
    kept: Float[np.ndarray, 'm width'],
  ) -> tuple[Bool[np.ndarray, 'n m'], Bool[np.ndarray, 'n m']]:
    """Which pairs are alike, and which are too near the threshold to tell by float32."""
    rule = self.config.rule
    near = hamming(bits, kept_bits) <= self.config.distance if self.config.uses_hash else None
    if rule == 'hash':
      assert near is not None
      return near, np.zeros_like(near)
    if x.shape[1] != kept.shape[1]:
      raise UserError(
        f'duplicates: embeddings of {x.shape[1]} dimensions beside kept ones of {kept.shape[1]}'
      )
    cosines = _cosines_at(near, x, kept) if rule == 'both' and near is not None else x @ kept.T
    sure = cosines >= self.config.cosine + _UNSURE
    maybe = (cosines >= self.config.cosine - _UNSURE) & ~sure
    if near is None:
      return sure, maybe
    return (near | sure, maybe & ~near) if rule == 'either' else (near & sure, near & maybe)

  def _is_alike(self, a: np.uint64, x: np.ndarray, b: np.uint64, y: np.ndarray) -> bool:
    """The same of one pair, on its own."""
    return is_alike(self.config, int(a), x, int(b), y)


def _cosines_at(
  where: Bool[np.ndarray, 'n m'], x: Float[np.ndarray, 'n dim'], y: Float[np.ndarray, 'm width']
) -> Float[np.ndarray, 'n m']:
  """The cosines of those pairs, -1 of the others: few pairs have hashes that are alike."""
  rows, columns = np.nonzero(where)
  if len(rows) > where.size // 32:
    return x @ y.T
  out = np.full(where.shape, -1, np.float32)
  out[rows, columns] = np.einsum('ij,ij->i', x[rows], y[columns])
  return out


def is_alike(
  config: DuplicateConfig,
  hash_a: int,
  a: Float[np.ndarray, 'dim'],
  hash_b: int,
  b: Float[np.ndarray, 'dim'],
) -> bool:
  """Says of two images whether they are near-duplicates: the rule that the index follows."""
  near = (hash_a ^ hash_b).bit_count() <= config.distance
  if config.rule in ('none', 'hash'):
    return near and config.rule == 'hash'
  # a plain sum, in order: no library may add up differently
  cosine = float(np.cumsum(a.astype(np.float64) * b.astype(np.float64))[-1])
  same = cosine >= config.cosine
  return {'embedding': same, 'either': near or same, 'both': near and same}[config.rule]


class _Kept:
  """Rows that grow; the arrays double when they are full."""

  def __init__(self) -> None:
    self.ids: list[str] = []
    self._bits = np.zeros(0, np.uint64)
    self._embeddings = np.zeros((0, 0), np.float32)

  def __len__(self) -> int:
    return len(self.ids)

  @property
  def bits(self) -> np.ndarray:
    return self._bits[: len(self.ids)]

  @property
  def embeddings(self) -> np.ndarray:
    return self._embeddings[: len(self.ids)]

  def add(self, ids: Sequence[str], bits: np.ndarray, embeddings: np.ndarray) -> None:
    start, stop = len(self.ids), len(self.ids) + len(ids)
    if start and self._embeddings.shape[1] != embeddings.shape[1]:
      raise UserError(
        f'duplicates: embeddings of {embeddings.shape[1]} dimensions beside kept ones of '
        f'{self._embeddings.shape[1]}'
      )
    if stop > len(self._bits):
      size = max(stop, 2 * len(self._bits), 64)
      grown = np.zeros((size, embeddings.shape[1]), np.float32)
      more = np.zeros(size, np.uint64)
      if start:
        grown[:start], more[:start] = self._embeddings[:start], self._bits[:start]
      self._embeddings, self._bits = grown, more
    self.ids.extend(ids)
    self._bits[start:stop], self._embeddings[start:stop] = bits, embeddings
