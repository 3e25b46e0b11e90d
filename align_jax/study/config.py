"""The typed form of a study config, see `configs/demo.py`."""

import copy
import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal

from align_jax.config import build
from align_jax.errors import UserError, did_you_mean, require
from align_jax.evaluation.report import HEADLINE
from align_jax.evaluation.tasks import Inference
from align_jax.mining.strategy import STRATEGIES
from align_jax.train.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class StudyData:
  """Where the study's images come from; `align_jax.data.sources` explains the specs.

  Attributes:
    real: real images; its splits `train`, `extra` and `test` are used. Training sees the images of
      `train`; of `extra` it sees the captions alone, as prompts; the images of `extra` are the
      ceiling's.
    test: held-out real images, where they are not the split `test` of `real`: a long-tailed set is
      judged on images of all classes alike.
    held_out: further held-out sets to report, name -> spec.
    train_count, extra_count, test_count: at most so many records of each split; 0: all.
  """

  real: str
  test: str = ''
  held_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
  train_count: int = 0
  extra_count: int = 0
  test_count: int = 0


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How the generator is sampled.

  Attributes:
    count: generated images for training: the captions of `train` first, then those of `extra`,
      then both again with other seeds.
    gap_count: generated images of held-out captions, for the modality gap alone.
    steps: of the solver.
    guidance: classifier-free guidance scale; 1: none.
    method: `euler` or `heun`.
    batch_size: images at a time.
    shards: files per set.
    seed: of the noise.
  """

  count: int
  gap_count: int
  steps: int
  guidance: float
  method: Literal['euler', 'heun'] = 'euler'
  batch_size: int = 250
  shards: int = 4
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class Arm:
  """One way to use the images.

  Attributes:
    name: of its folder and of its key in metrics.json.
    title: for the report.
    stages: overrides of `StudyConfig.arm`, one per stage; a stage starts from the one before. They
      share the steps of `StudyConfig.arm` evenly, so that every arm takes as many. The last one may
      be a captioner: its objective is `caption`, it overrides `StudyConfig.captioner` and takes
      the steps of that.
    readings: how held-out real images are embedded, the first for the headline. GMAIL contradicts
      itself (algorithm 1 against section 3.2), so an arm with tracks measures both.
    generated: how many of the generated images the arm may see; 0: all.
    group: the table of the report it stands in; '' is the headline table.
  """

  name: str
  title: str
  stages: tuple[Mapping[str, Any], ...]
  readings: tuple[Inference, ...] = ('clip_flow',)
  generated: int = 0
  group: str = ''


@dataclasses.dataclass(frozen=True)
class MinedPlan:
  """A batch plan, mined with the base of each seed; `{plan:NAME}` in an arm is its file.

  Attributes:
    source: spec of the records, with `{generated}` and its like.
    pairs: which of their sides are a pair, see `data.pair_sources.open_pairs`.
    partners: spec of the real images of `generated_to_real`.
    generated: how many of the generated images are mined, as of the arms that follow the plan.
    strategy: one of `mining.strategy.STRATEGIES`.
    k: hard negatives of a pair: clusters are of k + 1.
    settings: fields of `mining.strategy.MiningConfig` that differ from their defaults.
  """

  strategy: str
  source: str = '{paired}'
  pairs: Literal['generated_to_real', 'image_to_caption', 'caption_to_image'] = 'generated_to_real'
  partners: str = '{real}'
  generated: int = 0
  k: int = 7
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    require(
      self.strategy in STRATEGIES,
      'config.plans',
      f'no strategy {self.strategy!r}{did_you_mean(self.strategy, STRATEGIES)}',
    )
    require(self.k >= 1, 'config.plans', f'k={self.k} must be at least 1')


@dataclasses.dataclass(frozen=True)
class StudyConfig:
  """One study.

  Attributes:
    title: of the report.
    seeds: every base and arm is trained once per seed; generator and generated images are shared.
    base: training config of the base, which every arm starts from.
    arm: training config that the stages of arms override.
    arms: in the order of the tables; each is run for all seeds before the next.
    captioner: training config that captioners of arms override; it starts from the towers of the
      stage before, or of the base. Captions of held-out images are scored.
    judge: run folder of the image-text model that gives captions a CLIPScore; `{model:NAME}` is one
      of `models`, '' the base.
    generator, sampling: training config of a generator, and how it is sampled at the captions of
      real images; {} and None: the generated images are `sets`.
    models: training configs by name, of models that sets are made with; `{model:NAME}` in a set is
      the run folder. Each is trained once, for all seeds.
    sets: configs of the data engine (`synth.config.SynthConfig`) by name; `{set:NAME}` in an arm is
      what was made by it. Each is made once, for all seeds.
    plans: batch plans by name; what they are like is among the metrics of arms that follow one.
    tasks: evaluation tasks; of an arm with a captioner they judge the towers that it reads with.
    templates: which prompt templates zero-shot classification uses.
    eval_limit: at most so many records of each source are evaluated.
    frequency: from how many real training images on a class is common, and frequent; None: classes
      are not told apart.
    headline: metrics of the tables and the plot; those where more is better come first.
    comparisons: pairs of arms; the page says where the first is better than the second.
    trends: by title, arms that differ in the number of generated images alone; they are plotted
      over it.
  """

  title: str
  seeds: tuple[int, ...]
  data: StudyData
  base: Mapping[str, Any]
  arm: Mapping[str, Any]
  arms: tuple[Arm, ...]
  captioner: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  judge: str = ''
  generator: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  sampling: Sampling | None = None
  models: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
  sets: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
  plans: Mapping[str, MinedPlan] = dataclasses.field(default_factory=dict)
  tasks: tuple[str, ...] = ('retrieval', 'zero_shot', 'probe', 'gap')
  templates: str = 'scene'
  eval_limit: int = 4000
  frequency: tuple[int, int] | None = None
  headline: tuple[str, ...] = HEADLINE
  comparisons: tuple[tuple[str, str], ...] = (('aligned', 'naive_mix'),)
  trends: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    require(
      bool(self.generator) == (self.sampling is not None),
      'config.sampling',
      'a generator and how it is sampled go together; set both or neither',
    )
    require(
      bool(self.generator or self.sets), 'config.sets', 'no generated images: set sets or generator'
    )
    for name in (*self.models, *self.sets, *self.plans):
      require(
        re.fullmatch(r'[a-z0-9_]+', name) is not None,
        f'config.sets ({name})',
        'a name is made of a-z, 0-9 and _',
      )
    for arm in self.arms:
      found = [is_captioner(stage) for stage in arm.stages]
      require(
        not any(found[:-1]), f'config.arms ({arm.name})', 'a captioner is the last stage of an arm'
      )
      require(
        bool(self.captioner) or not any(found),
        'config.captioner',
        f'empty, but the arm {arm.name} ends with a captioner; set a training config',
      )
    arms = [arm.name for arm in self.arms]
    for title, names in self.trends.items():
      for name in names:
        require(
          name in arms,
          f'config.trends ({title})',
          f'{name!r} is no arm{did_you_mean(name, arms)}',
        )


def is_captioner(stage: Mapping[str, Any]) -> bool:
  """Whether a stage of an arm overrides the captioner."""
  return stage.get('objective', {}).get('name') == 'caption'


def stage_values(
  config: StudyConfig, arm: Arm, index: int
) -> tuple[Mapping[str, Any], dict[str, Any]]:
  """What a stage of an arm overrides, and by what."""
  stage = arm.stages[index]
  if is_captioner(stage):
    return config.captioner, dict(stage)
  sharing = sum(not is_captioner(each) for each in arm.stages)
  return config.arm, {'steps': config.arm['steps'] // sharing, **stage}


def train_config(
  values: Mapping[str, Any], override: Mapping[str, Any], names: Mapping[str, str], where: str
) -> TrainConfig:
  """Builds a training config from values, overrides and the study's own names.

  Args:
    values: a training config.
    override: fields that differ, nested like `values`.
    names: what `{real}`, `{generated}` and their like stand for in source specs and folders.
    where: for messages.

  Raises:
    UserError: an override of a field that does not exist, or a name that is unknown.
  """
  merged = _merge(values, override)
  return build(TrainConfig, fill(merged, names, where), where)


def _merge(values: Any, override: Mapping[str, Any]) -> Any:
  out = dict(copy.copy(values))
  for key, value in override.items():
    # an objective is replaced whole: the settings of one method mean nothing to another
    if key != 'objective' and isinstance(value, Mapping) and isinstance(out.get(key), Mapping):
      value = _merge(out[key], value)
    out[key] = value
  return out


def fill(value: Any, names: Mapping[str, str], where: str) -> Any:
  """Returns values in which `{name}`, as a whole string, is replaced by what it stands for."""
  if isinstance(value, str) and value.startswith('{') and value.endswith('}'):
    if value[1:-1] not in names:
      raise UserError(f'{where}: {value} is unknown; known: {", ".join(names)}')
    return names[value[1:-1]]
  if isinstance(value, Mapping):
    return {k: fill(v, names, f'{where}.{k}') for k, v in value.items()}
  if isinstance(value, list | tuple):
    return tuple(fill(v, names, where) for v in value)
  return value
