"""A run's numbers in Weights & Biases as well; an optional extra."""

import dataclasses
import importlib.util
import math
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from align_jax.errors import UserError
from align_jax.files import write_file

ID_FILE = 'wandb/run_id'  # in the run folder
Mode = Literal['online', 'offline']
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclasses.dataclass(frozen=True)
class TrackingConfig:
  """Where the numbers go: project (and entity, `ENTITY/PROJECT`), and whether there is a network.

  Raises:
    UserError: the package is missing.
  """

  project: str
  mode: Mode = 'online'

  def __post_init__(self) -> None:
    if importlib.util.find_spec('wandb') is None:
      raise UserError(
        "--wandb_project: package wandb is missing; pip install 'align_jax[wandb]', or leave the "
        'flag out'
      )


class Tracker:
  """One run of Weights & Biases; a run that goes on is the same one there."""

  def __init__(
    self, config: TrackingConfig, folder: Path, values: Mapping[str, Any], *, name: str = ''
  ):
    """Begins, or goes on.

    Args:
      config: where to.
      folder: the run folder; what is to be uploaded waits in `wandb/` there.
      values: the experiment's config.
      name: what people see it under; '' for the folder's name.
    """
    import wandb  # loads much, and talks to a service of its own: only where it is asked for

    entity, _, project = config.project.rpartition('/')
    self._run = wandb.init(
      project=project,
      entity=entity or None,
      mode=config.mode,
      dir=folder,
      id=_run_id(folder),
      name=name or folder.name,
      config=dict(values),
      resume='allow' if config.mode == 'online' else None,  # offline, equal ids meet at the upload
      settings=wandb.Settings(console='off', silent=True, disable_git=True),
    )
    self._last = self._run.starting_step
    self.where = str(self._run.url if config.mode == 'online' else self._run.dir)

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Sends scalars; steps that the service already has are left out: their values are the same."""
    if step < self._last:
      return
    self._last = step
    self._run.log({k: v for k, v in values.items() if math.isfinite(v)}, step=step)

  def close(self) -> None:
    """Waits until everything is sent or on disk; ends the service of this process."""
    import wandb

    self._run.finish()
    wandb.teardown()  # the last records are written out shortly after `finish` returns


def _run_id(folder: Path) -> str:
  path = folder / ID_FILE
  if not path.exists():
    write_file(path, secrets.token_hex(4))
  return path.read_text().strip()
