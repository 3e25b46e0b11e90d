"""A function of parameters and rows, run on each device on its share of the rows."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from align_jax.parallel.mesh import BATCH_AXES, batch_sharding, replicated


def ways(mesh: Mesh | None) -> int:
  """Returns how many devices share rows."""
  return 1 if mesh is None else mesh.shape['data'] * mesh.shape['fsdp']


def per_device(run: Callable[..., jax.Array], mesh: Mesh | None) -> Callable[..., jax.Array]:
  """Returns the same function of the same arrays, whose work the devices share.

  Args:
    run: of a table of parameters, and of any arrays whose first axis are the rows (None among
      them); returns an array of rows. No row may depend on another one.
    mesh: of the devices; None: the default device.
  """
  if mesh is None:
    return run
  rows = PartitionSpec(BATCH_AXES)

  def shared(params: Mapping[str, jax.Array], *arrays: jax.Array | None) -> jax.Array:
    return jax.shard_map(
      run,
      mesh=mesh,
      in_specs=(PartitionSpec(), *(rows,) * len(arrays)),
      out_specs=rows,
      axis_names=set(BATCH_AXES),
    )(params, *arrays)

  return shared


def place_params(params: Mapping[str, Any], mesh: Mesh | None) -> dict[str, jax.Array]:
  """Puts parameters on every device, whole."""
  if mesh is None:
    return {name: jnp.asarray(p) for name, p in params.items()}
  return {name: jax.device_put(p, replicated(mesh)) for name, p in params.items()}


def place_rows(arrays: Any, mesh: Mesh | None) -> Any:
  """Puts a tree of rows on the devices, a share on each; their number is a multiple of `ways`."""
  return arrays if mesh is None else jax.device_put(arrays, batch_sharding(mesh))
