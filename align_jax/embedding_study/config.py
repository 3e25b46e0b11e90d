"""The typed form of a study of embedders, see `configs/study_saha.py`."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from align_jax.config import build
from align_jax.data.embed_prompt import Level
from align_jax.errors import did_you_mean, require
from align_jax.mining.strategy import STRATEGIES, MiningConfig
from align_jax.study.config import train_config
from align_jax.train.config import TrainConfig

_NAME = re.compile(r'[a-z0-9_]+')


@dataclasses.dataclass(frozen=True)
class TokenizerPart:
  """A tokenizer that is trained for the study: it knows the words of prompts.

  Those of questions and captions alone would spell a prompt letter by letter.

  Attributes:
    data: source spec of images; questions about them and their answers are read.
    count: so many of them.
    vocab_size: at most so many tokens.
  """

  data: str
  count: int = 1500
  vocab_size: int = 800


@dataclasses.dataclass(frozen=True)
class PromptLevel:
  """One way to put contents to the model.

  Attributes:
    name: see `data.embed_prompt.embed_turns`.
    title: for the page.
    length: tokens of the longest prompt, patches among them.
  """

  name: Level
  title: str
  length: int


@dataclasses.dataclass(frozen=True)
class Strategy:
  """One way to make batches.

  Attributes:
    name: of its folder and of its rows.
    title: for the page.
    mine: one of `mining.strategy.STRATEGIES`.
    settings: fields of `MiningConfig` that differ from `EmbeddingStudyConfig.mining`.
    classes: tasks that are told to be of classes (`MiningConfig.labelled_tasks`), by name.
  """

  name: str
  title: str
  mine: str
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  classes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class EmbeddingStudyConfig:
  """One study: every level with every strategy and seed, at equal encoded pairs.

  Attributes:
    title: of the page.
    seeds: of pairs, plans, batches and what is new in the model; the model that they start from is
      the same.
    levels: in the order in which they are run: all strategies and seeds of the first come first.
    strategies: in the order of the tables.
    k: hard negatives of a pair: clusters are of k + 1.
    mining: fields of `MiningConfig` that differ from their defaults, for all strategies.
    pairs: spec of the training pairs; `{seed}` in it is the seed.
    tokenizer: one that models are given as `{tokenizer}`; None: none.
    models: training configs by name, each trained once; `{model:NAME}` is its run, in other models
      as well.
    base: the model that embeds and that training starts from: `run:FOLDER` or `{model:NAME}`.
    training: training config of every cell; `{pairs}`, `{plan}` and `{init}` in it are the cell's,
      and its seed, level and length are set.
    evaluation: options of `evaluation.mmeb.open_emoji_mmeb`.
    comparisons: pairs of strategies; the page says where the first is better than the second.
    embed_batch: contents embedded at a time.
  """

  title: str
  seeds: tuple[int, ...]
  levels: tuple[PromptLevel, ...]
  strategies: tuple[Strategy, ...]
  pairs: str
  base: str
  training: Mapping[str, Any]
  k: int = 7
  mining: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  tokenizer: TokenizerPart | None = None
  models: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
  evaluation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  comparisons: tuple[tuple[str, str], ...] = ()
  embed_batch: int = 64

  def __post_init__(self) -> None:
    for name in ('seeds', 'levels', 'strategies'):
      require(len(getattr(self, name)) > 0, f'config.{name}', 'none; name at least one')
    _different(self.seeds, 'config.seeds')
    _different((level.name for level in self.levels), 'config.levels')
    names = [strategy.name for strategy in self.strategies]
    _different(names, 'config.strategies')
    for name in (*names, *self.models):
      require(
        _NAME.fullmatch(name) is not None, f'config ({name})', 'a name is made of a-z, 0-9 and _'
      )
    self.mining_config()
    for strategy in self.strategies:
      require(
        strategy.mine in STRATEGIES,
        f'config.strategies ({strategy.name})',
        f'no strategy {strategy.mine!r}{did_you_mean(strategy.mine, STRATEGIES)}',
      )
      self.mining_config(strategy)
    for pair in self.comparisons:
      for name in pair:
        require(
          name in names, 'config.comparisons', f'{name!r} is no strategy{did_you_mean(name, names)}'
        )
    require(self.k >= 1, 'config.k', f'{self.k} must be at least 1')
    _ = self.models_in_order
    size = self.training.get('batch_size', 0)
    require(
      size % (self.k + 1) == 0,
      'config.training.batch_size',
      f'{size} is no multiple of a cluster of k + 1 = {self.k + 1}',
    )

  def mining_config(self, strategy: Strategy | None = None) -> MiningConfig:
    """What a strategy is told; None: what is the same for all."""
    if strategy is None:
      return build(MiningConfig, self.mining, 'config.mining')
    where = f'config.strategies ({strategy.name}).settings'
    return build(MiningConfig, {**self.mining, **strategy.settings}, where)

  def cell_config(
    self, level: PromptLevel, seed: int, plan: str, init: str, where: str
  ) -> TrainConfig:
    """The training config of a cell."""
    override = {
      'seed': seed,
      'data': {'level': level.name, 'length': level.length},
      'model': {'length': level.length},
    }
    names = {'pairs': self.pairs_of(seed), 'plan': plan, 'init': init}
    return train_config(self.training, override, names, where)

  def pairs_of(self, seed: int) -> str:
    """Spec of the training pairs of a seed."""
    return self.pairs.replace('{seed}', str(seed))

  @property
  def models_in_order(self) -> list[str]:
    """Names of the models, those first that others start from.

    Raises:
      UserError: they go round in a circle.
    """
    done: list[str] = []
    needs = {name: _named(values) & {*self.models} for name, values in self.models.items()}
    while len(done) < len(needs):
      ready = [name for name in needs if name not in done and needs[name] <= {*done}]
      require(bool(ready), 'config.models', f'each of {sorted({*needs} - {*done})} needs another')
      done += ready
    return done

  @property
  def cells(self) -> int:
    return len(self.levels) * len(self.strategies) * len(self.seeds)

  @property
  def encoded(self) -> int:
    """Pairs that the training of each cell encodes."""
    return int(self.training['steps'] * self.training['batch_size'])


def _named(value: Any) -> set[str]:
  """The names of `{model:NAME}` anywhere in a value."""
  if isinstance(value, Mapping):
    return set().union(*map(_named, value.values()))
  found = re.fullmatch(r'\{model:(.*)\}', value) if isinstance(value, str) else None
  return {found[1]} if found else set()


def _different(values: Iterable[Any], where: str) -> None:
  seen = list(values)
  twice = [v for v in seen if seen.count(v) > 1]
  require(not twice, where, f'{twice[:1]} is there twice')
