"""Mining anew while a run trains: from the weights of a step to the plan of later ones.

After every `every` steps the weights are taken, and pairs are mined with them while training goes
on; `lag` steps later the plan comes into use. Training waits for it there, so that what is drawn
does not depend on how fast mining is. The plans are in `plans/STEP.jsonl.gz` of the run folder, and
beside a checkpoint that is written while one is being mined are the weights that it is mined with,
`plans/STEP.safetensors`: a run that goes on reads the former and mines with the latter.
"""

import concurrent.futures
import contextlib
import dataclasses
import threading
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from align_jax.errors import UserError
from align_jax.files import write_file
from align_jax.mining.plan import BatchPlan, load_plan, save_plan
from align_jax.models.flat import Params
from align_jax.storage import AnyPath, read_bytes
from align_jax.train.config import RemineConfig

FOLDER = 'plans'
# from weights, and from what says whether to stop, to a plan
Mine = Callable[[Params, Callable[[], bool]], BatchPlan]


class Stopped(Exception):
  """Mining that nobody waits for any more."""


class Remining:
  """The plans of a run, in the order of its steps. One process alone.

  Attributes:
    plan: in use; None: none is yet.
  """

  def __init__(self, config: RemineConfig, workdir: AnyPath, mine: Mine | None, *, planned: bool):
    """Prepares; mines nothing.

    Args:
      config: when to mine.
      workdir: the run folder.
      mine: weights to plan; raises `Stopped` where it is told to stop.
      planned: the run begins with a plan of `config.data.plan`.

    Raises:
      UserError: nobody can mine, or several processes are to.
    """
    self.plan: BatchPlan | None = None
    self._config, self._folder, self._mine = config, workdir / FOLDER, mine
    self._planned = planned
    self._pending: _Pending | None = None
    self._stop = threading.Event()
    if not config.every:
      return
    if mine is None:
      raise UserError('config.remine.every: nothing to mine with here; train with align_jax.main')
    if jax.process_count() > 1:
      raise UserError(
        'config.remine.every: mining while training is for one process; set 0, and mine between '
        'runs with align_jax.mine'
      )
    self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix='remine')

  def begin(self, step: int, params: Params) -> BatchPlan | None:
    """Returns the plan for the first batch after `step` steps; mines where there is none yet.

    Args:
      step: 0, or that of the checkpoint that the run goes on from.
      params: after it.

    Raises:
      UserError: a plan that the checkpoint needs is gone or damaged.
    """
    every, lag = self._config.every, self._config.lag
    if not every:
      return None
    if step == 0:
      if not self._planned:
        self.plan = self._made(params)
        save_plan(self._path(0), self.plan)
      return self.plan
    # what the batch of the checkpoint's step was drawn by; what comes after it, `before` brings
    last = max(0, step - 1 - lag) // every * every
    if last or not self._planned:
      self.plan = self._load(last)
    newest = (step - 1) // every * every
    if newest > last:  # under way when the checkpoint was written
      self._pending = self._under_way(newest)
    return self.plan

  def before(self, step: int, params: Params) -> BatchPlan | None:
    """Begins what is due before the batch of a step is drawn; returns a plan to use from it on.

    Args:
      step: steps are asked for in order.
      params: after the step before.
    """
    every, lag = self._config.every, self._config.lag
    if not every:
      return None
    done = step - 1
    if done and done % every == 0:
      taken = {name: jnp.copy(value) for name, value in params.items()}  # they will be donated
      self._pending = _Pending(done, taken, self._thread.submit(self._made, taken))
    pending = self._pending
    if pending is None or done != pending.step + lag:
      return None
    self.plan, self._pending = pending.plan.result(), None
    save_plan(self._path(pending.step), self.plan)
    weights = self._weights(pending.step)
    with contextlib.suppress(FileNotFoundError):
      weights.unlink()
    return self.plan

  def keep(self) -> None:
    """Writes what a checkpoint needs of the mining under way: its plan, or else its weights."""
    pending = self._pending
    if pending is None:
      return
    if pending.plan.done():
      save_plan(self._path(pending.step), pending.plan.result())
    elif not pending.kept:
      taken = {name: np.asarray(value) for name, value in pending.params.items()}
      write_file(self._weights(pending.step), safetensors.numpy.save(taken))
      pending.kept = True

  def close(self) -> None:
    """Ends the mining under way, at its next batch."""
    self._stop.set()
    if self._config.every:
      self._thread.shutdown(wait=True, cancel_futures=True)

  def _path(self, step: int) -> AnyPath:
    return self._folder / f'{step}.jsonl.gz'

  def _weights(self, step: int) -> AnyPath:
    return self._folder / f'{step}.safetensors'

  def _under_way(self, step: int) -> '_Pending':
    try:
      params = safetensors.numpy.load(read_bytes(self._weights(step)))
    except FileNotFoundError:
      future: concurrent.futures.Future[BatchPlan] = concurrent.futures.Future()
      future.set_result(self._load(step))
      return _Pending(step, {}, future)
    except safetensors.SafetensorError as error:
      raise UserError(
        f'{self._weights(step)}: damaged ({error}); the checkpoint needs it, put it back or use '
        'another --workdir'
      ) from error
    return _Pending(step, params, self._thread.submit(self._made, params), kept=True)

  def _made(self, params: Params) -> BatchPlan:
    assert self._mine is not None
    # from the host: programs of this thread are of one device, for with those of training under way
    # on several ones, theirs could wait for each other
    host = {name: np.asarray(value) for name, value in params.items()}
    return self._mine(host, self._stop.is_set)

  def _load(self, step: int) -> BatchPlan:
    try:
      return load_plan(self._path(step))
    except UserError as error:
      raise UserError(f'{error}; the checkpoint needs it, or use another --workdir') from error


@dataclasses.dataclass
class _Pending:
  """Mining under way.

  Attributes:
    step: after which its weights were taken.
    params: these weights.
    plan: to come.
    kept: the weights are on the disk.
  """

  step: int
  params: Params
  plan: 'concurrent.futures.Future[BatchPlan]'
  kept: bool = False
