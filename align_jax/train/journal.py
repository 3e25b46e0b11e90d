"""What a run says of itself while it trains: lines of metrics, progress, speed, memory."""

import collections
import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from align_jax import storage
from align_jax.errors import UserError
from align_jax.parallel.chips import find_peak
from align_jax.train import memory
from align_jax.train.config import TrainConfig
from align_jax.train.metrics import METRICS, MetricWriter, Progress
from align_jax.train.plan import Plan
from align_jax.train.profiling import Steps
from align_jax.train.timing import STARTS, Timer, note_start
from align_jax.train.tracking import ID_FILE, Tracker, TrackingConfig


@dataclasses.dataclass(frozen=True)
class Observe:
  """What is watched beyond the numbers that every run writes; nothing of it changes what is learnt.

  Attributes:
    profile: the first and the last step to trace; None: no trace.
    tracking: where else the numbers go; None: nowhere.
  """

  profile: Steps | None = None
  tracking: TrackingConfig | None = None


@dataclasses.dataclass
class _Late:
  """A step's metrics, on the device until `values` holds them, and the records they came from."""

  step: int
  ids: np.ndarray
  metrics: dict[str, jax.Array]
  values: dict[str, float] | None = None


class Journal:
  """The lines of a run; all processes keep one, the first alone writes it down."""

  def __init__(
    self,
    config: TrainConfig,
    planned: Plan,
    workdir: storage.AnyPath,
    *,
    label: str,
    start: int,
    began: float,
    kept: float,
    observe: Observe,
  ):
    """Opens the files and begins to count time.

    Args:
      config: the experiment.
      planned: its devices and what a step computes on them.
      workdir: the run folder.
      label: begins the progress line.
      start: the restored step; lines past it are dropped.
      began: when this process began with the run, in seconds since 1970.
      kept: seconds that went into the steps up to `start`.
      observe: what else is watched.
    """
    first = jax.process_index() == 0
    device = planned.mesh.devices.flat[0]
    self._config, self._flops = config, planned.flops
    self._devices = planned.mesh.devices.size
    self._peak = find_peak(device)
    self._progress = Progress(label, config.steps, quiet=not first)
    self._waiting: collections.deque[_Late] = collections.deque()
    self._staged = storage.Staged(workdir) if first else None
    self._writer: MetricWriter | None = None
    self._tracker: Tracker | None = None
    starts: list[dict[str, Any]] = [{'at': began}]
    if self._staged is not None:
      folder = self._staged.local
      for name in (METRICS, STARTS, ID_FILE):
        self._staged.fetch(name)
      self._writer = MetricWriter(folder, resume_step=start)
      if start < config.steps:  # else the run is over, and this is no start of it
        facts = {
          'step': start,
          'device': device.device_kind,
          'devices': self._devices,
          'chip': self._peak.name if self._peak else '',
          'peak_flops': self._peak.flops if self._peak else 0.0,
          'step_flops': self._flops,
        }
        starts = note_start(folder, {'at': began, **facts})
      if observe.tracking is not None:
        values = json.loads(json.dumps(dataclasses.asdict(config), default=dict))
        self._tracker = Tracker(observe.tracking, folder, values, name=workdir.name)
        self.say(f'Weights & Biases: {self._tracker.where}')
    self._restarts = len(starts) - 1
    self.timer = Timer(kept=kept, passed=max(0.0, time.time() - starts[0]['at']))

  @property
  def folder(self) -> Path | None:
    """Where this process may put files of the run; None: another one does."""
    return self._staged.local if self._staged is not None else None

  def say(self, text: str) -> None:
    """Prints a line of its own."""
    self._progress.say(text)

  def add(self, step: int, ids: np.ndarray, metrics: dict[str, jax.Array]) -> None:
    """Keeps a step's metrics, still on the device, until they are read."""
    self._waiting.append(_Late(step, ids, metrics))

  def report(self, until: int) -> None:
    """Reads the steps up to `until` that were not, waiting for them, and writes what is due.

    Raises:
      UserError: a loss or gradient that is not finite.
    """
    while self._waiting and self._waiting[0].step <= until:
      values = self._read(self._waiting[0])
      step = self._waiting.popleft().step
      if step % self._config.log_every == 0 or step == self._config.steps:
        self._write_line(step, values)

  def settle(self, step: int) -> None:
    """Waits for a step and checks it as `report` does; its line waits for what comes now."""
    self.report(step - 1)
    self._read(self._waiting[0])

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Writes a line."""
    if self._writer is not None:
      self._writer.write(step, values)
    if self._tracker is not None:
      self._tracker.write(step, values)
    self.sync()

  def has_evaluation(self, step: int) -> bool:
    """Whether an earlier process has written the evaluation of a step."""
    return self._writer is not None and self._writer.has_evaluation(step)

  def sync(self, force: bool = False) -> None:
    """Has the files copied to the run folder where that is in a bucket; `force`: now."""
    if self._staged is not None:
      self._staged.sync(force)

  def close(self) -> None:
    """Closes all files."""
    with contextlib.ExitStack() as closing:  # each, whatever the others raise; the last one first
      for thing in (self._staged, self._tracker, self._writer):
        if thing is not None:
          closing.callback(thing.close)

  def _read(self, late: _Late) -> dict[str, float]:
    """A step's metrics as numbers; waits for them once."""
    if late.values is not None:
      return late.values
    values = {k: float(v) for k, v in jax.device_get(late.metrics).items()}
    self.timer.done(late.step)
    # a gradient can overflow where the loss does not, and would poison the weights
    if not math.isfinite(values['loss']) or not math.isfinite(values['grad_norm']):
      shown = ', '.join(map(str, late.ids[:8])) + (', …' if len(late.ids) > 8 else '')
      raise UserError(
        f'loss is {values["loss"]}, gradient norm {values["grad_norm"]} at step {late.step}, '
        f'records {shown}; nothing of this step was saved. Lower config.optimizer.lr or look at '
        'these records'
      )
    late.values = values
    return values

  def _write_line(self, step: int, values: Mapping[str, float]) -> None:
    window = self.timer.window()
    seconds = max(1e-9, window['time/step_s'])
    speed = self._config.batch_size / seconds
    self._progress.show(
      step, values['loss'], speed, seconds + window['time/save_s'] + window['time/eval_s']
    )
    more = {'examples_per_s': speed, **window}
    if self._peak is not None:
      more['mfu'] = self._flops / (seconds * self._devices * self._peak.flops)
    more |= {'goodput': self.timer.goodput, 'restarts': float(self._restarts)}
    if self._writer is not None:
      self.write(step, {**values, **more, **memory.high_water()})
