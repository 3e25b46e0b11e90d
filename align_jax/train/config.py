"""The typed form of a training config; `configs/*.py` hold the values."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from align_jax.data.embed_prompt import Level
from align_jax.data.examples import Text
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
    text: what of a record is read: `plain` a caption as it is; for models that answer, `captions` a
      chat where an image is asked for and a caption answers, `questions` one where a question
      about it is answered, see `data.questions`; for embedders, `pairs`: `real` is then a spec of
      pairs, see `data.pair_sources`.
    questions: that are drawn of an image (`text='questions'`): they stand in one row, which has the
      image once, each as if it alone were there.
    summaries: share of images with which, instead of questions, image and caption are summarised in
      one word, as embedders are asked to, see `data.summaries`.
    level: of the prompts of pairs, see `data.embed_prompt.embed_turns`.
    plan: batch plan that the records come by, cluster by cluster; '' for none.
    length: text tokens per caption, or of a whole chat, patches of the image among them.
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
  text: Text = 'plain'
  questions: int = 1
  summaries: float = 0.0
  level: Level = 'hierarchical'
  plan: str = ''
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
    require(
      self.text != 'questions' or (not self.flip and self.min_scale == 1),
      'config.data.text',
      "'questions' ask for places in the whole image; set flip=False and min_scale=1",
    )
    require(
      self.questions == 1 or (self.questions > 1 and self.text == 'questions'),
      'config.data.questions',
      f"{self.questions}; set 1, or more with text='questions'",
    )
    require(
      self.summaries == 0 or (0 < self.summaries <= 1 and self.text == 'questions'),
      'config.data.summaries',
      f"{self.summaries}; set 0, or a share up to 1 with text='questions'",
    )
    if self.text == 'pairs':
      require(bool(self.real), 'config.data.real', "empty; name the pairs (text='pairs')")
      for name in ('generated', 'partners', 'more'):
        require(
          not getattr(self, name),
          f'config.data.{name}',
          "pairs are of one source; join them in config.data.real, or leave text='plain'",
        )


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
    data: source spec of held-out real images; or a benchmark of pairs, see
      `evaluation.pair_scores`, which the run is measured on as an embedder.
    generated: source spec of generated images, for `probe` and `gap`.
    partners: where their real partners are; '' means `data`.
    tasks: any of retrieval, zero_shot, probe, gap; of a model that answers, answers or captions.
    inference: how real images are read, see `evaluation.tasks`.
    templates: prompt templates of zero-shot: photo or scene.
    limit: at most so many records of each source.
    judge: run folder of an image-text model that gives captions a CLIPScore; '': none does.
  """

  every: int = 0
  data: str = ''
  generated: str = ''
  partners: str = ''
  tasks: tuple[str, ...] = ('retrieval',)
  inference: Literal['clip_flow', 'aligned_encoder'] = 'clip_flow'
  templates: str = 'photo'
  limit: int = 1000
  judge: str = ''

  def __post_init__(self) -> None:
    require(self.every >= 0, 'config.eval.every', 'must be 0 or more')
    require(not self.every or bool(self.data), 'config.eval.data', 'empty; name held-out images')


@dataclasses.dataclass(frozen=True)
class RemineConfig:
  """Mining while training, see `train.remine`: hard negatives of the model as it is by then.

  Attributes:
    every: steps between two minings; 0: none. The first is before the first step, unless
      `config.data.plan` names a plan to begin with.
    lag: steps from taking the weights to the first batch by the new plan, while mining goes on
      beside training; 0: training waits.
    data: spec of the pairs that are mined: records of the training data by their ids; '' where
      `config.data.real` is of pairs.
    k: hard negatives of a pair: clusters are of k + 1.
    strategy: by which.
    settings: fields of `mining.strategy.MiningConfig` that differ from their defaults.
    labelled_tasks: `saha`: names of tasks where another class is no hidden match.
  """

  every: int = 0
  lag: int = 0
  data: str = ''
  k: int = 7
  strategy: str = 'saha_mutual'
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  labelled_tasks: tuple[str, ...] = ()

  def __post_init__(self) -> None:
    require(self.every >= 0, 'config.remine.every', 'must be 0 or more')
    require(
      0 <= self.lag < max(self.every, 1),
      'config.remine.lag',
      f'{self.lag} must be 0 or more, and less than every={self.every}',
    )
    require(self.k >= 1, 'config.remine.k', 'must be 1 or more')


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
  remine: RemineConfig = RemineConfig()
  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
  compute: ComputeConfig = dataclasses.field(default_factory=ComputeConfig)
  log_every: int = 50

  def __post_init__(self) -> None:
    for name in ('steps', 'batch_size', 'log_every'):
      require(getattr(self, name) >= 1, f'config.{name}', 'must be 1 or more')
    if self.data.plan or self.remine.every:
      require(
        not self.data.follow,
        'config.data.follow',
        'a batch plan is of data that do not grow; set 0',
      )
    if self.remine.every:
      require(
        bool(self.remine.data) or self.data.text == 'pairs',
        'config.remine.data',
        'empty; name the pairs to mine, such as SPEC&pairs=image_to_caption',
      )
      require(
        self.batch_size % (self.remine.k + 1) == 0,
        'config.batch_size',
        f'{self.batch_size}, but clusters are of config.remine.k + 1 = {self.remine.k + 1}; set a '
        'multiple of that',
      )

  @property
  def has_towers(self) -> bool:
    """Whether the model embeds images and texts; generators and models that answer do not."""
    return all(isinstance(self.model.get(tower), Mapping) for tower in ('image', 'text'))

  @property
  def answers(self) -> bool:
    """Whether the model answers questions about images with text."""
    return isinstance(self.model.get('decoder'), Mapping)

  @property
  def model_fields(self) -> dict[str, Any]:
    """The fields of the objective's model config: `model` without `init`."""
    return {name: value for name, value in self.model.items() if name != 'init'}
