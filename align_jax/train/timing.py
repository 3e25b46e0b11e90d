"""Where a run's seconds go: parts of a step, goodput, and the record of its starts.

Everything is measured on the host, and nothing waits for the device that would not wait anyway.
Dispatch is asynchronous, so a step's computing is told by when its metrics arrive, less what the
host did for itself meanwhile.
"""

import collections
import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from align_jax import storage
from align_jax.files import write_file

STEP_PARTS = ('data', 'transfer', 'compute')  # make up a step
PARTS = (*STEP_PARTS, 'save', 'eval')  # these too are told as seconds per step
STARTS = 'starts.json'

Seconds = collections.defaultdict[str, float]  # by part


def read_starts(workdir: storage.AnyPath) -> list[dict[str, Any]]:
  """Returns what `note_start` has written, oldest first."""
  try:
    found: list[dict[str, Any]] = json.loads(storage.read_bytes(workdir / STARTS))
  except FileNotFoundError:
    return []
  return found


def note_start(folder: Path, start: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Adds a start to the run's `starts.json`; returns all of them, this one last.

  Args:
    folder: the run folder.
    start: `at`, seconds since 1970; `step`, after which training goes on; and what it runs on.
  """
  starts = [*read_starts(folder), dict(start)]
  write_file(folder / STARTS, json.dumps(starts, indent=1) + '\n')
  return starts


class Timer:
  """Accounts for the seconds of a run.

    timer = Timer()
    with timer.part('data', step):  # what the host does for a step, ahead of the device
      batch = next(batches)
    timer.done(step)  # its metrics are here
    with timer.part('eval'):  # what happens between steps
      …
    timer.window()

  A step's `compute` is the time between the arrival of the metrics before and its own, less the
  parts that passed in between: whoever is slower, host or device, decides that interval. Data wait
  and transfer count for the step they were for, so a window's sum is right although the host runs
  ahead.
  """

  def __init__(
    self, *, kept: float = 0.0, passed: float = 0.0, clock: Callable[[], float] = time.monotonic
  ):
    """Begins to count.

    Args:
      kept: seconds of steps that earlier processes of the run took, up to the restored one.
      passed: seconds since the run first began.
      clock: seconds, never backwards.
    """
    self._clock, self._kept, self._passed = clock, kept, passed
    self._began = self._mark = clock()
    self._apart = 0.0  # of parts since the mark
    self._ahead: dict[int, Seconds] = {}  # of steps that are not done
    self._window = Seconds(float)
    self._steps = 0  # done in this window

  @property
  def kept(self) -> float:
    """Seconds that went into steps, those done so far: what a checkpoint of now carries on."""
    return self._kept

  @property
  def goodput(self) -> float:
    """The share of `kept` in the time since the run first began, in [0, 1]."""
    whole = self._passed + self._clock() - self._began
    return min(1.0, self._kept / whole) if whole > 0 else 0.0

  @contextlib.contextmanager
  def part(self, name: str, step: int | None = None) -> Iterator[None]:
    """Times what happens inside; parts do not nest. `step`: which it is done for, if for one."""
    began = self._clock()
    try:
      yield
    finally:
      seconds = self._clock() - began
      self._apart += seconds
      where = self._window if step is None else self._ahead.setdefault(step, Seconds(float))
      where[name] += seconds

  def done(self, step: int) -> None:
    """Takes a step as done now; call it once for every step, in their order."""
    now = self._clock()
    own = self._ahead.pop(step, Seconds(float))
    own['compute'] += max(0.0, now - self._mark - self._apart)
    self._mark, self._apart = now, 0.0
    for name, seconds in own.items():
      self._window[name] += seconds
    self._kept += sum(own.values())
    self._steps += 1

  def window(self) -> dict[str, float]:
    """Returns the metrics of the steps done since the last call, and begins a new window.

    `time/step_s` and `time/{data,transfer,compute,save,eval}_s` are seconds per step, the first the
    sum of the three after it; what else was timed (`time/compile_s`) is a total.
    """
    seconds, steps = self._window, max(1, self._steps)
    self._window, self._steps = Seconds(float), 0
    out = {'time/step_s': sum(seconds[name] for name in STEP_PARTS) / steps}
    out |= {f'time/{name}_s': seconds[name] / steps for name in PARTS}
    return out | {f'time/{name}_s': s for name, s in seconds.items() if name not in PARTS}
