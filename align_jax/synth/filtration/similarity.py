"""How near generated embeddings lie to the real ones of their own category, on the devices.

Two readings of nearness: the mean cosine to all real embeddings of the category, which is one
product with the mean of the real unit vectors, and the mean of the k largest cosines, for broad
categories whose images look in several ways. Both go over blocks of rows, so that memory is bounded
by the block, and split the rows of a block over the devices of a mesh.
"""

import collections
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Bool, Float, Int

from align_jax.errors import UserError
from align_jax.parallel.mesh import BATCH_AXES

ROWS, COLUMNS = 4096, 8192  # generated and real embeddings of a block
_TILE = 512  # rows whose cosines are held at once: 16 MiB beside 8192 columns
_LEAST_ROWS, _LEAST_COLUMNS = 64, 32
# Categories that are small share a block, though most of its cosines are then of no use, as long
# as computing these takes less than starting another block (about 0.2 ms).
_SPARED = 1 << 15
_IN_FLIGHT = 2  # blocks: one that the devices work at and one that waits for them


def mean_similarity(
  x: Float[np.ndarray, 'n dim'],
  category: Int[np.ndarray, 'n'],
  real: Float[np.ndarray, 'm width'],
  real_category: Int[np.ndarray, 'm'],
  *,
  mesh: Mesh | None = None,
  rows: int = ROWS,
) -> Float[np.ndarray, 'n']:
  """Mean cosine of each embedding to the real ones of its category.

    s(g) = mean over r of r · g = (mean over r of r) · g

  The mean of unit vectors is not made a unit vector again: where real images differ much it is
  short, and so is every similarity to it.

  Args:
    x, category: generated unit vectors and category numbers, from 0.
    real, real_category: the real ones, in any order.
    mesh: of local devices over which rows are split; None: the default device.
    rows: of a block.

  Returns: float32, in [-1, 1]; NaN where the category has no real embedding, or where the
    embedding is not finite.

  Raises:
    UserError: dimensions that differ, or real embeddings that are not finite.

  Source: DiverGen, arXiv 2405.10185, section 3.4 (CLIP inter-similarity).
  """
  _check(x, real)
  count = 1 + int(max(category.max(initial=-1), real_category.max(initial=-1)))
  means, members = category_means(real, real_category, count)
  means[members == 0] = np.nan
  return row_cosines(x, means, category, mesh=mesh, rows=rows)


def category_means(
  real: Float[np.ndarray, 'm width'], category: Int[np.ndarray, 'm'], count: int
) -> tuple[Float[np.ndarray, 'count dim'], Int[np.ndarray, 'count']]:
  """Returns the mean vector of each category (0 where it has none) and how many it is of."""
  members = np.bincount(category, minlength=count)
  total = np.zeros((count, real.shape[1]))
  for start in range(0, len(real), ROWS):
    part = category[start : start + ROWS]
    order = np.argsort(part, kind='stable')
    names, first = np.unique(part[order], return_index=True)
    total[names] += np.add.reduceat(real[start : start + ROWS][order].astype(np.float64), first)
  return (total / np.maximum(members, 1)[:, None]).astype(np.float32), members


def row_cosines(
  x: Float[np.ndarray, 'n dim'],
  vectors: Float[np.ndarray, 'count width'],
  which: Int[np.ndarray, 'n'],
  *,
  mesh: Mesh | None = None,
  rows: int = ROWS,
) -> Float[np.ndarray, 'n']:
  """Returns `x[i] · vectors[which[i]]`: against one text, or one mean, for each row.

  Args:
    x, vectors, which: of the product; `which` from 0.
    mesh, rows: see `mean_similarity`.

  Returns: float32; NaN where one of the two is not finite.

  Raises:
    UserError: dimensions that differ.
  """
  _check(x, vectors, finite=False)
  out = np.full(len(x), np.nan, np.float32)
  if not len(x) or not len(vectors):
    return out
  product, devices = _row_product(mesh), _devices(mesh)
  table = _put(vectors.astype(np.float32), mesh, PartitionSpec())
  waiting: collections.deque[tuple[slice, Array]] = collections.deque()

  def finish() -> None:
    where, values = waiting.popleft()
    out[where] = np.asarray(values)[: where.stop - where.start]

  for start in range(0, len(x), rows):
    where = slice(start, min(start + rows, len(x)))
    size = _padded_rows(where.stop - start, devices)
    mine = np.arange(where.start, where.stop)
    whole = size == len(mine) and x.dtype == np.float32
    part = x[where] if whole else _take(x, mine, size)
    waiting.append((where, product(part, _take(which, mine, size), table)))
    if len(waiting) == _IN_FLIGHT:
      finish()
  while waiting:
    finish()
  out[~np.isfinite(out)] = np.nan
  return out


