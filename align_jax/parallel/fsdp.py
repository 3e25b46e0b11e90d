"""Parameters kept in shards and gathered where they are used: explicit, layer by layer.

Left to the compiler, a program with sharded weights may gather activations instead. Here the code
runs per device over the mesh axes of the batch (`jax.shard_map`) and says itself what is gathered.
The axis `tensor` stays with the compiler.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from align_jax.parallel.mesh import BATCH_AXES

Specs = Mapping[str, PartitionSpec]  # by parameter name


def manual_spec(spec: PartitionSpec) -> PartitionSpec:
  """What of a sharding is over the batch's mesh axes."""
  return PartitionSpec(*(axis if axis in BATCH_AXES else None for axis in spec))


def make_fetch(specs: Specs, mesh: Mesh, dtype: str) -> Callable[[str, Array], Array] | None:
  """Returns what makes whole parameters of shards, inside `jax.shard_map`; None: nothing is split.

  Its backward pass leaves each device with its shard of the summed gradient.

  Args:
    specs: how each parameter is split.
    mesh: the devices.
    dtype: in which matrices travel. Vectors are small, and stay as they are.
  """
  if mesh.shape['fsdp'] == 1:
    return None
  # counted from the end: a block's parameter has lost its first axis when its turn comes
  places = {n: spec.index('fsdp') - len(spec) for n, spec in specs.items() if 'fsdp' in spec}

  def fetch(name: str, value: Array) -> Array:
    if name not in places:
      return value
    if value.ndim > 1:
      value = value.astype(dtype)
    axis = places[name] + value.ndim
    return jax.lax.all_gather(value, 'fsdp', axis=axis, tiled=True)

  return fetch


def varying(value: Array, spec: PartitionSpec) -> Array:
  """Lets each device have a value of its own, where all devices hold the same part of `spec`.

  Gradients of it are then not summed over devices at each use, but when `summed` says so.
  """
  axes = tuple(axis for axis in BATCH_AXES if axis not in spec)
  return jax.lax.pcast(value, axes, to='varying') if axes else value


def summed(gradient: Array, spec: PartitionSpec) -> Array:
  """Sums a parameter's gradient over the devices that have seen other examples.

  Over the axis that splits the parameter it is summed already, by the backward pass of its gather.
  """
  axes = tuple(axis for axis in BATCH_AXES if axis not in spec)
  return jax.lax.psum(gradient, axes) if axes else gradient


def in_parts(batch: Mapping[str, Array], size: int) -> dict[str, Array]:
  """Cuts a device's examples into parts of `size`, along a new first axis."""
  return {k: jnp.reshape(v, (-1, size, *v.shape[1:])) for k, v in batch.items()}


def joined(parts: Mapping[str, Array]) -> dict[str, Array]:
  """The inverse of `in_parts`."""
  return {k: jnp.reshape(v, (-1, *v.shape[2:])) for k, v in parts.items()}
