"""The sampler of a flow as a plan that preflight can compile: one batch of images is one step."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from align_jax.config import build
from align_jax.errors import UserError
from align_jax.models.dit import Dit, DitConfig
from align_jax.models.flat import Skeleton
from align_jax.objectives import make_objective
from align_jax.parallel.mesh import batch_sharding, make_mesh
from align_jax.synth.sampler import Solver, make_draw
from align_jax.train.config import TrainConfig
from align_jax.train.plan import Plan
from align_jax.train.state import TrainState, param_shardings
from launch.analysis import Report, analyse
from launch.chips import Topology, open_topology
from launch.compiler import hbm_limit


def look_at_sampler(config: TrainConfig, topology: Topology, solver: Solver, images: int) -> Report:
  """What drawing a batch needs on a topology; `compiler.prepare` comes first.

  Args:
    config: a training run of the flow: its model, mesh and `compute.scan`.
    topology: the slice.
    solver: of the flow.
    images: that each device draws at a time.
  """
  devices = open_topology(topology)
  limit = hbm_limit(devices) or (topology.chip.hbm if topology.chip else 0)

  def planner(devices: list[jax.Device]) -> Plan:
    return plan_sampler(config, solver, images, devices)

  return analyse(planner, topology, devices, limit)


def plan_sampler(
  config: TrainConfig, solver: Solver, images: int, devices: Sequence[jax.Device] | None = None
) -> Plan:
  """The sampler that `synth.generators.flow` would run, and the shapes of all that it takes.

  Args:
    config, solver, images: see `look_at_sampler`.
    devices: None: all there are.

  Returns: a plan whose state is the parameters and whose batch is captions and seeds.

  Raises:
    UserError: a config of another objective; a solver, mesh or model that cannot be.
  """
  objective = make_objective(config.objective)
  if objective.ModelConfig is not DitConfig:
    name = config.objective['name']
    raise UserError(f'--program=sampler: config.objective.name is {name!r}; a flow is wanted')
  solver.check('sampler')
  model: DitConfig = build(DitConfig, config.model_fields, 'config.model')
  if config.data.length > model.length:
    raise UserError(
      f'config.data.length: {config.data.length} text tokens, but config.model.length is '
      f'{model.length}; use that or less'
    )
  mesh = make_mesh(config.mesh, None if devices is None else list(devices))
  skeleton = Skeleton(lambda rngs: Dit(model, rngs))
  shardings = param_shardings(skeleton, mesh, config.mesh.rules)
  params = {
    name: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=shardings[name])
    for name, shape in skeleton.shapes.items()
  }
  draw = make_draw(model, solver, mesh, config.mesh.rules, scan=config.compute.scan)
  count = images * mesh.shape['data'] * mesh.shape['fsdp']
  rows = {'text': ((config.data.length,), jnp.int32), 'seeds': ((2,), jnp.uint32)}

  @jax.jit
  def step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    return draw(state.frozen, batch['text'], batch['seeds'])

  return Plan(
    step=step,
    state=TrainState(step=(), learn={}, frozen=params, optimizer=(), average=None, key=()),
    batch={
      name: jax.ShapeDtypeStruct((count, *shape), dtype, sharding=batch_sharding(mesh))
      for name, (shape, dtype) in rows.items()
    },
    mesh=mesh,
    model=model,
    skeleton=skeleton,
    optimizer=optax.identity(),
    learn={},
    flops=count * solver.flops(model),
  )


def rate(report: Report, images: int) -> str:
  """One line: what a step of the page above is, and images a second at most."""
  ways = report.mesh['data'] * report.mesh['fsdp']
  line = f'a step draws {images * ways:,} images, {images} on each device'
  if report.roofline is None or not report.fits:
    return line
  return f'{line}: {images * ways / report.roofline.seconds:,.1f} images a second at most'
