"""The contrastive losses that an objective may call, in one table that can be exchanged.

A step whose batch is split over devices puts others of the same value there, which never hold
all logits at once (`parallel.ring`).
"""

import dataclasses
from collections.abc import Callable

from jax import Array

from align_jax.losses.alignment import alignment_loss
from align_jax.losses.contrastive import info_nce, sigmoid_loss, symmetric_info_nce


@dataclasses.dataclass(frozen=True)
class Losses:
  """Each is called as the function of its name in `losses.contrastive` and `losses.alignment`."""

  info_nce: Callable[..., Array] = info_nce
  symmetric_info_nce: Callable[..., Array] = symmetric_info_nce
  sigmoid_loss: Callable[..., Array] = sigmoid_loss
  alignment_loss: Callable[..., Array] = alignment_loss


PLAIN = Losses()
