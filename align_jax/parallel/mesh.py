"""The device mesh, and the one table from logical axis names to mesh axes."""

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from align_jax.errors import UserError, did_you_mean

AXES = ('data', 'fsdp', 'tensor')
BATCH_AXES = ('data', 'fsdp')  # both hold different examples

# Logical axis of a parameter -> mesh axis that splits it. Axes that are not named stay whole.
RULES: Mapping[str, str] = {
  'embed': 'fsdp',
  'mlp': 'tensor',
  'qkv': 'tensor',
  'heads': 'tensor',
  'vocab': 'tensor',
}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """How many devices each mesh axis takes; one axis may be -1: all that are left."""

  data: int = -1
  fsdp: int = 1
  tensor: int = 1
  rules: Mapping[str, str] = dataclasses.field(default_factory=lambda: dict(RULES))


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
  """Lays the devices out as `config` says.

  Raises:
    UserError: the axes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  for logical, axis in config.rules.items():
    if axis not in AXES:
      raise UserError(
        f'config.mesh.rules.{logical}: {axis!r} is no mesh axis{did_you_mean(axis, AXES)}'
      )
  sizes = [config.data, config.fsdp, config.tensor]
  if sizes.count(-1) > 1 or any(s == 0 or s < -1 for s in sizes):
    raise UserError(f'config.mesh: sizes {sizes} must be positive, one of them may be -1')
  fixed = int(np.prod([s for s in sizes if s != -1]))
  if -1 in sizes:
    sizes[sizes.index(-1)] = len(devices) // fixed
  if int(np.prod(sizes)) != len(devices):
    named = ' x '.join(f'{n}={s}' for n, s in zip(AXES, sizes, strict=True))
    raise UserError(
      f'config.mesh: {named} does not make {len(devices)} devices; set one axis to -1'
    )
  return Mesh(np.asarray(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Examples are split over `data` and `fsdp`."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device holds the whole array."""
  return NamedSharding(mesh, PartitionSpec())


def param_sharding(
  mesh: Mesh, axes: tuple[str | None, ...], shape: tuple[int, ...], rules: Mapping[str, str]
) -> NamedSharding:
  """Returns the sharding of one parameter from its logical axes.

  A dimension that the mesh axis does not divide stays whole: small models must run on any mesh.
  """
  spec: list[str | None] = []
  for axis, size in zip(axes, shape, strict=True):
    target = rules.get(axis) if axis else None
    fits = target is not None and target not in spec and size % mesh.shape[target] == 0
    spec.append(target if fits else None)
  return NamedSharding(mesh, PartitionSpec(*spec))


def check_batch(batch_size: int, mesh: Mesh) -> None:
  """Raises a UserError unless the batch splits evenly over the devices that share it."""
  ways = mesh.shape['data'] * mesh.shape['fsdp']
  if batch_size % ways:
    near = max(ways, batch_size // ways * ways)
    raise UserError(
      f'config.batch_size: {batch_size} is not divisible by the {ways} devices of the mesh axes '
      f'data and fsdp; use {near} or change config.mesh'
    )


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Makes global arrays, split over the batch axes, from this process's examples."""
  sharding = batch_sharding(mesh)
  return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
