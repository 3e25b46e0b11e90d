"""Row and column sums of a matrix of logits that is never whole: its keys go round a ring."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Float

from align_jax.parallel import ring_blocks as blocks
from align_jax.parallel.ring_blocks import Kind, Marks, Pull, Running, Sums

Tree = TypeVar('Tree')


@dataclasses.dataclass(frozen=True)
class Ring:
  """The devices that share the rows of a batch, one after another.

  Attributes:
    mesh: the device mesh.
    axes: its axes that the rows are split over; devices along other axes hold copies.
    rows: how many of a device's queries are compared with a block of keys at a time; 0: all of
      them. If it does not divide a device's queries, the next smaller number that does.

  Raises:
    ValueError: there is no such axis, or `rows` is negative.
  """

  mesh: Mesh
  axes: tuple[str, ...] = ('data', 'fsdp')
  rows: int = 0

  def __post_init__(self) -> None:
    missing = [axis for axis in self.axes if axis not in self.mesh.shape]
    if missing or not self.axes:
      raise ValueError(f'a ring over {self.axes}; the mesh has the axes {self.mesh.axis_names}')
    if self.rows < 0:
      raise ValueError(f'{self.rows} rows at a time; 0 is all of them')

  @property
  def ways(self) -> int:
    """How many blocks the rows of a batch make."""
    return math.prod(self.mesh.shape[axis] for axis in self.axes)

  def rotate(self, tree: Tree) -> Tree:
    """Every device hands its arrays to the next and takes those of the one before."""
    if self.ways == 1:
      return tree
    after = [(i, (i + 1) % self.ways) for i in range(self.ways)]
    return jax.tree.map(lambda x: lax.ppermute(x, self.axes, after), tree)

  def chunks(self, tree: Tree) -> Tree:
    """Splits a device's queries into those worked at a time: `(n, ...)` to `(n / r, r, ...)`."""

    def split(x: Array) -> Array:
      rows = min(self.rows, x.shape[0]) or x.shape[0]
      while x.shape[0] % rows:
        rows -= 1
      return x.reshape(-1, rows, *x.shape[1:])

    return jax.tree.map(split, tree)

  def each(self, tree: Tree) -> Tree:
    """Lets constants differ from one device to the next, as what a loop makes of them will."""
    return jax.tree.map(lambda x: lax.pcast(x, self.axes, to='varying'), tree)

  def shard(self, fn: Callable, out_specs: object) -> Callable:
    """Runs `fn(split, shared)` on every device: its rows of the one, the whole of the other."""
    specs = (PartitionSpec(self.axes), PartitionSpec())
    return jax.shard_map(fn, mesh=self.mesh, in_specs=specs, out_specs=out_specs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def pair_sums(
  ring: Ring,
  kind: Kind,
  both: bool,
  query: Float[Array, 'queries dim'],
  key: Float[Array, 'keys dim'],
  scale: Float[Array, ''],
  bias: Float[Array, ''] | None,
  marks: tuple[Marks, Marks],
) -> tuple[Sums, Sums | None]:
  """The sums of `scale · q_i·k_j + bias` over every row and, if `both`, over every column.

  The keys go round the ring, each block with its marks and the sums of its columns so far; a
  device forms the logits between its queries and the keys it holds, once for rows and columns. The
  backward pass goes round again and forms them anew, and the gradients of the keys travel with
  them: nothing of a block is kept. What is sent is asked for before the work it can hide behind.

  Args:
    ring: the devices; it must divide the number of queries and that of keys.
    kind: what a row keeps of its entries.
    both: whether the columns are wanted as well.
    query, key: embeddings, split over the ring. They travel as they are, are multiplied in float32.
    scale, bias: of the logits; None is no bias.
    marks: of the queries and of the keys.

  Returns: the sums of the queries and of the keys, split over the ring. Reverse mode only.
  Source: Zhai et al. 2023, arXiv 2303.15343, section 3.3, for the sigmoid; with a running
    logsumexp, Liu et al. 2023, arXiv 2310.01889, and Cheng et al. 2024, arXiv 2410.17243.
  """
  work = functools.partial(_forward, ring, kind, both)
  rows = PartitionSpec(ring.axes)
  return ring.shard(work, (rows, rows))((query, key, marks), (scale, bias))


def _pair_sums_forward(
  ring: Ring, kind: Kind, both: bool, *args: object
) -> tuple[tuple[Sums, Sums | None], tuple]:
  sums = pair_sums(ring, kind, both, *args)
  return sums, (*args, *sums)


def _pair_sums_backward(
  ring: Ring,
  kind: Kind,
  both: bool,
  kept: tuple,
  by: tuple[Sums, Sums | None],
) -> tuple[Array, Array, Array, Array | None, None]:
  del both
  query, key, scale, bias, marks, *sums = kept
  pulls = tuple(
    None if s is None or b is None else Pull(s.total, b.total, b.matched)
    for s, b in zip(sums, by, strict=True)
  )
  work = functools.partial(_backward, ring, kind)
  rows, whole = PartitionSpec(ring.axes), PartitionSpec()
  gradients = ring.shard(work, (rows, rows, whole, whole))
  return *gradients((query, key, marks, pulls), (scale, bias)), None


pair_sums.defvjp(_pair_sums_forward, _pair_sums_backward)


def _forward(
  ring: Ring, kind: Kind, both: bool, split: tuple, shared: tuple
) -> tuple[Sums, Sums | None]:
  """What one device does: the sums of its queries, and in the end those of its keys."""
  query, key, (query_marks, key_marks) = split
  scale, bias = shared
  chunks = ring.chunks((query, query_marks))
  rows = ring.each(blocks.nothing(kind, query.shape[0]))
  columns = ring.each(blocks.nothing(kind, key.shape[0])) if both else None

  def step(carry: tuple, _: None) -> tuple[tuple, None]:
    here, rows, columns = carry
    # the next keys, and what the device before has found out about these
    coming, arriving = ring.rotate((here, columns))
    keys, marks = here
    keys = keys.astype(jnp.float32)

    def work(columns: Running | None, chunk: tuple) -> tuple[Running | None, Running]:
      (queries, mine), rows = chunk
      queries = queries.astype(jnp.float32)
      logits, positive = blocks.block_logits(queries, keys, scale, bias, (mine, marks))
      if columns is not None:
        columns = blocks.merge(columns, blocks.block_sums(kind, logits, positive, 0))
      return columns, blocks.merge(rows, blocks.block_sums(kind, logits, positive, 1))

    fresh = ring.each(blocks.nothing(kind, key.shape[0])) if both else None
    found, rows = lax.scan(work, fresh, (chunks, rows))
    return (coming, rows, arriving if found is None else blocks.merge(arriving, found)), None

  start = (key, key_marks), ring.chunks(rows), columns
  (_, rows, columns), _ = lax.scan(step, start, length=ring.ways)
  rows = jax.tree.map(lambda x: x.reshape(-1), rows)
  home = ring.rotate(columns)
  return blocks.finish(kind, rows), None if home is None else blocks.finish(kind, home)


def _backward(
  ring: Ring, kind: Kind, split: tuple, shared: tuple
) -> tuple[Array, Array, Array, Array | None]:
  """What one device does: the gradients of its queries, its keys, the scale and the bias."""
  query, key, (query_marks, key_marks), (row_pull, column_pull) = split
  scale, bias = shared
  chunks = ring.chunks((query, query_marks, row_pull))

  def step(carry: tuple, _: None) -> tuple[tuple, None]:
    here, by_query, by_key, by_bias = carry
    coming, arriving = ring.rotate((here, by_key))
    keys, marks, pull = here
    keys = keys.astype(jnp.float32)

    def work(carry: tuple[Array, Array], chunk: tuple) -> tuple[tuple[Array, Array], Array]:
      by_key, by_bias = carry
      (queries, mine, mine_pull), by_query = chunk
      queries = queries.astype(jnp.float32)
      logits, positive = blocks.block_logits(queries, keys, scale, bias, (mine, marks))
      slope = blocks.block_gradient(kind, logits, positive, mine_pull, pull)
      if bias is not None:
        by_bias += jnp.sum(slope)
      return (by_key + slope.T @ queries, by_bias), by_query + slope @ keys

    fresh = ring.each(jnp.zeros(key.shape, jnp.float32))
    (found, by_bias), by_query = lax.scan(work, (fresh, by_bias), (chunks, by_query))
    return (coming, by_query, arriving + found, by_bias), None

  # by the product of a query and a key, that is before the scale
  by_query, by_key, by_bias = ring.each(
    (jnp.zeros(query.shape, jnp.float32), jnp.zeros(key.shape, jnp.float32), jnp.float32(0.0))
  )
  start = (key, key_marks, column_pull), ring.chunks(by_query), by_key, by_bias
  (_, by_query, by_key, by_bias), _ = lax.scan(step, start, length=ring.ways)
  by_query, by_key = by_query.reshape(query.shape), ring.rotate(by_key)
  # Σ_ij slope_ij q_i·k_j, without another look at the blocks
  by_scale = lax.psum(jnp.sum(query.astype(jnp.float32) * by_query), ring.axes)
  return (
    (scale * by_query).astype(query.dtype),
    (scale * by_key).astype(key.dtype),
    by_scale,
    None if bias is None else lax.psum(by_bias, ring.axes),
  )
