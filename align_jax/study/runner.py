"""Runs a study: base -> generator -> generated images -> arms -> scores. Each piece resumes.

Every piece is a folder under the work folder. A piece that is finished is not touched again, so a
study that was stopped goes on where it was, and a config with one more arm costs that arm alone.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from align_jax.config import build
from align_jax.data.sources import open_source
from align_jax.data.tokenizer import load_tokenizer
from align_jax.errors import UserError, require
from align_jax.evaluation.tasks import Inference, find_task
from align_jax.models.flat import Skeleton
from align_jax.objectives import make_objective
from align_jax.study.config import Arm, StudyConfig, train_config
from align_jax.study.score import score_run
from align_jax.study.specs import Specs, split_specs
from align_jax.synth.generate import Prompt, generate
from align_jax.synth.sampler import make_sampler
from align_jax.train.checkpoints import load_params
from align_jax.train.config import TrainConfig
from align_jax.train.loop import check_resume, train


@dataclasses.dataclass(frozen=True)
class Run:
  """A finished arm of one seed."""

  arm: str
  seed: int
  workdir: Path
  base: Path
  scores: Mapping[Inference, Mapping[str, float]]


def run_study(config: StudyConfig, workdir: Path) -> tuple[list[Run], dict[str, float]]:
  """Runs what is not done yet; returns every arm of every seed, and the seconds of each piece."""
  specs = split_specs(config, workdir)
  check_sources(config, specs)
  pieces = len(config.seeds) * (1 + sum(len(arm.stages) + 1 for arm in config.arms)) + 2
  clock = _Clock(workdir / 'seconds.json', pieces)
  bases = {}
  for seed in config.seeds:
    folder = workdir / f'seed{seed}' / 'base'
    with clock.piece(f'base, seed {seed}'):
      values = train_config(
        config.base, {'seed': seed}, specs.names(1, 1, ''), f'config.base (seed {seed})'
      )
      train_once(values, folder, f'base, seed {seed}')
    bases[seed] = folder
  with clock.piece('generator'):
    values = train_config(
      config.generator,
      {'data': {'tokenizer': str(bases[config.seeds[0]] / 'tokenizer')}},
      specs.names(1, 1, ''),
      'config.generator',
    )
    train_once(values, workdir / 'generator', 'generator')
  with clock.piece('generated images'):
    draw(config, specs, values, workdir)
  runs = []
  for arm in config.arms:
    for seed in config.seeds:
      runs.append(_run_arm(config, specs, workdir, bases[seed], arm, seed, clock))
  return runs, clock.seconds


def check_sources(config: StudyConfig, specs: Specs) -> None:
  """Opens every source and builds every training config, so that mistakes show before any work."""
  for spec in (specs.real, specs.extra, specs.test, *config.data.held_out.values()):
    open_source(spec)
  for task in config.tasks:
    find_task(task)
  names = [arm.name for arm in config.arms]
  require(len(set(names)) == len(names), 'config.arms', 'two arms share a name')
  for arm in config.arms:
    require(
      (arm.name == 'base') == (not arm.stages),
      f'config.arms ({arm.name})',
      'an arm without stages is named base, and only that',
    )
  placeholders = specs.names(1, 1, 'run:base')
  for values, where in ((config.base, 'config.base'), (config.generator, 'config.generator')):
    _check_training(train_config(values, {}, placeholders, where))
  for number, arm in enumerate(config.arms):
    for index, stage in enumerate(arm.stages):
      where = f'config.arms[{number}].stages[{index}] ({arm.name})'
      _check_training(train_config(config.arm, stage, placeholders, where))


def _check_training(values: TrainConfig) -> None:
  objective = make_objective(values.objective)
  model = {k: v for k, v in values.model.items() if k != 'init'}
  build(objective.ModelConfig, model, 'config.model')


def train_once(config: TrainConfig, folder: Path, label: str) -> None:
  """Trains into `folder` unless that is done.

  Raises:
    UserError: the run there had another config.
  """
  check_resume(config, folder)
  if not (folder / 'checkpoints' / str(config.steps)).is_dir():
    train(config, make_objective(config.objective), folder, label=label)


def draw(config: StudyConfig, specs: Specs, generator: TrainConfig, workdir: Path) -> None:
  """Samples the generator: images to train on, and images of held-out captions for the gap."""
  folder = workdir / 'generator'
  sampling = config.sampling
  objective = make_objective(generator.objective)
  model = {k: v for k, v in generator.model.items() if k != 'init'}
  model_config: Any = build(objective.ModelConfig, model, 'config.model')
  skeleton = Skeleton(lambda rngs: objective.create_model(model_config, rngs))
  params = load_params(folder, averaged=True)
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
  clock: '_Clock',
) -> Run:
  name = arm.name
  folder = workdir / f'seed{seed}' / name
  init = base
  values = None
  for index, stage in enumerate(arm.stages, start=1):
    stage_folder = folder / f'stage{index}'
    label = f'{name}, seed {seed}' + (f', stage {index}' if len(arm.stages) > 1 else '')
    with clock.piece(label):
      values = train_config(
        config.arm,
        {'steps': config.arm['steps'] // len(arm.stages), **stage, 'seed': seed},
        specs.names(
          arm.generated or config.sampling.count, len(open_source(specs.real)), f'run:{init}'
        ),
        f'config.arms ({name}), stage {index}',
      )
      train_once(values, stage_folder, label)
    init = stage_folder
  with clock.piece(f'{name}, seed {seed}, evaluation'):
    scores = score_run(config, specs, arm.readings, init, folder / 'scores.json')
  return Run(name, seed, init, base, scores)


class _Clock:
  """Seconds per piece, kept over restarts; prints which piece runs and how long is left."""

  def __init__(self, path: Path, pieces: int):
    self._path, self._pieces, self._done = path, pieces, 0
    self.seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    self._began = time.monotonic()

  def piece(self, name: str) -> '_Piece':
    return _Piece(self, name)

  def finish(self, name: str, seconds: float) -> None:
    self._done += 1
    self.seconds[name] = self.seconds.get(name, 0.0) + seconds
    self._path.parent.mkdir(parents=True, exist_ok=True)
    aside = self._path.with_suffix('.partial')
    aside.write_text(json.dumps(self.seconds, indent=1))
    aside.replace(self._path)
    passed = time.monotonic() - self._began
    left = passed / self._done * (self._pieces - self._done)
    print(
      f'[{self._done}/{self._pieces}] {name}: {seconds:.0f} s; {passed / 60:.1f} min passed, '
      f'about {left / 60:.0f} left',
      file=sys.stderr,
      flush=True,
    )


class _Piece:
  def __init__(self, clock: _Clock, name: str):
    self._clock, self._name = clock, name

  def __enter__(self) -> None:
    self._start = time.monotonic()

  def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
    if error is None:
      self._clock.finish(self._name, time.monotonic() - self._start)
      jax.clear_caches()  # programs of a finished piece only take memory
