"""Orbax checkpoints: weights, optimiser and data position, saved asynchronously, never half-written.

A run folder holds `checkpoints/<step>/` with three items: `model` (all parameters by name, float32),
`train` (step, random key, optimiser, moving average) and `data` (the position in the data, JSON).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from align_jax.errors import UserError
from align_jax.models.flat import Params
from align_jax.train.state import TrainState

_NO_SPACE = ('No space left', 'ENOSPC', 'RESOURCE_EXHAUSTED', 'Disk quota')


class Checkpoints:
  """The checkpoints of one run folder."""

  def __init__(self, workdir: Path, *, keep: int = 2):
    self._folder = (workdir / 'checkpoints').absolute()
    options = ocp.CheckpointManagerOptions(
      max_to_keep=keep, enable_async_checkpointing=True, cleanup_tmp_directories=True
    )
    self._manager = ocp.CheckpointManager(self._folder, options=options)

  def latest(self) -> int | None:
    """The newest complete step, or None."""
    return self._manager.latest_step()

  def save(self, state: TrainState, data: Mapping[str, Any]) -> None:
    """Starts a save of the state and the data position; returns before it is on disk.

    Raises:
      UserError: the disk is full, now or during the save before; earlier checkpoints stand.
    """
    with _readable_errors(self._folder):
      self._manager.save(
        int(state.step),
        args=ocp.args.Composite(
          model=ocp.args.StandardSave(state.params),
          train=ocp.args.StandardSave(_train_item(state)),
          data=ocp.args.JsonSave(dict(data)),
        ),
      )

  def wait(self) -> None:
    """Waits until the last save is on disk; raises what went wrong with it."""
    with _readable_errors(self._folder):
      self._manager.wait_until_finished()
      self._manager.check_for_errors()

  def restore(self, state: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
    """Fills a fresh state (for shapes and shardings) from the newest checkpoint, if there is one."""
    step = self.latest()
    if step is None:
      return None
    try:
      got = self._manager.restore(
        step,
        args=ocp.args.Composite(
          model=ocp.args.StandardRestore(_abstract(state.params)),
          train=ocp.args.StandardRestore(_abstract(_train_item(state))),
          data=ocp.args.JsonRestore(),
        ),
      )
    except (ValueError, KeyError, TypeError) as error:
      raise UserError(
        f'{self._folder / str(step)}: does not fit this config ({_first_line(error)}); '
        'use the config of the run or another --workdir'
      ) from error
    model, train = got['model'], got['train']
    restored = TrainState(
      step=train['step'],
      learn={n: model[n] for n in state.learn},
      frozen={n: model[n] for n in state.frozen},
      optimizer=jax.tree.unflatten(jax.tree.structure(state.optimizer), train['optimizer']),
      average=train.get('average'),
      key=train['key'],
    )
    return restored, got['data']

  def close(self) -> None:
    """Waits for the last save and frees the manager's threads."""
    self.wait()
    self._manager.close()


def load_params(workdir: Path, *, averaged: bool = False, step: int | None = None) -> Params:
  """Reads a run's parameters as NumPy arrays by name.

  Args:
    workdir: a run folder.
    averaged: the moving average of the learning parameters where the run kept one.
    step: which checkpoint; None: the newest.

  Raises:
    UserError: no complete checkpoint there.
  """
  folder = (workdir / 'checkpoints').absolute()
  steps = (
    sorted(int(p.name) for p in folder.glob('*') if p.name.isdigit()) if folder.exists() else []
  )
  if not steps or (step is not None and step not in steps):
    raise UserError(
      f'{workdir}: holds no checkpoint{f" of step {step}" if step else ""}; name a run folder'
    )
  where = folder / str(step if step is not None else steps[-1])
  with ocp.StandardCheckpointer() as reader:
    params = _read(reader, where / 'model')
    if averaged:
      params |= _read(reader, where / 'train').get('average') or {}
  return params


def _train_item(state: TrainState) -> dict[str, Any]:
  item = {'step': state.step, 'key': state.key, 'optimizer': jax.tree.leaves(state.optimizer)}
  return item if state.average is None else {**item, 'average': state.average}


def _read(reader: ocp.StandardCheckpointer, path: Path) -> dict[str, Any]:
  """Restores one item to host memory, whatever devices wrote it."""
  tree = reader.metadata(path).item_metadata
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  target = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=here), tree)
  return jax.tree.map(np.asarray, reader.restore(path, target))


def _abstract(tree: Any) -> Any:
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def _first_line(error: BaseException) -> str:
  return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


class _readable_errors:
  """Turns a full disk into a UserError; other errors pass."""

  def __init__(self, folder: Path):
    self._folder = folder

  def __enter__(self) -> None:
    return None

  def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
    if error is not None and any(mark in str(error) for mark in _NO_SPACE):
      raise UserError(
        f'{self._folder}: the disk is full, this checkpoint was not written; earlier ones stand. '
        'Free space and run the same command again'
      ) from error
