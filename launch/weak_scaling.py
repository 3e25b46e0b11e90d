"""Weak scaling on paper: a config compiled for ever larger slices, a fixed share for each chip.

  python -m launch.weak_scaling --config=configs/siglip_b16.py --per_chip=128 \
    --topologies=v5p:2x2x4,v5p:4x4x4,v5p:4x8x8,v5p:8x8x8 \
    [--json=FILE] [--plot=FILE.png] [--config.…]

The step of every slice is compiled as `launch.preflight` does it; the table shows what a chip
computes, reads and sends, the least time of a step and how it grows. Needs libtpu.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from absl import flags

from align_jax import cli
from align_jax.files import write_file
from align_jax.train.init import make_config
from launch.analysis import look
from launch.compiler import prepare
from launch.report import to_json
from launch.scaling import Point, draw, read_topologies, scaling_table

_CONFIG = cli.define_config()
_TOPOLOGIES = flags.DEFINE_list(
  'topologies', None, 'Slices of one chip, the smallest first: v5p:2x2x4,v5p:4x4x4.', required=True
)
_PER_CHIP = flags.DEFINE_integer('per_chip', 128, 'Examples of each chip.', lower_bound=1)
_JSON = flags.DEFINE_string('json', None, 'File to write the figures to.')
_PLOT = flags.DEFINE_string('plot', None, 'File to draw the three times to, .png or .svg.')


def main() -> None:
  """Compiles for every slice, prints the table, writes the JSON and the plot."""
  config = make_config(_CONFIG.value.to_dict())
  topologies = read_topologies(_TOPOLOGIES.value)
  prepare()
  points: list[Point] = []
  for k, topology in enumerate(topologies, start=1):
    batch = _PER_CHIP.value * topology.chips
    print(f'{k}/{len(topologies)}: {topology.name}', file=sys.stderr, flush=True)
    report = look(dataclasses.replace(config, batch_size=batch), topology, stand_in=False)
    points.append(Point(batch, report))
  print(scaling_table(points))
  if _JSON.value:
    write_file(Path(_JSON.value), json.dumps([_values(p) for p in points], indent=2) + '\n')
  if _PLOT.value:
    draw(points, Path(_PLOT.value))


def _values(point: Point) -> dict[str, Any]:
  return {'batch': point.batch, **to_json(point.report, '', ())}


if __name__ == '__main__':
  cli.run(main)
