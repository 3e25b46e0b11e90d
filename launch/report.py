"""The one page of a preflight, and its JSON."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from launch.analysis import Report
from launch.search import Found


def page(report: Report, name: str, advice: Sequence[str]) -> str:
  """The report as plain text for a terminal."""
  topology = report.topology
  mesh = ' '.join(f'{axis}={n}' for axis, n in report.mesh.items())
  what = 'chips' if report.devices == topology.chips else f'chips, {report.devices} devices'
  lines = [f'{name} on {topology.name}: {topology.chips} {what}, mesh {mesh}', '']
  lines += _verdict(report, advice)
  lines += _memory(report)
  lines += _flops(report)
  lines += _collectives(report)
  lines += _roofline(report)
  lines += _buffers(report)
  lines.append(f'compiled in {report.seconds:.0f} s')
  return '\n'.join(lines)


def _verdict(report: Report, advice: Sequence[str]) -> list[str]:
  limit = size(report.limit)
  if report.fits:
    return [f'fits       yes: {size(report.headroom)} of {limit} stay free on each chip', '']
  over = f'{size(report.temporaries)} of temporaries, {limit} there; {size(report.peak)} in all'
  tries = [f'  try {line}' for line in advice]
  return [f'fits       NO: {over}', *tries, '']


def _memory(report: Report) -> list[str]:
  rows = [(name, size(n), '') for name, n in report.held.items() if n]
  found = report.memory
  if found is not None:
    padding = found.arguments - sum(report.held.values())
    rows.append(('padding and keys', size(padding), 'of state and batch in HBM'))
    rows.append(('activations/temporaries', size(found.temporaries), ''))
    rows.append(('results', size(found.outputs), 'that replace nothing'))
    rows.append(('program', size(found.code), ''))
  else:
    rows.append(('activations/temporaries', size(report.temporaries), 'with padding and results'))
  total = report.peak + (found.code if found else 0)
  rows.append(('in all', size(total), f'of {size(report.limit)}'))
  return ['HBM per chip', *table(rows), '']


def _flops(report: Report) -> list[str]:
  if report.flops is None:
    return [f'FLOPs per step, analytic  {report.model_flops:.4g}', '']
  ratio = f'{report.flops / report.model_flops:.3f} times' if report.model_flops else ''
  rows = [
    (
      'compiled',
      f'{report.flops:.4g}',
      'matrix products, loops multiplied, recomputation included',
    ),
    ('analytic', f'{report.model_flops:.4g}', f'the model alone; compiled is {ratio} that'),
  ]
  assert report.cost is not None
  notes = [f'  counted once, rounds not known: loop {n}' for n in report.cost.unknown_loops]
  notes += [f'  not counted, says no cost: kernel {n}' for n in report.cost.unknown_kernels]
  return ['FLOPs per step, all chips', *table(rows), *notes, '']


def _collectives(report: Report) -> list[str]:
  if report.cost is None:
    return []
  rows = [
    (kind, f'{moved.count:,.0f}', f'{size(moved.bytes)} sent by each chip')
    for kind, moved in sorted(report.cost.collectives.items())
  ]
  return ['collectives per step', *table(rows or [('none', '', '')]), '']


def _roofline(report: Report) -> list[str]:
  bound = report.roofline
  if bound is None or report.cost is None:
    missing = 'no figures of this chip' if report.cost else 'unknown: too large even for v5p'
    return [f'roofline   {missing}', '']
  rows = [
    ('compute', f'{bound.compute * 1e3:.3f} ms', f'{report.cost.flops:.4g} FLOPs'),
    ('HBM', f'{bound.hbm * 1e3:.3f} ms', f'{size(report.cost.traffic)} moved'),
    ('interconnect', f'{bound.interconnect * 1e3:.3f} ms', f'{size(report.cost.moved)} sent'),
  ]
  least = f'  a step takes {bound.seconds * 1e3:.3f} ms or more ({bound.bound}), MFU at most '
  return ['roofline per chip', *table(rows), f'{least}{bound.mfu:.1%}', '']


def _buffers(report: Report) -> list[str]:
  if not report.buffers:
    return []
  rows = [
    (size(b.size), f'{b.count} x {b.shape}', f'{b.source or "-"}  {_tail(b.op_name)}')
    for b in report.buffers
  ]
  head = 'largest buffers (they need not live at once)'
  if report.stand_in:
    head = f'largest buffers, as compiled for {report.stand_in}, which has room'
  return [head, *table(rows), '']


def ranking(found: Iterable[Found]) -> str:
  """The search's table, best first."""
  rows = [('step', 'MFU', 'HBM free', 'bound', 'settings')]
  for one in found:
    bound = one.report.roofline
    if one.report.fits and bound is not None:
      step, mfu = f'{bound.seconds * 1e3:.3f} ms', f'{bound.mfu:.1%}'
      rows.append((step, mfu, size(one.report.headroom), bound.bound, one.candidate.flags()))
  if len(rows) == 1:
    return 'search: none of the settings tried fits'
  return '\n'.join(['settings that fit, by projected time', *table(rows)])


