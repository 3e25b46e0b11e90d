"""What a chip can do at most: figures of TPUs, and the peak of whatever device a run is on.

TPU figures are those of the Cloud TPU documentation, docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,
v6e,tpu7x}: peak bf16 FLOP/s, HBM bandwidth, inter-chip interconnect (ICI) per chip. The
documentation gives the ICI of both directions together; a chip sends half of it. HBM is what libtpu
0.0.42 lets a program use, read from its message for a program that is far too large.

GPU figures are the dense bf16 tensor-core rates of NVIDIA's data sheets (H100, H200, A100, L4
Tensor Core GPU). Those sheets print the rate with 2:4 sparsity for Hopper and Ada, twice the dense
one.
"""

import dataclasses
import re
from typing import Any

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One JAX device of a TPU topology.

  Attributes:
    name: begins a topology's name, `v5e`.
    axes: dimensions of its torus.
    hbm: bytes a program may use.
    flops: bf16 FLOP/s at most.
    bandwidth: bytes/s of HBM.
    ici: bytes/s it sends over all its links, one way.
    largest: chips of a whole pod; libtpu ends the process over a larger slice.
    devices: JAX devices of one chip.
    options: what libtpu must be told beyond the name.
  """

  name: str
  axes: int
  hbm: int
  flops: float
  bandwidth: float
  ici: float
  largest: int
  devices: int = 1
  options: tuple[tuple[str, Any], ...] = ()


@dataclasses.dataclass(frozen=True)
class Peak:
  """What one JAX device can compute at most: a name for people, dense bf16 FLOP/s."""

  name: str
  flops: float


CHIPS = {
  chip.name: chip
  for chip in (
    Chip(
      name='v4',
      axes=3,
      hbm=int(30.75 * _GIB),
      flops=275e12,
      bandwidth=1200e9,
      ici=300e9,
      largest=4096,
      # without it libtpu shows v4's two cores as two devices; a v4 machine shows one
      options=(('chip_config_name', 'megacore'),),
    ),
    Chip('v5e', 2, int(15.75 * _GIB), flops=197e12, bandwidth=819e9, ici=200e9, largest=256),
    Chip('v5p', 3, int(95.74 * _GIB), flops=459e12, bandwidth=2765e9, ici=600e9, largest=8960),
    Chip('v6e', 2, int(31.25 * _GIB), flops=918e12, bandwidth=1638e9, ici=400e9, largest=256),
    Chip(
      name='tpu7x',
      axes=3,
      hbm=int(94.75 * _GIB),
      # each of its two chiplets is a device with half of what the chip has
      flops=2307e12 / 2,
      bandwidth=7380e9 / 2,
      ici=600e9 / 2,
      largest=9216,
      devices=2,
    ),
  )
}
# `device_kind` as libtpu gives it; both spellings stand in jax/_src/pallas/mosaic/tpu_info.py.
_TPU_KINDS = {
  'TPU v4': 'v4',
  'TPU v5 lite': 'v5e',
  'TPU v5e': 'v5e',
  'TPU v5': 'v5p',
  'TPU v5p': 'v5p',
  'TPU v6 lite': 'v6e',
  'TPU v6e': 'v6e',
  'TPU7x': 'tpu7x',
}
# `device_kind` of a GPU is the driver's product name. Whole names: a slice of one, `… MIG 1g.10gb`,
# can do only a part of this and must not match.
_GPU_KINDS = (
  (r'NVIDIA H100 \d+GB HBM\d\w?', Peak('H100 SXM', 989e12)),
  (r'NVIDIA H100 PCIe', Peak('H100 PCIe', 756e12)),
  (r'NVIDIA H100 NVL', Peak('H100 NVL', 835e12)),
  (r'NVIDIA H200', Peak('H200 SXM', 989e12)),
  (r'NVIDIA H200 NVL', Peak('H200 NVL', 835e12)),
  (r'NVIDIA A100-(SXM|SXM4|PCIE)-\d+GB|NVIDIA A100 80GB PCIe', Peak('A100', 312e12)),
  (r'NVIDIA L4', Peak('L4', 121e12)),
)


def find_peak(device: Any) -> Peak | None:
  """Returns what a JAX device can do at most, by its `device_kind`; None where we do not know."""
  kind = device.device_kind
  if kind in _TPU_KINDS:
    chip = CHIPS[_TPU_KINDS[kind]]
    return Peak(f'TPU {chip.name.removeprefix("tpu")}', chip.flops)
  return next((peak for pattern, peak in _GPU_KINDS if re.fullmatch(pattern, kind)), None)
