"""What an objective is: a method's model, what of it learns, and its loss over a batch."""

from typing import Any, ClassVar, Protocol, runtime_checkable

from flax import nnx
from jax import Array

from align_jax.losses.table import PLAIN, Losses

Batch = dict[str, Array]
Metrics = dict[str, Array]


@runtime_checkable
class Objective(Protocol):
  """One method. Implementations are frozen dataclasses whose fields are the method's settings.

  A loss is told in three parts, so that a batch of any size can be embedded a few examples at a
  time, on any number of devices, and still be one batch to the loss (`batch_loss` joins them).

  Attributes:
    ModelConfig: the dataclass that `config.model` is read into.
    texts: what `config.data.text` may be.
    batch_coupled: the loss couples the examples of a batch, so plain gradient accumulation would
      silently lose negatives.
  """

  ModelConfig: ClassVar[type]
  texts: ClassVar[tuple[str, ...]]
  batch_coupled: ClassVar[bool]

  @property
  def generated_only(self) -> bool:
    """The batches hold generated images alone; real ones come in as their partners."""
    ...

  @property
  def needs_partner(self) -> bool:
    """The loss reads the real partner of generated examples."""
    ...

  def create_model(self, config: Any, rngs: nnx.Rngs) -> nnx.Module:
    """Builds the model with fresh parameters."""
    ...

  def trainable(self, name: str) -> bool:
    """Whether the parameter of this name learns; the others are frozen bit for bit."""
    ...

  def prepare(self, batch: Batch, key: Array) -> Batch:
    """Adds what is drawn at random for each example, so that nothing after it is random."""
    ...

  def embed(self, model: Any, batch: Batch) -> Batch:
    """Runs the model on some examples of the batch; returns arrays with a row for each example."""
    ...

  def loss(self, model: Any, outputs: Batch, batch: Batch, losses: Losses) -> tuple[Array, Metrics]:
    """Returns the scalar loss of the whole batch and named scalars to log.

    Args:
      model: for its scalars (temperature, bias) alone; its towers ran in `embed`.
      outputs: of `embed`, for the whole batch.
      batch: of `prepare`.
      losses: the contrastive losses, plain or as a ring over the devices.
    """
    ...

  def flops(self, config: Any) -> int:
    """Floating-point operations of one example in `embed`, forward and backward.

    Matrix products alone, 2 a multiply-add; what does not learn has no backward pass for weights.
    """
    ...


def batch_loss(
  objective: Objective, model: Any, batch: Batch, key: Array, losses: Losses = PLAIN
) -> tuple[Array, Metrics]:
  """The loss of a batch that is embedded at once, and named scalars to log."""
  batch = objective.prepare(batch, key)
  return objective.loss(model, objective.embed(model, batch), batch, losses)
