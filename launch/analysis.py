"""What a planned step needs on a topology, put together from the compiler's word and our counts."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from align_jax.errors import UserError
from align_jax.objectives import make_objective
from align_jax.train.config import TrainConfig
from align_jax.train.plan import Plan, plan
from launch.chips import Topology, open_topology, parse_topology
from launch.compiler import Memory, Oversized, bytes_per_device, compile_step, hbm_limit, memory
from launch.hlo import parse
from launch.hlo_costs import Cost, Counter
from launch.hlo_memory import Buffer, largest_buffers
from launch.roofline import Roofline, roofline

# makes the plan for given devices
Planner = Callable[[list[jax.Device]], Plan]


@dataclasses.dataclass(frozen=True)
class Report:
  """The answer for one configuration.

  Attributes:
    topology: the slice.
    devices: JAX devices of it.
    mesh: axis -> size.
    fits: whether a chip holds the step and its program.
    limit: bytes of HBM a program may use.
    peak: bytes per chip at the highest, without the program itself.
    held: what is there between steps: name -> bytes per chip, without padding.
    memory: the compiler's account; None for a step that does not fit.
    cost: FLOPs, HBM traffic and collectives of a step, per chip.
    model_flops: analytic FLOPs of a step, all devices.
    roofline: the least time; None for a chip we have no figures of.
    buffers: the largest arrays.
    stand_in: chip that FLOPs, collectives and buffers were compiled for where the step does not
      fit this one; '' otherwise.
    seconds: the compiler took.
  """

  topology: Topology
  devices: int
  mesh: Mapping[str, int]
  fits: bool
  limit: int
  peak: int
  held: Mapping[str, int]
  memory: Memory | None
  cost: Cost | None
  model_flops: float
  roofline: Roofline | None
  buffers: tuple[Buffer, ...]
  stand_in: str
  seconds: float

  @property
  def headroom(self) -> int:
    """Bytes that stay free; negative: that are missing."""
    return self.limit - self.peak - (self.memory.code if self.memory else 0)

  @property
  def temporaries(self) -> int:
    """Bytes of activations, gradients and all else that lives within a step."""
    return self.memory.temporaries if self.memory else self.peak - sum(self.held.values())

  @property
  def flops(self) -> float | None:
    """FLOPs of the compiled step, all devices, recomputation included."""
    return self.cost.flops * self.devices if self.cost else None


def look(config: TrainConfig, topology: Topology, *, stand_in: bool = True) -> Report:
  """What a config's step needs on a topology; `compiler.prepare` comes first.

  Args:
    config: the experiment.
    topology: the slice.
    stand_in: see `analyse`.
  """
  devices = open_topology(topology)
  limit = hbm_limit(devices) or (topology.chip.hbm if topology.chip else 0)

  def planner(devices: list[jax.Device]) -> Plan:
    return plan(config, make_objective(config.objective), devices)

  return analyse(planner, topology, devices, limit, stand_in=stand_in)


def analyse(
  planner: Planner,
  topology: Topology,
  devices: list[jax.Device],
  limit: int,
  *,
  stand_in: bool = True,
) -> Report:
  """Compiles the step for a topology and counts it.

  Args:
    planner: makes the plan.
    topology: the slice.
    devices: of the topology.
    limit: bytes of HBM that a program may use.
    stand_in: a step that does not fit is compiled once more, for a chip that has room, to see
      which arrays are large.
  """
  planned = planner(devices)
  begin = time.monotonic()
  compiled = compile_step(planned.step, planned.state, planned.batch)
  found: Memory | None = None
  instead = ''
  if isinstance(compiled, Oversized):
    limit, peak = compiled.limit, compiled.needed
    compiled, instead = _elsewhere(planner, len(devices)) if stand_in else (None, '')
  else:
    found = memory(compiled)
    peak = found.peak
  cost, buffers = count(compiled) if compiled is not None else (None, ())
  bound = None
  if cost is not None and topology.chip is not None:
    bound = roofline(
      topology.chip,
      flops=cost.flops,
      traffic=cost.traffic,
      moved=cost.moved,
      model_flops=planned.flops / len(devices),
    )
  return Report(
    topology=topology,
    devices=len(devices),
    mesh=dict(planned.mesh.shape),
    fits=found is not None and found.peak + found.code <= limit,
    limit=limit,
    peak=peak,
    held=held(planned),
    memory=found,
    cost=cost,
    model_flops=float(planned.flops),
    roofline=bound,
    buffers=buffers,
    stand_in=instead,
    seconds=time.monotonic() - begin,
  )


def count(compiled: Any) -> tuple[Cost, tuple[Buffer, ...]]:
  """Costs of a compiled program, and its largest arrays."""
  module = parse(compiled.as_text())
  counter = Counter(module)
  cost = counter.cost()
  return cost, tuple(largest_buffers(module, counter.scheduled))


def held(planned: Plan) -> dict[str, int]:
  """Bytes per device of state and batch."""
  state = planned.state
  parts = {
    'parameters': (state.learn, state.frozen),
    'optimizer': state.optimizer,
    'average': state.average,
    'batch': planned.batch,
  }
  return {name: bytes_per_device(part) for name, part in parts.items()}


def _elsewhere(planner: Planner, devices: int) -> tuple[Any, str]:
  """The step compiled for as many v5p, the chip with most HBM; None where it does not fit."""
  if devices % 4:
    return None, ''
  topology = parse_topology(f'v5p:2x2x{devices // 4}')
  try:
    planned = planner(open_topology(topology))
    compiled = compile_step(planned.step, planned.state, planned.batch)
  except UserError:  # a pod of that shape libtpu does not know
    return None, ''
  return (None, '') if isinstance(compiled, Oversized) else (compiled, 'v5p')
