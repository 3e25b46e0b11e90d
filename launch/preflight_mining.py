"""The search for hard negatives, compiled for a slice: a portion of the queries is one step."""

import dataclasses
import time

from align_jax.mining.nearest import Layout, lower_search
from align_jax.parallel.mesh import MeshConfig, make_mesh
from launch.analysis import Report, count
from launch.chips import Topology, open_topology
from launch.compiler import Oversized, compile_lowered, hbm_limit, memory
from launch.hlo_memory import Buffer
from launch.roofline import roofline

# `Precision.HIGHEST` makes a float32 product of six bfloat16 ones
_PASSES = 6


@dataclasses.dataclass(frozen=True)
class Search:
  """What is searched for.

  Attributes:
    queries, candidates, dim: how many, and of which dimension.
    depth: nearest candidates of each query.
    recall: see `mining.nearest.nearest`.
  """

  queries: int
  candidates: int
  dim: int
  depth: int
  recall: float = 0.0


def look_at_mining(search: Search, topology: Topology) -> tuple[Report, Layout]:
  """What a portion of the queries needs on a topology; `compiler.prepare` comes first.

  Args:
    search: what is searched for.
    topology: the slice.

  Returns: the report of one portion, and how many there are.
  """
  devices = open_topology(topology)
  limit = hbm_limit(devices) or (topology.chip.hbm if topology.chip else 0)
  mesh = make_mesh(MeshConfig(), devices)
  begin = time.monotonic()
  lowered, layout = lower_search(
    search.queries, search.candidates, search.dim, search.depth, mesh, recall=search.recall
  )
  compiled = compile_lowered(lowered)
  rows = [4 * search.dim * n // len(devices) for n in (layout.queries, layout.candidates)]
  found, cost = None, None
  buffers: tuple[Buffer, ...] = ()
  if isinstance(compiled, Oversized):
    limit, peak = compiled.limit, compiled.needed
  else:
    found = memory(compiled)
    peak = found.peak
    cost, buffers = count(compiled)
  model_flops = 2.0 * layout.queries * search.candidates * search.dim
  bound = None
  if cost is not None and topology.chip is not None:
    bound = roofline(
      topology.chip,
      flops=_PASSES * cost.flops,
      traffic=cost.traffic,
      moved=cost.moved,
      model_flops=model_flops / len(devices),
    )
  report = Report(
    topology=topology,
    devices=len(devices),
    mesh=dict(mesh.shape),
    fits=found is not None and found.peak + found.code <= limit,
    limit=limit,
    peak=peak,
    held={'queries': rows[0], 'candidates': rows[1]},
    memory=found,
    cost=cost,
    model_flops=model_flops,
    roofline=bound,
    buffers=buffers,
    stand_in='',
    seconds=time.monotonic() - begin,
  )
  return report, layout


def whole(report: Report, search: Search, layout: Layout) -> str:
  """Says what a step of the page is, and what the whole search comes to."""
  each = (
    f'a step searches for {min(layout.queries, search.queries):,} of {search.queries:,} queries: '
    f'{layout.calls} {"steps" if layout.calls > 1 else "step"}'
  )
  bound, cost = report.roofline, report.cost
  if bound is None or cost is None or not report.fits:
    return each
  # the last step has the queries that are left, and its ring goes round once as well
  steps = search.queries / layout.queries
  compute, hbm, wire = bound.compute * steps, bound.hbm * steps, bound.interconnect * layout.calls
  sent = layout.calls * cost.moved
  return (
    f'{each}, {max(compute, hbm, wire):.3g} s or more in all: products {compute:.3g} s, '
    f'HBM {hbm:.3g} s, the ring {wire:.3g} s ({sent / 1e9:.3g} GB sent by each chip)\n'
    f'a float32 product is {_PASSES} bfloat16 ones; choosing the largest is not counted'
  )
