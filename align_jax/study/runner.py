"""Runs a study: base -> generators -> generated images -> arms -> scores. Each piece resumes.

Every piece is a folder under the work folder. A piece that is finished is not touched again, so a
study that was stopped goes on where it was, and a config with one more arm costs that arm alone.
"""

import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from align_jax.config import build
from align_jax.data.sources import open_source
from align_jax.data.tokenizer import load_tokenizer
from align_jax.errors import UserError, needs_extra, require
from align_jax.evaluation.tasks import Inference, find_task
from align_jax.mining.strategy import MiningConfig
from align_jax.models.flat import Skeleton
from align_jax.objectives import make_objective
from align_jax.study import clock as clock_lib
from align_jax.study.config import (
  Arm,
  Sampling,
  StudyConfig,
  fill,
  is_captioner,
  stage_values,
  train_config,
)
from align_jax.study.plans import mine_plan, plan_file, planned, seen
from align_jax.study.score import score_captioner, score_run
from align_jax.study.specs import Specs, model_folder, split_specs
from align_jax.synth.generate import Prompt, generate
from align_jax.synth.sampler import make_sampler
from align_jax.synth.trained import check_training, train_once
from align_jax.train.checkpoints import load_params
from align_jax.train.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Run:
  """A finished arm of one seed.

  Attributes:
    workdir: of its last stage; the base, where there is none.
    captions: JSON file of what its captioner says of test images; None: it has none.
    stages: the work folders of its stages.
  """

  arm: str
  seed: int
  workdir: Path
  base: Path
  scores: Mapping[Inference, Mapping[str, float]]
  captions: Path | None = None
  stages: tuple[Path, ...] = ()

  @property
  def towers(self) -> Path:
    """The run of its last image-text model."""
    if self.captions is None:
      return self.workdir
    return self.stages[-2] if len(self.stages) > 1 else self.base


def run_study(config: StudyConfig, workdir: Path) -> tuple[list[Run], clock_lib.Clock]:
  """Runs what is not done yet; returns every arm of every seed, and the clock that timed it."""
  specs = split_specs(config, workdir)
  check_sources(config, specs, workdir)
  clock = clock_lib.Clock(workdir / 'seconds.json', total_work(config))
  bases = {}
  for seed in config.seeds:
    folder = workdir / f'seed{seed}' / 'base'
    with clock.piece(f'base, seed {seed}', _work(config.base)):
      values = train_config(
        config.base, {'seed': seed}, specs.names(1, 1, ''), f'config.base (seed {seed})'
      )
      train_once(values, folder, f'base, seed {seed}')
    bases[seed] = folder
  _make_generated(config, specs, workdir, bases[config.seeds[0]], clock)
  for seed in config.seeds:
    for name in config.plans:
      with clock.piece(f'plan {name}, seed {seed}', clock_lib.PLAN):
        mine_plan(config, specs, workdir, bases[seed], name, seed)
  runs = []
  for arm in config.arms:
    for seed in config.seeds:
      runs.append(_run_arm(config, specs, workdir, bases[seed], arm, seed, clock))
  return runs, clock


def _make_generated(
  config: StudyConfig, specs: Specs, workdir: Path, base: Path, clock: clock_lib.Clock
) -> None:
  """Trains the generators and makes all generated images."""
  tokenizer = {'data': {'tokenizer': str(base / 'tokenizer')}}
  names = specs.names(1, 1, '')
  if config.sampling is not None:
    with clock.piece('generator', _work(config.generator) * clock_lib.GENERATOR_EXAMPLE):
      values = train_config(config.generator, tokenizer, names, 'config.generator')
      train_once(values, workdir / 'generator', 'generator')
    with clock.piece('generated images', config.sampling.count * clock_lib.GENERATED_IMAGE):
      draw(config, config.sampling, specs, values, workdir)
  for name, model in config.models.items():
    with clock.piece(f'model {name}', _work(model) * clock_lib.GENERATOR_EXAMPLE):
      values = train_config(model, {}, names, f'config.models.{name}')
      train_once(values, model_folder(workdir, name), name)
  for name in config.sets:
    count = config.sets[name]['images']['count']
    with clock.piece(f'set {name}', count * clock_lib.GENERATED_IMAGE):
      _engine().make_set(config, specs, workdir, name)


def _engine() -> ModuleType:
  """What makes sets: only studies that have some need the packages of the engine."""
  with needs_extra('synth'):
    from align_jax.study import sets
  return sets


def total_work(config: StudyConfig) -> float:
  """Returns the work of a whole study, in examples trained."""
  stages = [(arm, index) for arm in config.arms for index in range(len(arm.stages))]
  arms = sum(_stage_work(config, arm, index) for arm, index in stages)
  arms += len(config.arms) * clock_lib.EVALUATION
  generators = [*([config.generator] if config.generator else []), *config.models.values()]
  images = sum(made['images']['count'] for made in config.sets.values())
  images += config.sampling.count if config.sampling is not None else 0
  return (
    len(config.seeds) * (_work(config.base) + arms)
    + sum(map(_work, generators)) * clock_lib.GENERATOR_EXAMPLE
    + images * clock_lib.GENERATED_IMAGE
    + len(config.seeds) * len(config.plans) * clock_lib.PLAN
    + clock_lib.PAGE
  )


def _work(training: Mapping[str, Any]) -> float:
  return float(training['steps'] * training['batch_size'])


def _stage_work(config: StudyConfig, arm: Arm, index: int) -> float:
  values, override = stage_values(config, arm, index)
  return _work({**values, **override})


