"""The exact nearest candidates of each query by inner product, blocks at a time, round the devices.

Queries and candidates are split over the devices. The candidates go round the ring once for each
portion of queries; each device keeps the best of what it has seen. No device holds more than `rows`
by `columns` products at a time.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int

from align_jax.errors import UserError
from align_jax.mining.top import top_k
from align_jax.parallel.mesh import BATCH_AXES

ROWS, COLUMNS = 256, 262_144  # of a block: 256 MiB of products; each block is chosen from anew
PORTION = 16_384  # queries that a device has at a time; the candidates go round once for each
_LANES = 128  # columns are filled up to whole groups of so many
Seen = Callable[[int], None]


def nearest(
  queries: Float[np.ndarray, 'n dim'],
  candidates: Float[np.ndarray, 'm width'],
  k: int,
  *,
  mesh: Mesh | None = None,
  recall: float = 0.0,
  rows: int = ROWS,
  columns: int = COLUMNS,
  portion: int = PORTION,
  seen: Seen = lambda count: None,
) -> tuple[Float[np.ndarray, 'n k'], Int[np.ndarray, 'n k']]:
  """Finds the k candidates with the largest inner product with each query.

  Args:
    queries, candidates: of the same dimension; finite.
    k: how many.
    mesh: of the devices that share the work, of all processes; None: the default device alone.
      All processes are given the same arrays, and get the same.
    recall: 0 finds exactly them. Above 0, `lax.approx_max_k` with this recall as its target, which
      is quicker on TPUs.
    rows, columns: of a block, on each device.
    portion: queries on a device at a time.
    seen: is told of so many more queries.

  Returns: products, largest first, and candidates (of equal products the lower number first); where
    there are fewer than k candidates, the rest is -inf and -1.

  Raises:
    UserError: dimensions that differ, vectors that are not finite, no candidates, or k below 1.
  """
  _check(queries, candidates, k, recall)
  n, count = len(queries), len(candidates)
  values = np.full((n, k), -np.inf, np.float32)
  index = np.full((n, k), -1, np.int32)
  found = min(k, count)
  shape = layout(n, count, mesh, rows, columns, portion)
  search = make_search(mesh, found, rows, shape.columns, recall)
  held = _place(candidates, mesh, shape.candidates)
  for start in range(0, n, shape.queries):
    stop = min(start + shape.queries, n)
    least = -(-(stop - start) // shape.ways) * shape.ways
    part = _place(queries[start:stop], mesh, least)
    some, where = search(part, held, np.int32(count))
    values[start:stop, :found] = _fetch(some)[: stop - start]
    index[start:stop, :found] = _fetch(where)[: stop - start]
    seen(stop - start)
  return values, index


@dataclasses.dataclass(frozen=True)
class Layout:
  """How queries and candidates lie on the devices.

  Attributes:
    ways: devices that share the work.
    queries: rows of a call, of all devices together.
    calls: so many.
    candidates: rows, those included that only fill up.
    columns: of a block.
  """

  ways: int
  queries: int
  calls: int
  candidates: int
  columns: int


def layout(
  n: int,
  count: int,
  mesh: Mesh | None = None,
  rows: int = ROWS,
  columns: int = COLUMNS,
  portion: int = PORTION,
) -> Layout:
  """Lays out a search of n queries among `count` candidates; see `nearest`."""
  ways = 1 if mesh is None else int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))
  blocks = -(-count // (ways * columns))
  columns = -(-count // (ways * blocks * _LANES)) * _LANES  # evenly, so that little is filling
  queries = min(portion, -(-n // (ways * rows)) * rows) * ways
  return Layout(ways, queries, -(-n // queries), ways * blocks * columns, columns)


def lower_search(
  n: int,
  count: int,
  dim: int,
  k: int,
  mesh: Mesh,
  *,
  recall: float = 0.0,
  rows: int = ROWS,
  columns: int = COLUMNS,
  portion: int = PORTION,
  platform: str = 'tpu',
) -> tuple[jax.stages.Lowered, Layout]:
  """Lowers the search for devices that need not be there, so that it can be compiled for them.

  Args:
    n, count, dim: queries, candidates, and their dimension.
    k, recall, rows, columns, portion: see `nearest`.
    mesh: of those devices, from `jax.experimental.topologies`, say.
    platform: they are of.

  Returns: the program of one call, and how many calls there are.
  """
  shape = layout(n, count, mesh, rows, columns, portion)
  search = make_search(mesh, min(k, count), rows, shape.columns, recall)
  split = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
  whole = NamedSharding(mesh, PartitionSpec())
  held = [
    jax.ShapeDtypeStruct((size, dim), jnp.float32, sharding=split)
    for size in (shape.queries, shape.candidates)
  ]
  traced = search.trace(*held, jax.ShapeDtypeStruct((), jnp.int32, sharding=whole))
  return traced.lower(lowering_platforms=(platform,)), shape


@functools.lru_cache(maxsize=8)
def make_search(
  mesh: Mesh | None, k: int, rows: int, columns: int, recall: float = 0.0
) -> jax.stages.Wrapped:
  """Returns the compiled search of queries among candidates, both split over the devices.

  The function takes queries `[n, dim]`, candidates `[m, dim]`, where each device's share of m is a
  multiple of `columns`, and how many of the candidates are real; it returns products and candidates
  `[n, k]`.
  """
  axes = () if mesh is None else BATCH_AXES
  ways = 1 if mesh is None else int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))

  def block_best(
    part: Float[Array, 'r dim'], block: Float[Array, 'c dim'], start: Array, count: Array
  ) -> tuple[Array, Array]:
    products = jax.lax.dot_general(
      part, block, (((1,), (1,)), ((), ())), precision=jax.lax.Precision.HIGHEST
    )

    def hide(products: Array) -> Array:  # what only fills the last block up
      return jnp.where(start + jnp.arange(columns) < count, products, -jnp.inf)

    products = jax.lax.cond(start + columns > count, hide, lambda x: x, products)
    if recall:
      best, place = jax.lax.approx_max_k(products, min(k, columns), recall_target=recall)
    else:
      best, place = top_k(products, min(k, columns))
    return best, start + place

  def merge(old: tuple[Array, Array], new: tuple[Array, Array]) -> tuple[Array, Array]:
    """Of equal products the older comes first."""
    values, index = (jnp.concatenate(both, axis=1) for both in zip(old, new, strict=True))
    best, place = jax.lax.top_k(values, k)
    return best, jnp.take_along_axis(index, place, axis=1)

  def among(
    part: Float[Array, 'r dim'], held: Float[Array, 'c dim'], first: Array, count: Array
  ) -> tuple[Array, Array]:
    """The best of a device's share of the candidates, whose first has the number `first`."""
    blocks = held.reshape(-1, columns, held.shape[1])

    def step(best: tuple[Array, Array], which: Array) -> tuple[tuple[Array, Array], None]:
      return merge(best, block_best(part, blocks[which], first + which * columns, count)), None

    return jax.lax.scan(step, nothing(len(part)), jnp.arange(len(blocks)))[0]

  def nothing(n: int) -> tuple[Array, Array]:
    none = jnp.full((n, k), -jnp.inf, jnp.float32), jnp.full((n, k), -1, jnp.int32)
    return jax.tree.map(lambda x: jax.lax.pcast(x, axes, to='varying'), none) if axes else none

  def all_rows(
    queries: Float[Array, 'n dim'], held: Float[Array, 'c dim'], first: Array, count: Array
  ) -> tuple[Array, Array]:
    """Rows a block at a time, one after another in the same memory."""
    n, dim = queries.shape
    if n <= rows:
      return among(queries, held, first, count)
    whole = n // rows * rows
    found = jax.lax.map(
      lambda part: among(part, held, first, count), queries[:whole].reshape(-1, rows, dim)
    )
    found = jax.tree.map(lambda x: x.reshape(whole, k), found)
    if whole == n:
      return found
    rest = among(queries[whole:], held, first, count)
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y]), found, rest)

  def search(
    queries: Float[Array, 'n dim'], held: Float[Array, 'c dim'], count: Array
  ) -> tuple[Array, Array]:
    share = held.shape[0]
    if ways == 1:
      return all_rows(queries, held, jnp.int32(0), count)
    own = jax.lax.axis_index(axes)
    onward = [((at + 1) % ways, at) for at in range(ways)]

    # Shares come in the order own, own + 1, …, last, 0, …: those after the turn have lower numbers,
    # and are kept apart so that of equal products the lower number comes first.
    def step(carry: tuple, number: Array) -> tuple[tuple, None]:
      held, before, after = carry
      which = (own + number) % ways
      found = all_rows(queries, held, which * share, count)
      turned = own + number >= ways
      mine = jax.tree.map(lambda x, y: jnp.where(turned, x, y), before, after)
      mine = merge(mine, found)
      before = jax.tree.map(lambda new, old: jnp.where(turned, new, old), mine, before)
      after = jax.tree.map(lambda new, old: jnp.where(turned, old, new), mine, after)
      return (jax.lax.ppermute(held, axes, onward), before, after), None

    start = held, nothing(len(queries)), nothing(len(queries))
    (_, before, after), _ = jax.lax.scan(step, start, jnp.arange(ways))
    return merge(before, after)

  if mesh is None:
    return jax.jit(search)
  split = PartitionSpec(BATCH_AXES)
  return jax.jit(
    jax.shard_map(
      search, mesh=mesh, in_specs=(split, split, PartitionSpec()), out_specs=(split, split)
    )
  )


