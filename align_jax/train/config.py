"""The typed form of a training config; `configs/*.py` hold the values."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from align_jax.errors import require
from align_jax.parallel.mesh import MeshConfig
from align_jax.train.optimizer import OptimizerConfig
from align_jax.train.step import ComputeConfig


@dataclasses.dataclass(frozen=True)
class Weighted:
  """A further source of a mixture."""

  spec: str
  weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """What the batches hold.

  Attributes:
    real: source spec of real images; '' for none.
    generated: source spec of generated images; '' for none.
    partners: source spec where the real partners of generated images are; '' means `real`.
    real_weight, generated_weight: shares of the mixture.
    more: further sources of the mixture.
    tokenizer: a tokenizer folder; '' takes that of `model.init`, else trains one on the captions.
    vocab_size: of a tokenizer trained here.
    length: text tokens per caption.
    resize, interpolation, short_side, min_scale, flip, colour: see `data.transforms.Transform`.
    threads: that read and decode.
    max_skipped: share of unreadable records at which the run stops.
    max_pixels: larger images are skipped unread.
    follow: steps between two looks at sources with `follow=1`; 0: what was finished at the start
      is all that is used.
  """

  real: str = ''
  generated: str = ''
  partners: str = ''
  real_weight: float = 1.0
  generated_weight: float = 1.0
  more: tuple[Weighted, ...] = ()
  tokenizer: str = ''
  vocab_size: int = 1024
  length: int = 32
  resize: Literal['crop', 'squash'] = 'crop'
  interpolation: Literal['bicubic', 'bilinear'] = 'bicubic'
  short_side: int = 0
  min_scale: float = 1.0
  flip: bool = False
  colour: float = 0.0
  threads: int = 2
  max_skipped: float = 0.01
  max_pixels: int = 50_000_000
  follow: int = 0

  def __post_init__(self) -> None:
    require(self.follow >= 0, 'config.data.follow', 'must be 0 or more')


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """How often to save (in steps; 0: at the end only) and how many to keep."""

  every: int = 0
  keep: int = 2

  def __post_init__(self) -> None:
    require(self.every >= 0, 'config.checkpoint.every', 'must be 0 or more')
    require(self.keep >= 1, 'config.checkpoint.keep', 'must be 1 or more')


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """Evaluation inside training, as `align_jax.evaluate` does it.

  Attributes:
    every: steps between evaluations; 0: none.
    data: source spec of held-out real images.
    generated: source spec of generated images, for `probe` and `gap`.
    partners: where their real partners are; '' means `data`.
    tasks: any of retrieval, zero_shot, probe, gap.
    inference: how real images are read, see `evaluation.tasks`.
    templates: prompt templates of zero-shot: photo or scene.
    limit: at most so many records of each source.
  """

  every: int = 0
  data: str = ''
  generated: str = ''
  partners: str = ''
  tasks: tuple[str, ...] = ('retrieval',)
  inference: Literal['clip_flow', 'aligned_encoder'] = 'clip_flow'
  templates: str = 'photo'
  limit: int = 1000

  def __post_init__(self) -> None:
    require(self.every >= 0, 'config.eval.every', 'must be 0 or more')
    require(not self.every or bool(self.data), 'config.eval.data', 'empty; name held-out images')


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """One experiment.

  Attributes:
    seed: of everything random, through named streams.
    steps: updates (batches, with gradient accumulation).
    batch_size: examples in the global batch.
    log_every: steps between lines of metrics.
    objective: `name` and the settings of a method, see `objectives/`.
    model: the fields of the objective's model config, and `init`: '' or where to take weights
      from, see `train.init`.
  """

  seed: int
  steps: int
  batch_size: int
  objective: Mapping[str, Any]
  model: Mapping[str, Any]
  data: DataConfig
  optimizer: OptimizerConfig
  checkpoint: CheckpointConfig = CheckpointConfig()
  eval: EvalConfig = EvalConfig()
  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
  compute: ComputeConfig = dataclasses.field(default_factory=ComputeConfig)
  log_every: int = 50

  def __post_init__(self) -> None:
    for name in ('steps', 'batch_size', 'log_every'):
      require(getattr(self, name) >= 1, f'config.{name}', 'must be 1 or more')

  @property
  def has_towers(self) -> bool:
    """Whether the model embeds images and texts; generators do not."""
    return isinstance(self.model.get('image'), Mapping)

  @property
  def model_fields(self) -> dict[str, Any]:
    """The fields of the objective's model config: `model` without `init`."""
    return {name: value for name, value in self.model.items() if name != 'init'}