def to_json(
  report: Report, name: str, advice: Sequence[str], found: Sequence[Found] | None = None
) -> dict[str, Any]:
  """The report as plain values."""
  kept, cost = report.memory, report.cost
  values: dict[str, Any] = {
    'config': name,
    'topology': report.topology.name,
    'chips': report.topology.chips,
    'devices': report.devices,
    'mesh': dict(report.mesh),
    'fits': report.fits,
    'hbm': {
      'peak_bytes': report.peak,
      'limit_bytes': report.limit,
      'headroom_bytes': report.headroom,
      **{f'{part}_bytes': n for part, n in report.held.items()},
      'temporaries_bytes': report.temporaries,
      'outputs_bytes': kept.outputs if kept else None,
      'program_bytes': kept.code if kept else None,
      'traffic_bytes': cost.traffic if cost else None,
    },
    'flops_per_step': report.flops,
    'flops_per_step_analytic': report.model_flops,
    'collectives': {k: dataclasses.asdict(m) for k, m in cost.collectives.items()}
    if cost
    else None,
    'roofline': _roofline_json(report),
    'largest_buffers': [dataclasses.asdict(b) for b in report.buffers],
    'compiled_for': report.stand_in or report.topology.name.split(':')[0],
    'unknown_loops': list(cost.unknown_loops) if cost else [],
    'unknown_kernels': list(cost.unknown_kernels) if cost else [],
    'advice': list(advice),
    'compile_seconds': round(report.seconds, 3),
  }
  if found is not None:
    values['search'] = [
      {
        **dataclasses.asdict(one.candidate),
        'fits': one.report.fits,
        'peak_bytes': one.report.peak,
        'headroom_bytes': one.report.headroom,
        'flops_per_step': one.report.flops,
        'roofline': _roofline_json(one.report),
      }
      for one in found
    ]
  return values


def _roofline_json(report: Report) -> dict[str, Any] | None:
  bound = report.roofline
  if bound is None:
    return None
  return {
    'compute_s': bound.compute,
    'hbm_s': bound.hbm,
    'interconnect_s': bound.interconnect,
    'step_s': bound.seconds,
    'bound': bound.bound,
    'mfu': bound.mfu,
  }


def table(rows: Sequence[tuple[str, ...]]) -> list[str]:
  """Aligned columns: the first and last to the left, those between to the right."""
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  last = len(widths) - 1
  return [
    '  '
    + '  '.join(
      cell.ljust(width) if i in (0, last) else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  ]


def size(n: float) -> str:
  """Bytes for a person."""
  for unit, scale in (('GiB', 2**30), ('MiB', 2**20), ('KiB', 2**10)):
    if abs(n) >= scale:
      return f'{n / scale:.2f} {unit}'
  return f'{n:.0f} B'


def _tail(op_name: str) -> str:
  """The end of a JAX operation's path."""
  return '/'.join(op_name.split('/')[-2:])
