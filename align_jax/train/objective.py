"""What an objective is: a method's model, what of it learns, and its loss over a batch."""

from typing import Any, ClassVar, Protocol, runtime_checkable

from flax import nnx
from jax import Array

Batch = dict[str, Array]
Metrics = dict[str, Array]


@runtime_checkable
class Objective(Protocol):
  """One method. Implementations are frozen dataclasses whose fields are the method's settings.

  Attributes:
    ModelConfig: the dataclass that `config.model` is read into.
    batch_coupled: the loss couples the examples of a batch, so plain gradient accumulation would
      silently lose negatives.
  """

  ModelConfig: ClassVar[type]
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

  def loss(self, model: Any, batch: Batch, key: Array) -> tuple[Array, Metrics]:
    """Returns the scalar loss of a batch and named scalars to log."""
    ...
