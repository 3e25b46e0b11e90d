"""Reports of a preflight, made up."""

from launch.analysis import Report
from launch.chips import parse_topology
from launch.compiler import Memory
from launch.hlo_costs import Cost, Moved
from launch.hlo_memory import Buffer
from launch.roofline import roofline

GIB = 2**30


def report(
  *, fits=True, peak=4 * GIB, step=1.0, mesh=(8, 1, 1), held=GIB, topology='v5e:2x4'
) -> Report:
  """A step on v5e that takes `step` seconds and `peak` bytes."""
  topology = parse_topology(topology)
  assert topology.chip is not None
  cost = Cost(197e12 * step, 819e9 * step / 2, {'all-reduce': Moved(24, 3e9)}, ('jit(f)/while',))
  names = ('data', 'fsdp', 'tensor')
  return Report(
    topology=topology,
    devices=8,
    mesh=dict(zip(names, mesh, strict=True)),
    fits=fits,
    limit=topology.chip.hbm,
    peak=peak,
    held={'parameters': held // 2, 'optimizer': held // 2, 'average': 0, 'batch': 2**20},
    memory=Memory(held + 2**20, 0, peak - held - 2**20, 2**26, peak) if fits else None,
    cost=cost,
    model_flops=8 * 197e12 * 0.5 * step,
    roofline=roofline(
      topology.chip, flops=cost.flops, traffic=cost.traffic, moved=cost.moved, model_flops=1e14
    ),
    buffers=(Buffer(GIB, 'bf16[8,1024]', 2, 'jit(step)/a/dot_general', 'align_jax/x.py:7'),),
    stand_in='' if fits else 'v5p',
    seconds=3.0,
  )
