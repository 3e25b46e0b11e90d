"""Orbax checkpoints: weights, optimiser, data position; saved asynchronously, never half-written.

A run folder holds `checkpoints/<step>/` with three items: `model` (all parameters by name),
`train` (step, random key, optimiser, moving average) and `data` (the position in it, as JSON).
"""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding

from align_jax.errors import UserError
from align_jax.models.flat import Params
from align_jax.train.state import TrainState

_NO_SPACE = ('No space left', 'ENOSPC', 'RESOURCE_EXHAUSTED', 'Disk quota')


class Checkpoints:
  """The checkpoints of one run folder."""

  def __init__(self, workdir: Path, *, keep: int = 2):
    self._folder = (workdir / 'checkpoints').absolute()
    self._manager = _manager(
      self._folder, max_to_keep=keep, enable_async_checkpointing=True, cleanup_tmp_directories=True
    )

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
    """Fills a fresh state, which says shapes and shardings, from the newest checkpoint, if any."""
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


def load_params(
  workdir: Path,
  *,
  averaged: bool = False,
  step: int | None = None,
  shapes: Params | None = None,
  shardings: Mapping[str, NamedSharding] | None = None,
) -> Params:
  """Reads a run's parameters by name: as NumPy arrays, or directly into shards.

  Args:
    workdir: a run folder.
    averaged: the moving average of the learning parameters where the run kept one.
    step: which checkpoint; None: the newest.
    shapes, shardings: of parameters by name; those found in this very shape are restored as global
      arrays in these shards.

  Raises:
    UserError: no complete checkpoint there.
  """
  folder = (workdir / 'checkpoints').absolute()
  manager = _manager(folder, create=False) if folder.is_dir() else None
  steps = sorted(manager.all_steps()) if manager is not None else []
  if manager is None or not steps or (step is not None and step not in steps):
    which = f' of step {step}' if step is not None else ''
    raise UserError(f'{workdir}: holds no checkpoint{which}; name the folder of a training run')
  with manager:
    at = steps[-1] if step is None else step
    places = _Places(shapes or {}, shardings or {})
    params = _read(manager, at, 'model', places)
    if averaged:
      params |= _read(manager, at, 'train', places).get('average') or {}
  return params


def _manager(folder: Path, **options: Any) -> ocp.CheckpointManager:
  return ocp.CheckpointManager(
    folder,
    options=ocp.CheckpointManagerOptions(**options),
    item_names=('model', 'train', 'data'),
    item_handlers={
      'model': ocp.StandardCheckpointHandler(),
      'train': ocp.StandardCheckpointHandler(),
      'data': ocp.JsonCheckpointHandler(),
    },
  )


@dataclasses.dataclass(frozen=True)
class _Places:
  """Where parameters of these names and shapes go."""

  shapes: Params
  shardings: Mapping[str, NamedSharding]

  def find(self, path: tuple, shape: tuple[int, ...]) -> NamedSharding | None:
    name = getattr(path[-1], 'key', '')
    fits = name in self.shapes and self.shapes[name].shape == shape
    return self.shardings[name] if fits else None


def _read(manager: ocp.CheckpointManager, step: int, item: str, places: _Places) -> dict[str, Any]:
  """Restores one item, whatever devices wrote it; what has no place goes to host memory."""
  tree = dict(manager.item_metadata(step)[item].items())
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

  def target(path: tuple, found: Any) -> jax.ShapeDtypeStruct:
    place = places.find(path, found.shape) or here
    return jax.ShapeDtypeStruct(found.shape, found.dtype, sharding=place)

  wanted = jax.tree_util.tree_map_with_path(target, tree)
  args = ocp.args.Composite(**{item: ocp.args.StandardRestore(wanted)})
  got = dict(manager.restore(step, args=args)[item])
  return jax.tree.map(lambda x: np.asarray(x) if x.sharding == here else x, got)


def _train_item(state: TrainState) -> dict[str, Any]:
  item = {'step': state.step, 'key': state.key, 'optimizer': jax.tree.leaves(state.optimizer)}
  return item if state.average is None else {**item, 'average': state.average}


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
      # the same failure would be logged once for every array, when its future is collected
      logging.getLogger('asyncio').setLevel(logging.CRITICAL)
      raise UserError(
        f'{self._folder}: the disk is full, this checkpoint was not written; earlier ones stand. '
        'Free space and run the same command again'
      ) from error
