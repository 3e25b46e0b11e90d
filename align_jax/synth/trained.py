"""Models that a run of the engine trains for itself, in its work folder, once."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align_jax.config import build
from align_jax.errors import require
from align_jax.objectives import make_objective
from align_jax.storage import AnyPath
from align_jax.train.config import TrainConfig
from align_jax.train.loop import train
from align_jax.train.run_config import check_resume


def train_once(config: TrainConfig, folder: AnyPath, label: str) -> None:
  """Trains into `folder` unless that is done.

  Raises:
    UserError: the run there had another config.
  """
  check_resume(config, folder)
  if not (folder / 'checkpoints' / str(config.steps)).is_dir():
    train(config, make_objective(config.objective), folder, label=label)


def check_training(config: TrainConfig, where: str = 'config') -> None:
  """Builds the model config of a training config, so that mistakes show before any work.

  Raises:
    UserError: a field that is wrong, by its path.
  """
  objective = make_objective(config.objective)
  build(objective.ModelConfig, config.model_fields, f'{where}.model')


@dataclasses.dataclass(frozen=True)
class Trained:
  """A trained model: one that is there, or one that this run trains.

  Attributes:
    run: a run folder of training, or `hf:` and a Hugging Face folder or hub id; '' for none.
    train: a training config; empty for none.
  """

  run: str = ''
  train: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def check(self, where: str) -> None:
    """Says what is wrong with it, before any work.

    Raises:
      UserError: both or neither are given, or a field of the training config is wrong.
    """
    require(
      bool(self.run) != bool(self.train),
      where,
      'set either run (a trained one) or train (a config to train it by)',
    )
    if self.train:
      check_training(build(TrainConfig, self.train, f'{where}.train'), f'{where}.train')

  def find(self, folder: Path, label: str, where: str) -> str:
    """Returns the run to load; trains it into `folder` where that is asked for."""
    self.check(where)
    if self.train:
      train_once(build(TrainConfig, self.train, f'{where}.train'), folder, label)
    return self.run or str(folder)
