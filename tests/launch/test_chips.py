"""The table of chips, topologies, and the roofline's arithmetic."""

from types import SimpleNamespace

import jax
import pytest

from align_jax.errors import UserError
from align_jax.parallel.chips import CHIPS, find_peak
from launch.chips import parse_topology
from launch.roofline import roofline


@pytest.mark.parametrize(
  ('text', 'name', 'chips'),
  [
    ('v5e:16x16', 'v5e', 256),
    ('V6E:4x8', 'v6e', 32),
    ('v4:4x4x4', 'v4', 64),
    ('v5p:8x8x8', 'v5p', 512),
    ('tpu7x:2x2x1', 'tpu7x', 4),
    ('ironwood:2x2x1', 'tpu7x', 4),
    ('v5litepod:2x2', 'v5e', 4),
  ],
)
def test_topology(text, name, chips):
  topology = parse_topology(text)
  assert topology.chip is CHIPS[name] and topology.chips == chips
  assert topology.name.startswith(f'{name}:')


def test_a_chip_we_have_no_figures_of_is_left_to_libtpu():
  assert parse_topology('tpu9:4x4').chip is None


@pytest.mark.parametrize(
  ('text', 'says'),
  [
    ('v5e', 'write chip:shape, like v5e:16x16'),
    ('v5e-256', 'v4:2x2x1'),
    ('v5e:2x2x2', 'v5e has 2 axes; write v5e:AxB'),
    ('v4:4x4', 'write v4:AxBxC'),
    ('v5e:32x8', 'larger than a pod of v5e, 16x16'),
    ('v5p:32x32x32', 'larger than a pod of v5p, 8960 chips'),
    ('v5e:0x4', 'at least one chip'),
  ],
)
def test_topology_that_cannot_be(text, says):
  with pytest.raises(UserError, match='--topology') as error:
    parse_topology(text)
  assert says in str(error.value)


def test_figures_are_of_one_order():
  for chip in CHIPS.values():
    assert 1e14 < chip.flops < 2e15 and 1e12 > chip.ici >= 1e11
    assert 8e11 < chip.bandwidth < 1e13 and 2**33 < chip.hbm < 2**37


def test_roofline_is_the_slowest_of_three():
  chip = CHIPS['v5e']
  bound = roofline(
    chip, flops=197e12, traffic=2 * 819e9, moved=200e9 / 2, model_flops=197e12 * 0.75
  )
  assert (bound.compute, bound.hbm, bound.interconnect) == (1.0, 2.0, 0.5)
  assert bound.seconds == 2.0 and bound.bound == 'hbm'
  assert bound.mfu == pytest.approx(0.75 / 2)


def test_recomputation_lowers_the_mfu_that_is_possible():
  bound = roofline(CHIPS['v4'], flops=4e12, traffic=0, moved=0, model_flops=3e12)
  assert bound.bound == 'compute' and bound.mfu == pytest.approx(3 / 4)


def test_roofline_of_nothing():
  assert roofline(CHIPS['v4'], flops=0, traffic=0, moved=0, model_flops=0).mfu == 0


@pytest.mark.parametrize(
  ('kind', 'name', 'teraflops'),
  [
    ('TPU v4', 'TPU v4', 275),
    ('TPU v5 lite', 'TPU v5e', 197),
    ('TPU v5e', 'TPU v5e', 197),
    ('TPU v5', 'TPU v5p', 459),
    ('TPU v5p', 'TPU v5p', 459),
    ('TPU v6 lite', 'TPU v6e', 918),
    ('TPU7x', 'TPU 7x', 1153.5),  # a device is half a chip
    ('NVIDIA H100 80GB HBM3', 'H100 SXM', 989),
    ('NVIDIA H100 PCIe', 'H100 PCIe', 756),
    ('NVIDIA H200', 'H200 SXM', 989),
    ('NVIDIA A100-SXM4-80GB', 'A100', 312),
    ('NVIDIA A100-PCIE-40GB', 'A100', 312),
    ('NVIDIA A100 80GB PCIe', 'A100', 312),
    ('NVIDIA L4', 'L4', 121),
  ],
)
def test_peak_of_a_device(kind, name, teraflops):
  peak = find_peak(SimpleNamespace(device_kind=kind))
  assert (peak.name, peak.flops) == (name, teraflops * 1e12)


@pytest.mark.parametrize(
  'kind', ['cpu', 'TPU v9', 'TPU v4 lite', 'NVIDIA L40S', 'NVIDIA H100 80GB HBM3 MIG 1g.10gb', '']
)
def test_a_device_we_do_not_know_has_no_peak(kind):
  assert find_peak(SimpleNamespace(device_kind=kind)) is None


def test_this_machine_has_none():
  assert find_peak(jax.devices()[0]) is None
