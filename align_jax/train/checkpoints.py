"""Orbax checkpoints: weights, optimiser, data position; saved asynchronously, never half-written.

A run folder holds `checkpoints/<step>/` with three items: `model` (all parameters by name),
`train` (step, random key, optimiser, moving average) and `data` (the position in it, as JSON,
sealed with digests of all arrays, see `digest`). What is read is checked against them; a checkpoint
that is cut short or has a byte flipped is named, and the one before is used (see `damage`).
"""

import contextlib
import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import NamedSharding

from align_jax.errors import UserError
from align_jax.models.flat import Params
from align_jax.storage import AnyPath, absolute, store_errors
from align_jax.train.damage import (
  Damaged,
  attempt,
  newest_whole,
  saved_steps,
  say_passed_over,
  set_aside,
  undated,
)
from align_jax.train.digest import entries, flat, kind_of, kinds, seal, unseal
from align_jax.train.state import TrainState

_NO_SPACE = ('No space left', 'ENOSPC', 'RESOURCE_EXHAUSTED', 'Disk quota')
_NAMES_SHOWN = 3


class Checkpoints:
  """The checkpoints of one run folder."""

  def __init__(self, workdir: AnyPath, *, keep: int = 2):
    self._folder = _folder(workdir)
    self._keep = keep
    self._made: ocp.CheckpointManager | None = None

  def latest(self) -> int | None:
    """The newest complete step, or None."""
    return max(saved_steps(self._folder), default=None)

  def save(self, state: TrainState, data: Mapping[str, Any]) -> None:
    """Starts a save of the state and the data position; returns before it is on disk.

    The digests are read here, which waits for the step to end. So does Orbax right after, since it
    copies the state off the device before it returns; the digests themselves are one more pass over
    the state in device memory.

    Raises:
      UserError: the disk is full, now or during the save before; earlier checkpoints stand.
    """
    items = _items(state)
    sealed = seal(data, entries(flat(items)))
    with store_errors(self._folder), _readable_errors(self._folder):
      self._manager().save(
        int(state.step),
        args=ocp.args.Composite(
          data=ocp.args.JsonSave(sealed),
          **{name: ocp.args.StandardSave(item) for name, item in items.items()},
        ),
      )

  def wait(self) -> None:
    """Waits until the last save is on disk; raises what went wrong with it."""
    if self._made is not None:
      with store_errors(self._folder), _readable_errors(self._folder):
        self._made.wait_until_finished()
        self._made.check_for_errors()

  def restore(self, state: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
    """Fills a fresh state, which says shapes and shardings, from the newest checkpoint, if any.

    Damaged checkpoints are named, set aside as `damaged-<step>`, and the one before is used. All
    processes call it before anything is saved.

    Raises:
      UserError: it does not fit this state; it cannot be read now; all are damaged.
    """
    folder = self._folder
    with store_errors(folder):
      dates = undated(folder)
      found = newest_whole(folder, lambda step: _restore(folder / str(step), state), dates)
      if found is None:
        return None
      set_aside(folder, found)
    return found.value

  def close(self) -> None:
    """Waits for the last save and frees the manager's threads."""
    self.wait()
    if self._made is not None:
      self._made.close()

  def _manager(self) -> ocp.CheckpointManager:
    """Orbax's, which writes, counts and deletes; made after damaged checkpoints are set aside."""
    if self._made is None:
      options = ocp.CheckpointManagerOptions(
        max_to_keep=self._keep, enable_async_checkpointing=True, cleanup_tmp_directories=True
      )
      self._made = ocp.CheckpointManager(
        self._folder,
        options=options,
        item_names=('model', 'train', 'data'),
        item_handlers={
          'model': ocp.StandardCheckpointHandler(),
          'train': ocp.StandardCheckpointHandler(),
          'data': ocp.JsonCheckpointHandler(),
        },
      )
    return self._made


def load_params(
  workdir: AnyPath,
  *,
  averaged: bool = False,
  step: int | None = None,
  shapes: Params | None = None,
  shardings: Mapping[str, NamedSharding] | None = None,
) -> Params:
  """Reads a run's parameters by name: as NumPy arrays, or directly into shards.

  A damaged checkpoint is named on standard error and the one before is read; nothing is renamed.

  Args:
    workdir: a run folder.
    averaged: the moving average of the learning parameters where the run kept one.
    step: which checkpoint; None: the newest.
    shapes, shardings: of parameters by name; those found in this very shape are restored as global
      arrays in these shards.

  Raises:
    UserError: no complete checkpoint there; all damaged, or that of `step`.
  """
  folder = _folder(workdir)
  places = _Places(shapes or {}, shardings or {})

  def read(at: int) -> Params:
    return _read_params(folder / str(at), averaged, places)

  with store_errors(folder):
    if step is not None and step in saved_steps(folder):
      try:
        return read(step)
      except Damaged as error:
        raise UserError(f'{folder / str(step)}: damaged, {error}; name another step') from error
    found = newest_whole(folder, read, {}) if step is None else None
  if found is None:
    which = f' of step {step}' if step is not None else ''
    raise UserError(f'{workdir}: holds no checkpoint{which}; name the folder of a training run')
  say_passed_over(folder, found)
  return found.value


@dataclasses.dataclass(frozen=True)
class _Places:
  """Where parameters of these names and shapes go."""

  shapes: Params
  shardings: Mapping[str, NamedSharding]

  def find(self, path: tuple, shape: tuple[int, ...]) -> NamedSharding | None:
    name = getattr(path[-1], 'key', '')
    fits = name in self.shapes and self.shapes[name].shape == shape
    return self.shardings[name] if fits else None


def _folder(workdir: AnyPath) -> epath.Path:
  return epath.Path(absolute(workdir)) / 'checkpoints'


def _restore(path: epath.Path, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
  """Reads a checkpoint into the shapes and shards of `state`, and checks it."""
  items = _items(state)
  position, sealed = attempt(path, lambda: _read_sealed(path))
  attempt(path, lambda: _check_fits(path, kinds(flat(items)), _saved_kinds(path, sealed)))
  got = attempt(path, lambda: {n: _read_item(path / n, _abstract(x)) for n, x in items.items()})
  attempt(path, lambda: _check_digests(got, sealed))
  model, train = got['model'], got['train']
  restored = TrainState(
    step=train['step'],
    learn={n: model[n] for n in state.learn},
    frozen={n: model[n] for n in state.frozen},
    optimizer=jax.tree.unflatten(jax.tree.structure(state.optimizer), train['optimizer']),
    average=train.get('average'),
    key=train['key'],
  )
  return restored, position


def _read_params(path: epath.Path, averaged: bool, places: _Places) -> Params:
  """Reads the parameters of a checkpoint, whatever devices wrote it, and checks them."""
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

  def target(at: tuple, found: Any) -> jax.ShapeDtypeStruct:
    # what has no place goes to host memory
    return jax.ShapeDtypeStruct(
      found.shape, found.dtype, sharding=places.find(at, found.shape) or here
    )

  def read(name: str) -> Any:
    wanted = jax.tree_util.tree_map_with_path(target, _read_tree(path / name))
    return _read_item(path / name, wanted)

  _, sealed = attempt(path, lambda: _read_sealed(path))
  has_average = sealed is None or any(name.startswith('train/average/') for name in sealed)
  items = ('model', 'train') if averaged and has_average else ('model',)
  got = attempt(path, lambda: {name: read(name) for name in items})
  attempt(path, lambda: _check_digests(got, sealed))
  params = {**got['model'], **(got.get('train', {}).get('average') or {})}
  return {n: np.asarray(p) if p.sharding == here else p for n, p in params.items()}


def _read_sealed(path: epath.Path) -> tuple[dict[str, Any], dict[str, str] | None]:
  return unseal(ocp.JsonCheckpointHandler().restore(path / 'data'))


def _read_item(path: epath.Path, wanted: Any) -> Any:
  """Reads an item. Not by Orbax's manager: there a process that fails leaves the others waiting."""
  with contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
    return handler.restore(path, args=ocp.args.StandardRestore(wanted))


def _read_tree(path: epath.Path) -> dict[str, Any]:
  """What an item holds, as descriptions of arrays."""
  with contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
    return dict(handler.metadata(path).items())


def _saved_kinds(path: epath.Path, sealed: Mapping[str, str] | None) -> dict[str, str]:
  if sealed is not None:
    return {name: kind_of(entry) for name, entry in sealed.items()}
  return kinds(flat({name: _read_tree(path / name) for name in ('model', 'train')}))


def _check_fits(path: epath.Path, wanted: Mapping[str, str], saved: Mapping[str, str]) -> None:
  for name in sorted({*wanted, *saved}):
    if wanted.get(name) != saved.get(name):
      here, there = wanted.get(name, 'nothing'), saved.get(name, 'nothing')
      raise UserError(
        f'{path}: does not fit this config ({name} is {there} there, {here} here); use the config '
        'of the run or another --workdir'
      )


def _check_digests(got: Mapping[str, Any], sealed: Mapping[str, str] | None) -> None:
  """Compares what was read of some items with what was saved of them."""
  if sealed is None:
    return  # written before there were digests
  found = entries(flat(got))
  saved = {name: entry for name, entry in sealed.items() if name.partition('/')[0] in got}
  differ = sorted(n for n in {*found, *saved} if found.get(n) != saved.get(n))
  if differ:
    more = f' and {len(differ) - _NAMES_SHOWN} more' if len(differ) > _NAMES_SHOWN else ''
    raise Damaged(f'{", ".join(differ[:_NAMES_SHOWN])}{more} not as saved')


def _items(state: TrainState) -> dict[str, Any]:
  train = {'step': state.step, 'key': state.key, 'optimizer': jax.tree.leaves(state.optimizer)}
  if state.average is not None:
    train['average'] = state.average
  return {'model': state.params, 'train': train}


def _abstract(tree: Any) -> Any:
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


class _readable_errors:
  """Turns a full disk into a UserError; other errors pass."""

  def __init__(self, folder: epath.Path):
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