def _judge(config: StudyConfig, workdir: Path) -> str:
  """The run folder of the judge of captions; '' for the base."""
  models = {f'model:{name}': str(model_folder(workdir, name)) for name in config.models}
  return str(fill(config.judge, models, 'config.judge'))


def check_sources(config: StudyConfig, specs: Specs, workdir: Path) -> None:
  """Opens every source and builds every training config, so that mistakes show before any work."""
  for spec in (specs.real, specs.extra, specs.test, *config.data.held_out.values()):
    open_source(spec)
  for task in config.tasks:
    find_task(task)
  if config.captioner:
    with needs_extra('captions'):
      importlib.import_module('sacrebleu')
  _judge(config, workdir)
  names = [arm.name for arm in config.arms]
  require(len(set(names)) == len(names), 'config.arms', 'two arms share a name')
  for arm in config.arms:
    require(
      (arm.name == 'base') == (not arm.stages),
      f'config.arms ({arm.name})',
      'an arm without stages is named base, and only that',
    )
  for name, plan in config.plans.items():
    build(MiningConfig, plan.settings, f'config.plans.{name}.settings')
  placeholders = specs.names(1, 1, 'run:base')
  placeholders |= {f'plan:{name}': '' for name in config.plans}
  parts = {'config.base': config.base}
  parts |= {'config.generator': config.generator} if config.generator else {}
  parts |= {f'config.models.{name}': values for name, values in config.models.items()}
  for where, values in parts.items():
    check_training(train_config(values, {}, placeholders, where))
  for name in config.sets:
    _engine().set_config(config, specs, workdir, name)
  for number, arm in enumerate(config.arms):
    for index in range(len(arm.stages)):
      where = f'config.arms[{number}].stages[{index}] ({arm.name})'
      values, override = stage_values(config, arm, index)
      check_training(train_config(values, override, placeholders, where))


def draw(
  config: StudyConfig, sampling: Sampling, specs: Specs, generator: TrainConfig, workdir: Path
) -> None:
  """Samples the generator: images to train on, and images of held-out captions for the gap."""
  folder = workdir / 'generator'
  objective = make_objective(generator.objective)
  model_config: Any = build(objective.ModelConfig, generator.model_fields, 'config.model')
  skeleton = Skeleton(lambda rngs: objective.create_model(model_config, rngs))
  params = load_params(folder, averaged=True, step=generator.steps)
  tokenizer = load_tokenizer(folder / 'tokenizer')
  sampler = make_sampler(
    skeleton,
    params,
    tokenizer,
    length=generator.data.length,
    image_size=model_config.image_size,
    steps=sampling.steps,
    guidance=sampling.guidance,
    method=sampling.method,
  )
  licence = open_source(specs.real).licence
  paired = [(spec, paired) for spec, paired in ((specs.real, True), (specs.extra, False))]
  sets = {
    'train': (paired, sampling.count),
    'gap': ([(specs.test, True)], sampling.gap_count),
  }
  for name, (sources, count) in sets.items():
    generate(
      sampler,
      list(_prompts(sources, count)),
      workdir / 'generated' / name,
      batch_size=sampling.batch_size,
      seed=sampling.seed + (name == 'gap'),
      generator_id=f'dit-rf:{generator.steps}',
      shards=sampling.shards,
      licence=licence,
    )


def _prompts(sources: list[tuple[str, bool]], count: int) -> list[Prompt]:
  """The first `count` prompts: the captions of each source in turn, again and again."""
  once = []
  for spec, paired in sources:
    source = open_source(spec)
    for record in (source[i] for i in range(len(source))):
      if record.captions:
        once.append(Prompt.of(record, paired=paired))
  if not once:
    raise UserError(f'{sources[0][0]}: no captions to prompt the generator with')
  return [once[i % len(once)] for i in range(count)]


def _run_arm(
  config: StudyConfig,
  specs: Specs,
  workdir: Path,
  base: Path,
  arm: Arm,
  seed: int,
  clock: clock_lib.Clock,
) -> Run:
  name = arm.name
  folder = workdir / f'seed{seed}' / name
  init = base
  folders = []
  for index in range(len(arm.stages)):
    stage_folder = folder / f'stage{index + 1}'
    label = f'{name}, seed {seed}' + (f', stage {index + 1}' if len(arm.stages) > 1 else '')
    with clock.piece(label, _stage_work(config, arm, index)):
      of, override = stage_values(config, arm, index)
      values = train_config(
        of,
        {**override, 'seed': seed},
        specs.names(seen(config, arm.generated), len(open_source(specs.real)), f'run:{init}')
        | {f'plan:{p}': str(plan_file(workdir, seed, p)) for p in config.plans},
        f'config.arms ({name}), stage {index + 1}',
      )
      train_once(values, stage_folder, label)
    init = stage_folder
    folders.append(stage_folder)
  captions = folder / 'captions.json' if arm.stages and is_captioner(arm.stages[-1]) else None
  run = Run(name, seed, init, base, {}, captions, tuple(folders))
  with clock.piece(f'{name}, seed {seed}, evaluation', clock_lib.EVALUATION):
    scores = score_run(config, specs, arm.readings, run.towers, folder / 'scores.json')
    if captions is not None:
      judge = Path(_judge(config, workdir) or base)
      said = score_captioner(config, specs, arm.readings, run.workdir, judge, captions)
      scores = {reading: {**scores[reading], **said[reading]} for reading in arm.readings}
    told = planned(config, workdir, arm, seed)
    scores = {reading: {**found, **told} for reading, found in scores.items()}
  return dataclasses.replace(run, scores=scores)