def nearest_similarity(
  x: Float[np.ndarray, 'n dim'],
  category: Int[np.ndarray, 'n'],
  real: Float[np.ndarray, 'm width'],
  real_category: Int[np.ndarray, 'm'],
  k: int,
  *,
  mesh: Mesh | None = None,
  rows: int = ROWS,
  columns: int = COLUMNS,
) -> Float[np.ndarray, 'n']:
  """Mean of the k largest cosines of each embedding to the real ones of its category.

  Exact: all cosines of a category are computed, `rows` by `columns` at a time.

  Args:
    x, category, real, real_category, mesh: see `mean_similarity`.
    k: of a category with fewer real embeddings, all are taken.
    rows, columns: generated and real embeddings of a block.

  Returns: see `mean_similarity`.

  Raises:
    UserError: see `mean_similarity`; or k below 1.
  """
  _check(x, real)
  if k < 1:
    raise UserError(f'nearest_k: {k} must be at least 1')
  best = np.full((len(x), k), -np.inf, np.float32)
  search, devices = _search(mesh, k), _devices(mesh)
  order, real_order, blocks = _plan(category, real_category, rows, columns, devices)
  waiting: collections.deque[tuple[np.ndarray, bool, Array]] = collections.deque()

  def finish() -> None:
    where, first, values = waiting.popleft()
    found = np.asarray(values)[: len(where)]
    if not first:  # a later block of real ones of the same category
      found = np.partition(np.concatenate([best[where], found], axis=1), k, axis=1)[:, -k:]
    best[where, k - found.shape[1] :] = found

  placed, held = (-1, -1), None
  for block in blocks:
    if (block.left, block.right) != placed:
      mine = real_order[block.left : block.right]
      size = padded(len(mine), _LEAST_COLUMNS)
      held = tuple(
        _put(values, mesh, PartitionSpec())
        for values in (_take(real, mine, size), _take(real_category, mine, size, -1))
      )
      placed = (block.left, block.right)
    assert held is not None
    where = order[block.top : block.bottom]
    size = _padded_rows(len(where), devices)
    mask = block.several or held[0].shape[0] != block.right - block.left
    part, labels = _take(x, where, size), _take(category, where, size, -2)
    waiting.append((where, block.first, search(part, labels, *held, mask)))
    if len(waiting) == _IN_FLIGHT:
      finish()
  while waiting:
    finish()
  there = best > -np.inf
  total = np.where(there, best, 0).sum(axis=1, dtype=np.float64)
  with np.errstate(invalid='ignore', divide='ignore'):
    out = (total / there.sum(axis=1)).astype(np.float32)
  out[~finite_rows(x)] = np.nan
  return out


def finite_rows(x: Float[np.ndarray, 'n dim']) -> Bool[np.ndarray, 'n']:
  """Says of each row whether all of it is finite; a sum of products is not where one is not."""
  with np.errstate(over='ignore', invalid='ignore'):
    return np.isfinite(np.einsum('ij,ij->i', x, x, dtype=np.float64))


