"""The least time a step can take on a chip, from what it computes, reads and sends."""

import dataclasses

from align_jax.parallel.chips import Chip


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Seconds that each part of a chip needs for one step, were it never kept waiting.

  Attributes:
    compute: for the FLOPs at the bf16 peak.
    hbm: for the bytes through HBM.
    interconnect: for the bytes sent, over all links at once. A collective along one axis of the
      torus uses only that axis's links, so this is a bound and no forecast.
    mfu: model FLOPs over what the chip could do in the bound time: no run of this program can have
      a higher one.
  """

  compute: float
  hbm: float
  interconnect: float
  mfu: float

  @property
  def seconds(self) -> float:
    """The longest of the three: the projected time of a step."""
    return max(self.compute, self.hbm, self.interconnect)

  @property
  def bound(self) -> str:
    """Which of them that is."""
    return max(('compute', 'hbm', 'interconnect'), key=lambda name: getattr(self, name))


def roofline(
  chip: Chip, *, flops: float, traffic: float, moved: float, model_flops: float
) -> Roofline:
  """Bounds a step; all figures per device and step.

  Args:
    chip: the device.
    flops: what the compiled program computes, recomputation included.
    traffic: bytes through HBM.
    moved: bytes sent to other chips.
    model_flops: what the model needs, without recomputation.
  """
  compute, hbm, wire = flops / chip.flops, traffic / chip.bandwidth, moved / chip.ici
  longest = max(compute, hbm, wire)
  mfu = model_flops / (chip.flops * longest) if longest else 0.0
  return Roofline(compute, hbm, wire, mfu)
