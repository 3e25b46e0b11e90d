"""Attention without holding its logits, by the Pallas kernel for TPU that JAX brings."""

import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Float

T = TypeVar('T')

_LANES = 128  # the kernel works on blocks of a multiple of so many tokens
_BLOCKS = (512, 384, 256, 128)  # large blocks keep the matrix units busy; these fit fast memory


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def splash_attention(
  query: Float[Array, 'batch length heads size'],
  key: Float[Array, 'batch keys heads size'],
  value: Float[Array, 'batch keys heads size'],
  interpret: bool = False,
) -> Float[Array, 'batch length heads size']:
  """Returns softmax(q k / √size) v for every head, sequences padded to whole blocks.

  The backward pass runs the kernel's forward once more rather than keep what it needs of it: that
  is a tenth of a block's work at 729 tokens, and nothing but the inputs is held.

  Args:
    query, key, value: any head size.
    interpret: run the kernel on a CPU, for tests.

  Source: Dao et al. 2022, arXiv 2205.14135.
  """
  return _per_device(functools.partial(_kernel, interpret=interpret), query, key, value)


def _forward(query: Array, key: Array, value: Array, interpret: bool) -> tuple[Array, tuple]:
  return splash_attention(query, key, value, interpret), (query, key, value)


def _backward(interpret: bool, inputs: tuple, gradient: Array) -> tuple[Array, Array, Array]:
  def pull_back(query: Array, key: Array, value: Array, gradient: Array) -> tuple:
    _, pull = jax.vjp(functools.partial(_kernel, interpret=interpret), query, key, value)
    return pull(gradient)

  return _per_device(pull_back, *inputs, gradient)


splash_attention.defvjp(_forward, _backward)


def _per_device(f: Callable[..., T], *arrays: Array) -> T:
  """Calls a kernel inside `jax.shard_map`, which would refuse it.

  The kernel does not say over which mesh axes its results differ. So it is called in a `shard_map`
  of its own over the axes that are left, without that check, and it is said here: over all, since
  the examples do.
  """
  mesh = jax.sharding.get_abstract_mesh()
  kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
  manual = tuple(name for name, kind in kinds.items() if kind == AxisType.Manual)
  if not manual:
    return f(*arrays)
  whole = PartitionSpec()

  def unmarked(*arrays: Array) -> T:
    # inside, the result of any operation is not marked as different by device; what comes in is,
    # and the two do not mix under differentiation
    return f(*(x * jnp.ones((), x.dtype) for x in arrays))

  inner = jax.shard_map(
    unmarked, in_specs=whole, out_specs=whole, axis_names={*kinds} - {*manual}, check_vma=False
  )
  return jax.tree.map(lambda x: jax.lax.pcast(x, manual, to='varying'), inner(*arrays))


def _kernel(query: Array, key: Array, value: Array, *, interpret: bool) -> Array:
  length, keys = query.shape[1], key.shape[1]
  query = _padded(query * query.shape[-1] ** -0.5)
  key, value = _padded(key), _padded(value)
  mask = splash.FullMask((query.shape[2], key.shape[2]))
  kernel = splash.make_splash_mha_single_device(
    splash.MultiHeadMask([mask] * query.shape[1]),
    block_sizes=_block_sizes(query.shape[2], key.shape[2]),
    interpret=interpret,
  )
  # padding is a segment of its own, which nobody of the other looks at
  segments = splash.SegmentIds(
    (jnp.arange(query.shape[2]) >= length).astype(jnp.int32),
    (jnp.arange(key.shape[2]) >= keys).astype(jnp.int32),
  )
  out = jax.vmap(kernel, in_axes=(0, 0, 0, None))(query, key, value, segments)
  return jnp.swapaxes(out, 1, 2)[:, :length]


def _block_sizes(length: int, keys: int) -> splash.BlockSizes:
  """The largest blocks that divide the padded sequences."""
  q, kv = (next(b for b in _BLOCKS if n % b == 0) for n in (length, keys))
  return splash.BlockSizes(
    block_q=q,
    block_kv=kv,
    block_kv_compute=kv,
    block_q_dkv=q,
    block_kv_dkv=kv,
    block_kv_dkv_compute=kv,
    block_q_dq=q,
    block_kv_dq=kv,
  )


def _padded(x: Float[Array, 'batch length heads size']) -> Float[Array, 'batch heads more size']:
  x = jnp.swapaxes(x, 1, 2)
  return jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % _LANES), (0, 0)))