def padded(count: int, least: int) -> int:
  """The next of few sizes: so few programs are compiled, and little is computed for nothing.

  They are `least` times 1, 2, 3, 4, 6, 8, 12, …; from 1024 on there are eight to each doubling.
  """
  units = max(1, -(-count // least))
  power = 1 << (units.bit_length() - 1)
  parts = 8 if power * least >= 1024 else 2
  step = max(1, power // parts)
  return -(-units // step) * step * least


def _padded_rows(count: int, devices: int) -> int:
  size = padded(count, _LEAST_ROWS * devices)
  tile = _TILE * devices
  return size if size <= tile else -(-size // tile) * tile


class _Block(NamedTuple):
  """Rows `top` to `bottom` of the generated by `left` to `right` of the real, both sorted.

  `several`: of more than one category. `first`: no earlier block has the same rows.
  """

  top: int
  bottom: int
  left: int
  right: int
  several: bool
  first: bool


def _plan(
  category: np.ndarray, real_category: np.ndarray, rows: int, columns: int, devices: int
) -> tuple[np.ndarray, np.ndarray, Iterator[_Block]]:
  """Sorts both sides by category and cuts what they have in common into blocks."""
  both = np.intersect1d(category, real_category)
  sides = []
  for values in (category, real_category):
    order = np.argsort(values, kind='stable')
    order = order[np.isin(values[order], both)]
    starts = np.searchsorted(values[order], both)
    sides.append((order, [*starts.tolist(), len(order)]))
  (order, tops), (real_order, lefts) = sides
  return order, real_order, _blocks(tops, lefts, rows, columns, devices)


def _blocks(
  tops: list[int], lefts: list[int], rows: int, columns: int, devices: int
) -> Iterator[_Block]:
  def cost(high: int, wide: int) -> int:
    return padded(high, _LEAST_ROWS * devices) * padded(wide, _LEAST_COLUMNS)

  at, last = 0, len(tops) - 1
  while at < last:
    end = at + 1
    top, left = tops[at], lefts[at]
    while end < last:
      high, wide = tops[end + 1] - top, lefts[end + 1] - left
      if high > min(rows, _TILE * devices) or wide > columns:
        break
      apart = cost(tops[end] - top, lefts[end] - left)
      apart += cost(tops[end + 1] - tops[end], lefts[end + 1] - lefts[end])
      if cost(high, wide) - apart > _SPARED:
        break
      end += 1
    pieces = -(-(lefts[end] - left) // columns)
    ends = [left + (lefts[end] - left) * i // pieces for i in range(pieces + 1)]
    for number in range(pieces):  # outside: real ones go to the devices once
      for start in range(top, tops[end], rows):
        stop = min(start + rows, tops[end])
        yield _Block(start, stop, ends[number], ends[number + 1], end - at > 1, number == 0)
    at = end


@functools.lru_cache(maxsize=8)
def _row_product(mesh: Mesh | None) -> Callable[..., Array]:
  def product(
    x: Float[Array, 'n dim'], which: Int[Array, 'n'], vectors: Float[Array, 'count dim']
  ) -> Float[Array, 'n']:
    return jnp.sum(x * vectors[which], axis=-1)

  return jax.jit(_split(product, mesh, 2, 1))


@functools.lru_cache(maxsize=32)
def _search(mesh: Mesh | None, k: int) -> Callable[..., Array]:
  """The k largest cosines of each row of a block, in any order; -inf where there are fewer."""

  def search(
    x: Float[Array, 'n dim'],
    labels: Int[Array, 'n'],
    real: Float[Array, 'm dim'],
    real_labels: Int[Array, 'm'],
    mask: bool,
  ) -> Float[Array, 'n found']:
    def tile(part: tuple[Array, Array]) -> Array:
      values = jax.lax.dot_general(
        part[0], real, (((1,), (1,)), ((), ())), precision=jax.lax.Precision.HIGHEST
      )
      if mask:
        values = jnp.where(part[1][:, None] == real_labels, values, -jnp.inf)
      return largest(values, k)

    if len(x) <= _TILE or len(x) % _TILE:
      return tile((x, labels))
    # one after another: the cosines of all of them lie in the same memory
    found = jax.lax.map(tile, (x.reshape(-1, _TILE, x.shape[1]), labels.reshape(-1, _TILE)))
    return found.reshape(len(x), -1)

  @functools.partial(jax.jit, static_argnums=4)
  def compiled(x: Array, labels: Array, real: Array, real_labels: Array, mask: bool) -> Array:
    return _split(functools.partial(search, mask=mask), mesh, 2, 2)(x, labels, real, real_labels)

  return compiled


def largest(values: Float[Array, 'n m'], k: int) -> Float[Array, 'n found']:
  """Returns the k largest values of each row, all of them where there are fewer.

  The k largest values lie in the k groups with the largest maxima (a value outside has k others,
  those maxima, that are no smaller). So one quick pass for the maxima of small groups leaves a
  choice among few: XLA's own choice among all costs as much as the product they come from.
  """
  n, m = values.shape
  # m / size maxima and k * size values remain: fewest for size² = m / k
  size = 1 << round(np.log2(max(1.0, m / k)) / 2)
  if size < 4 or m % size or m // size <= k:
    return jax.lax.top_k(values, min(k, m))[0]
  groups = values.reshape(n, m // size, size)
  _, chosen = jax.lax.top_k(groups.max(axis=-1), k)
  few = jnp.take_along_axis(groups, chosen[:, :, None], axis=1)
  return jax.lax.top_k(few.reshape(n, k * size), k)[0]


def _split(function: Callable[..., Array], mesh: Mesh | None, split: int, whole: int) -> Callable:
  """Lets each device have its share of the rows of the first `split` arguments."""
  if mesh is None:
    return function
  specs = (PartitionSpec(BATCH_AXES),) * split + (PartitionSpec(),) * whole
  return jax.shard_map(
    function, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(BATCH_AXES), check_vma=False
  )


def _put(values: np.ndarray, mesh: Mesh | None, spec: PartitionSpec) -> Array:
  return jax.device_put(values, None if mesh is None else NamedSharding(mesh, spec))


def _devices(mesh: Mesh | None) -> int:
  return 1 if mesh is None else int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))


def _take(values: np.ndarray, rows: np.ndarray, size: int, fill: int = 0) -> np.ndarray:
  """Returns rows as float32 or int32, filled up to `size`."""
  kind = np.int32 if values.ndim == 1 else np.float32
  out = np.empty((size, *values.shape[1:]), kind)
  out[: len(rows)] = values[rows]
  out[len(rows) :] = fill
  return out


def _check(x: np.ndarray, other: np.ndarray, finite: bool = True) -> None:
  if x.shape[1] != other.shape[1]:
    raise UserError(
      f'similarity: embeddings of {x.shape[1]} dimensions beside real ones or texts of '
      f'{other.shape[1]}; embed both with the same model'
    )
  if finite and not finite_rows(other).all():
    raise UserError('similarity: real embeddings that are not finite; leave those images out')