def recall_of(found: Int[np.ndarray, 'n k'], exact: Int[np.ndarray, 'n k']) -> float:
  """Returns the share of the exact nearest candidates that were found."""
  hits = sum(len(np.intersect1d(a, b)) for a, b in zip(found, exact, strict=True))
  return hits / max(1, int((exact >= 0).sum()))


def _place(x: np.ndarray, mesh: Mesh | None, size: int) -> Array:
  """Rows on the devices, each a share; zeros fill them up. Each process places what is its own."""
  padded = np.zeros((size, x.shape[1]), np.float32)
  padded[: len(x)] = x
  if mesh is None:
    return jax.device_put(padded)
  sharding = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
  return jax.make_array_from_callback(padded.shape, sharding, padded.__getitem__)


def _fetch(x: Array) -> np.ndarray:
  """All of an array, on every process."""
  if not x.is_fully_addressable:
    x = multihost_utils.process_allgather(x, tiled=True)
  return np.asarray(x)


def _check(queries: np.ndarray, candidates: np.ndarray, k: int, recall: float) -> None:
  if queries.shape[1] != candidates.shape[1]:
    raise UserError(
      f'mining: queries of {queries.shape[1]} dimensions, candidates of {candidates.shape[1]}; '
      'embed both with the same model'
    )
  if k < 1 or not len(candidates):
    raise UserError(f'mining: the {k} nearest of {len(candidates)} candidates; both at least 1')
  if not 0 <= recall < 1:
    raise UserError(f'mining: recall {recall} must be 0 (exact), or below 1')
  for name, x in (('queries', queries), ('candidates', candidates)):
    bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if len(bad):
      raise UserError(
        f'mining: {len(bad)} of {len(x)} {name} are not finite, first number {bad[0]}'
      )
