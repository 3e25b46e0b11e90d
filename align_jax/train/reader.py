"""A checkpoint's parameters one at a time: what export reads of a model larger than this host."""

import contextlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from align_jax.errors import UserError
from align_jax.storage import AnyPath, absolute, store_errors
from align_jax.train.damage import Damaged, saved_steps
from align_jax.train.digest import entries, kind_of, unseal

_MODEL, _AVERAGE = 'model', 'train/average'


class ParamReader:
  """The parameters of one checkpoint, moving averages where the run kept them.

  Attributes:
    step: of the checkpoint.
    shapes: of every parameter by name.
  """

  def __init__(self, workdir: AnyPath, *, step: int | None = None):
    """Opens the checkpoint of `step`, by default the newest.

    Raises:
      UserError: no such checkpoint, or one whose table of contents is damaged.
    """
    folder = epath.Path(absolute(workdir)) / 'checkpoints'
    with store_errors(folder):
      steps = saved_steps(folder)
    if not steps or (step is not None and step not in steps):
      which = f' of step {step}' if step is not None else ''
      raise UserError(f'{workdir}: holds no checkpoint{which}; name the folder of a training run')
    self.step = max(steps) if step is None else step
    self._path = folder / str(self.step)
    self._device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with self._whole():
      sealed = unseal(ocp.JsonCheckpointHandler().restore(self._path / 'data'))[1]
    if sealed is None:
      raise UserError(f'{self._path}: was saved before checkpoints had digests; train it again')
    self._sealed = sealed
    names = [n.removeprefix(f'{_MODEL}/') for n in sealed if n.startswith(f'{_MODEL}/')]
    self.shapes = {name: _shape(sealed[f'{_MODEL}/{name}']) for name in sorted(names)}

  def read(self, name: str) -> np.ndarray:
    """Reads one parameter and checks it against its digest.

    Raises:
      UserError: it is not as it was saved.
    """
    averaged = f'{_AVERAGE}/{name}' in self._sealed
    path = f'{_AVERAGE}/{name}' if averaged else f'{_MODEL}/{name}'
    target: Any = jax.ShapeDtypeStruct(self.shapes[name], np.float32, sharding=self._device)
    item = {name: target}
    with self._whole(), contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
      # the item alone, out of a tree of many
      tree = {'average': item} if averaged else item
      got = handler.restore(
        self._path / ('train' if averaged else _MODEL),
        args=ocp.args.PyTreeRestore(
          tree,
          restore_args=ocp.checkpoint_utils.construct_restore_args(tree),
          partial_restore=True,
        ),
      )
      value = got['average'][name] if averaged else got[name]
      if entries({path: value})[path] != self._sealed[path]:
        raise Damaged(f'{path} not as saved')
    return np.asarray(value)

  @contextlib.contextmanager
  def _whole(self) -> Any:
    """Turns what a damaged checkpoint raises into one line."""
    try:
      with store_errors(self._path):
        yield
    except UserError:
      raise
    except Exception as error:  # Orbax and TensorStore raise of many kinds
      said = ' '.join(str(error).split())[:200]
      raise UserError(f'{self._path}: damaged ({said}); name an earlier --step') from error


def _shape(entry: str) -> tuple[int, ...]:
  """The shape in a sealed entry, `float32[8,16] …`."""
  inner = kind_of(entry).partition('[')[2].rstrip(']')
  return tuple(int(part) for part in inner.split(',') if part)
