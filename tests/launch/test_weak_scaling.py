"""Weak scaling: the slices asked for, the table, the plot. What is compiled is preflight's."""

import dataclasses

import pytest

from align_jax.errors import UserError
from launch.scaling import Point, draw, read_topologies, scaling_table
from tests.launch.reports import GIB, report


def points() -> list[Point]:
  return [
    Point(1024, report(topology='v5e:2x4')),
    Point(4096, report(topology='v5e:4x8', step=1.25, peak=5 * GIB)),
  ]


def test_slices_of_one_chip_the_smallest_first():
  assert [t.chips for t in read_topologies(['v5p:2x2x4', 'v5p:4x4x4'])] == [16, 64]
  for names in (['v5p:2x2x4', 'v5e:4x4'], ['v9:2x2'], ['v5e:4x4', 'v5e:2x2'], ['v5e:4x4'] * 2):
    with pytest.raises(UserError, match='--topologies'):
      read_topologies(names)


def test_table_says_how_much_of_the_rate_is_kept():
  head, first, second = scaling_table(points()).splitlines()
  assert head.split() == [
    'chips',
    'batch',
    'peak',
    'compute',
    'HBM',
    'links',
    'step',
    'MFU',
    'kept',
    'bound',
  ]
  assert first.split()[:4] == ['8', '1,024', '4.00', 'GiB'] and '100.0%' in first
  assert '1250.00 ms' in second and '80.0%' in second and second.endswith('compute')


def test_a_slice_too_small_is_an_answer():
  small = dataclasses.replace(points()[0], report=report(fits=False, peak=32 * GIB))
  lines = scaling_table([small, points()[1]]).splitlines()
  assert 'does not fit' in lines[1] and '1250.00 ms' in lines[2]


def test_plot(tmp_path):
  draw(points(), tmp_path / 'scaling.png')
  assert (tmp_path / 'scaling.png').read_bytes()[:4] == b'\x89PNG'
