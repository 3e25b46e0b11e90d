"""The page of `launch.weak_scaling`: slices of growing size, their table, their plot."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from align_jax.errors import UserError
from launch.analysis import Report
from launch.chips import Topology, parse_topology
from launch.report import size, table


@dataclasses.dataclass(frozen=True)
class Point:
  """The step of one slice.

  Attributes:
    batch: examples of the global batch.
    report: what the compiler says.
  """

  batch: int
  report: Report

  @property
  def chips(self) -> int:
    """Chips of the slice."""
    return self.report.topology.chips


def read_topologies(names: Sequence[str]) -> list[Topology]:
  """Reads `--topologies`.

  Raises:
    UserError: slices of several chips, of one whose figures are not known, or not growing.
  """
  found = [parse_topology(name) for name in names]
  chips = {t.name.split(':')[0] for t in found}
  if len(chips) != 1 or found[0].chip is None:
    raise UserError(
      f'--topologies: {", ".join(sorted(chips))}; name slices of one chip whose figures are known'
    )
  counts = [t.chips for t in found]
  if counts != sorted(set(counts)):
    raise UserError(f'--topologies: {counts} chips; name the smallest first, each size once')
  return found


def scaling_table(points: Sequence[Point]) -> str:
  """A row for each slice; `kept` is the rate per chip against that of the smallest."""
  heads = ('chips', 'batch', 'peak', 'compute', 'HBM', 'links', 'step', 'MFU', 'kept', 'bound')
  rows: list[tuple[str, ...]] = [heads]
  first = next((p.report.roofline for p in points if p.report.roofline is not None), None)
  for point in points:
    bound = point.report.roofline
    head = (f'{point.chips}', f'{point.batch:,}', size(point.report.peak))
    if bound is None or first is None or not point.report.fits:
      rows.append((*head, *['-'] * 6, 'does not fit'))
      continue
    times = (bound.compute, bound.hbm, bound.interconnect, bound.seconds)
    shares = (f'{bound.mfu:.1%}', f'{first.seconds / bound.seconds:.1%}')
    rows.append((*head, *(f'{t * 1e3:.2f} ms' for t in times), *shares, bound.bound))
  return '\n'.join(table(rows))


def draw(points: Sequence[Point], path: Path) -> None:
  """Draws the three times over the number of chips."""
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot

  known = [(p.chips, p.report.roofline) for p in points if p.report.roofline is not None]
  figure, axes = pyplot.subplots(figsize=(6, 3.6), layout='constrained')
  for name in ('compute', 'hbm', 'interconnect'):
    times = [getattr(bound, name) * 1e3 for _, bound in known]
    axes.plot([chips for chips, _ in known], times, marker='o', label=name)
  axes.set_xscale('log', base=2)
  axes.set_xticks([chips for chips, _ in known], [f'{chips}' for chips, _ in known])
  axes.set_yscale('log')
  axes.set_xlabel(f'{points[0].report.topology.name.split(":")[0]} chips')
  axes.set_ylabel('least time of a step, ms')
  axes.legend()
  axes.grid(alpha=0.3)
  figure.savefig(path, dpi=150)
  pyplot.close(figure)
