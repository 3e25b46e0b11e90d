"""Runs a study of embedders: models -> zero-shot -> pairs -> plans -> training -> scores.

Every piece is a file or folder under the work folder. A piece that is finished is not touched
again, so that a study that was stopped goes on where it was:

  tokenizer/, models/NAME/                 the model that embeds, where the study trains it
  zero_shot/LEVEL.json                     its scores before any contrastive step
  LEVEL/seedN/pairs.safetensors            embedded pairs, for all strategies
  LEVEL/seedN/STRATEGY/plan.jsonl.gz       its batches, and in mined.json what they are like
  LEVEL/seedN/STRATEGY/run/, scores.json   what was trained on them
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align_jax.data.pair_sources import open_pairs
from align_jax.data.sources import open_source
from align_jax.embedding_study.config import EmbeddingStudyConfig, PromptLevel, Strategy
from align_jax.embedding_study.score import embedder_of, scores
from align_jax.embedding_study.tokens import make_tokenizer
from align_jax.errors import UserError, require
from align_jax.evaluation.mmeb import open_emoji_mmeb
from align_jax.mining_run import EmbeddedPairs, embed_pairs
from align_jax.mining_run import check as check_mining
from align_jax.study.clock import Clock
from align_jax.study.config import fill, train_config
from align_jax.study.kept import kept
from align_jax.study.pairs import load_embedded, make_batch_plan, save_embedded
from align_jax.synth.trained import check_training, train_once
from align_jax.train.config import TrainConfig
from align_jax.train.init import find_origins

if TYPE_CHECKING:
  from align_jax.data.pair_record import PairSource
else:
  PairSource = Any  # the shape check of the tests cannot follow a name that exists for mypy only

# What stands beside training, in pairs trained: an embedded content is a forward pass of one side.
_CONTENT = 0.2
_MINING = 200.0  # of one plan
_CONTENTS = 40.0  # that are embedded for each query of an evaluation and its candidates, about

Scores = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Cell:
  """A finished cell: one level, strategy and seed.

  Attributes:
    run: the run folder.
    scores: hit@1, see `evaluation.mmeb.evaluate`.
    mined: of its plan, see `study.pairs.make_batch_plan`.
  """

  level: str
  strategy: str
  seed: int
  run: Path
  scores: Scores
  mined: Scores


@dataclasses.dataclass(frozen=True)
class Found:
  """What is known by now: zero-shot scores by level, and the cells that are finished."""

  zero_shot: Mapping[str, Scores]
  cells: tuple[Cell, ...]

  def by_strategy(self, level: str) -> dict[str, dict[str, list[float]]]:
    """The values of a level: strategy -> metric, of its scores and of its plan, -> one a seed."""
    out: dict[str, dict[str, list[float]]] = {}
    for cell in self.cells:
      if cell.level == level:
        for key, value in {**cell.scores, **cell.mined}.items():
          out.setdefault(cell.strategy, {}).setdefault(key, []).append(value)
    return out


def run_study(
  config: EmbeddingStudyConfig,
  workdir: Path,
  under_way: Callable[[Found, Clock], None] = lambda found, clock: None,
) -> tuple[Found, Clock]:
  """Runs what is not done yet.

  Args:
    config: the study.
    workdir: its folder.
    under_way: is told what is known after each level and seed.

  Returns: everything that was found, and the clock that timed it.
  """
  check(config, workdir)
  clock = Clock(workdir / 'seconds.json', total_work(config))
  base = _make_models(config, workdir, clock)
  work = _Work(config, workdir, base, clock)
  zero_shot: dict[str, Scores] = {level.name: work.zero_shot(level) for level in config.levels}
  found = Found(zero_shot, ())
  for level in config.levels:
    for seed in config.seeds:
      found = Found(zero_shot, (*found.cells, *work.cells(level, seed)))
      under_way(found, clock)
  return found, clock


def check(config: EmbeddingStudyConfig, workdir: Path) -> None:
  """Opens every source and builds every config, so that mistakes show before any work.

  Raises:
    UserError: a mistake.
  """
  open_emoji_mmeb(**config.evaluation)
  for seed in config.seeds:
    pairs = open_pairs(config.pairs_of(seed))
    for strategy in config.strategies:
      settings = config.mining_config(strategy)
      check_mining(pairs, config.k, strategy.mine, settings, strategy.classes)
  if config.tokenizer is not None:
    open_source(config.tokenizer.data)
  names = _names(config, workdir)
  for name, values in config.models.items():
    where = f'config.models.{name}'
    check_training(train_config(values, {}, names, where), where)
  base = fill(config.base, names, 'config.base')
  if base == config.base:  # a folder that is there
    require(len(find_origins(base)) == 1, 'config.base', f'{base!r} is no run; write run:FOLDER')
  for level in config.levels:
    where = f'config.training ({level.name})'
    check_training(config.cell_config(level, config.seeds[0], 'plan', base, where), where)


def total_work(config: EmbeddingStudyConfig) -> float:
  """Returns the work of a whole study, in pairs trained."""
  return (
    sum(_images(values) for values in config.models.values())
    + len(config.levels) * (_judging(config) + len(config.seeds) * _embedding(config))
    + config.cells * (_MINING + config.encoded + _judging(config))
  )


def _images(training: Mapping[str, Any]) -> float:
  return float(training['steps'] * training['batch_size']) / 2  # a pair has two sides


def _judging(config: EmbeddingStudyConfig) -> float:
  sources = open_emoji_mmeb(**config.evaluation)
  return _CONTENT * sum(map(len, sources.values())) * _CONTENTS


def _embedding(config: EmbeddingStudyConfig) -> float:
  return _CONTENT * 2 * len(open_pairs(config.pairs_of(config.seeds[0])))


def _names(config: EmbeddingStudyConfig, workdir: Path) -> dict[str, str]:
  """What the placeholders of models and base stand for."""
  names = {f'model:{name}': f'run:{workdir / "models" / name}' for name in config.models}
  if config.tokenizer is not None:
    names['tokenizer'] = str(workdir / 'tokenizer')
  return names


def _make_models(config: EmbeddingStudyConfig, workdir: Path, clock: Clock) -> Path:
  """Trains tokenizer and models; returns the run folder of the one that embeds."""
  names = _names(config, workdir)
  trained: dict[str, TrainConfig] = {
    name: train_config(config.models[name], {}, names, f'config.models.{name}')
    for name in config.models_in_order
  }
  if config.tokenizer is not None:
    patches = next((_patches(c) for c in trained.values() if c.answers), 1)
    pairs = open_pairs(config.pairs_of(config.seeds[0]))
    make_tokenizer(config.tokenizer, pairs, workdir / 'tokenizer', patches)
  for name, values in trained.items():
    with clock.piece(f'model {name}', _images(config.models[name])):
      train_once(values, workdir / 'models' / name, name)
  (origin,) = find_origins(fill(config.base, names, 'config.base'))
  if origin.imported is not None:
    raise UserError(f'config.base: {config.base} is no run; write run:FOLDER')
  return Path(origin.folder)


def _patches(config: TrainConfig) -> int:
  image = config.model['image']
  return int((image['image_size'] // image['patch']) ** 2)


class _Work:
  """The pieces that start from the model that embeds."""

  def __init__(self, config: EmbeddingStudyConfig, workdir: Path, base: Path, clock: Clock):
    self._config, self._workdir, self._base, self._clock = config, workdir, base, clock

  @functools.cached_property
  def _sources(self) -> dict[str, PairSource]:
    return open_emoji_mmeb(**self._config.evaluation)

  def zero_shot(self, level: PromptLevel) -> Scores:
    """Scores of the model before any contrastive step."""
    with self._clock.piece(f'zero-shot, {level.name}', _judging(self._config)):
      return self._scored(self._workdir / 'zero_shot' / f'{level.name}.json', self._base, level)

  def cells(self, level: PromptLevel, seed: int) -> Iterator[Cell]:
    """All strategies of a level and seed."""
    config, folder = self._config, self._workdir / level.name / f'seed{seed}'
    label = f'{level.name}, seed {seed}'
    with self._clock.piece(f'{label}, pairs', _embedding(config)):
      embedded = self._embedded(folder / 'pairs.safetensors', level, seed)
    for strategy in config.strategies:
      home, name = folder / strategy.name, f'{label}, {strategy.name}'
      with self._clock.piece(f'{name}, mining', _MINING):
        mined = self._mined(home, embedded, level, strategy, seed)
      with self._clock.piece(name, float(config.encoded)):
        init = f'run:{self._base}'
        values = config.cell_config(
          level, seed, str(home / 'plan.jsonl.gz'), init, f'config.training ({name})'
        )
        train_once(values, home / 'run', name)
      with self._clock.piece(f'{name}, scores', _judging(config)):
        found = self._scored(home / 'scores.json', home / 'run', level)
      yield Cell(level.name, strategy.name, seed, home / 'run', found, mined)

  def _scored(self, path: Path, run: Path, level: PromptLevel) -> Scores:
    config = self._config
    asked: dict[str, Any] = {
      'evaluation': dict(config.evaluation),
      'level': dataclasses.asdict(level),
    }
    asked['run'] = str(run)

    def make() -> Scores:
      return scores(self._sources, embedder_of(run, level), config.embed_batch)

    # another evaluation asks for a new judgement; nothing stands on it
    return dict(kept(path, asked, make, anew=True))

  def _asked(self, level: PromptLevel, seed: int) -> dict[str, Any]:
    return {
      'base': str(self._base),
      'pairs': self._config.pairs_of(seed),
      'level': level.name,
      'length': level.length,
    }

  def _embedded(self, path: Path, level: PromptLevel, seed: int) -> EmbeddedPairs:
    asked = self._asked(level, seed)
    found = load_embedded(path, asked)
    if found is None:
      source = open_pairs(asked['pairs'])
      embed, bad = embedder_of(self._base, level), self._config.mining_config().bad
      found = embed_pairs(embed, source, bad=bad, batch_size=self._config.embed_batch)
      save_embedded(path, found, asked)
    return found

  def _mined(
    self, home: Path, embedded: EmbeddedPairs, level: PromptLevel, strategy: Strategy, seed: int
  ) -> Scores:
    config = self._config
    settings = config.mining_config(strategy)
    asked = self._asked(level, seed) | {
      'strategy': strategy.mine,
      'k': config.k,
      'settings': dataclasses.asdict(settings),
      'classes': strategy.classes,
    }

    def make() -> Scores:
      plan, spec = home / 'plan.jsonl.gz', asked['pairs']
      return make_batch_plan(
        embedded, spec, strategy.mine, config.k, settings, seed, plan, strategy.classes
      )

    return dict(kept(home / 'mined.json', asked, make))
