"""Traces of a few steps for XProf and TensorBoard."""

import contextlib
import re
from pathlib import Path
from typing import Any

import jax

from align_jax.errors import UserError
from align_jax.train.timing import Timer

Steps = tuple[int, int]  # the first and the last


def parse_steps(text: str, steps: int) -> Steps | None:
  """Reads `--profile_steps`: '' or `A:B`, the first and the last step to trace.

  Raises:
    UserError: not of that form, or not among the run's `steps`.
  """
  if not text:
    return None
  found = re.fullmatch(r'(\d+):(\d+)', text.strip())
  if not found:
    raise UserError(f'--profile_steps: {text!r} is not understood; write FIRST:LAST, like 10:13')
  first, last = int(found[1]), int(found[2])
  if not 1 <= first <= last <= steps:
    raise UserError(
      f'--profile_steps: {text} must be two steps of this run, the first from 1 on and not after '
      f'the last, the last at most {steps} (config.steps)'
    )
  return first, last


class Profiler:
  """Traces the steps it was asked to, whole: the device is at rest when a trace begins and ends."""

  def __init__(self, folder: Path | None, steps: Steps | None, start: int, timer: Timer):
    """Traces nothing yet.

    Args:
      folder: of the run; traces go to `profile/` in it. None: another process traces.
      steps: the first and last step; those up to `start` are past.
      start: training goes on after it.
      timer: told of what tracing itself takes.
    """
    self._folder, self._timer = folder, timer
    first, last = steps or (1, 0)
    self._first, self._last = max(first, start + 1), last
    self._on = False

  def before(self, step: int, state: Any) -> None:
    """Begins where that is due; `state`: of the step before."""
    if self._folder is None or step != self._first or step > self._last:
      return
    jax.block_until_ready(state)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # every call of every Python function, slower than the steps
    with self._timer.part('profile'):
      jax.profiler.start_trace(str(self._folder / 'profile'), profiler_options=options)
    self._on = True

  def step(self, step: int) -> contextlib.AbstractContextManager[Any]:
    """Marks what belongs to a step in a trace."""
    return jax.profiler.StepTraceAnnotation('train', step_num=step)

  def after(self, step: int, state: Any) -> None:
    """Ends where that is due; `state`: of this step."""
    if self._on and step == self._last:
      jax.block_until_ready(state)
      self.close()

  def close(self) -> None:
    """Ends a trace that is still on, and writes it."""
    if self._on:
      self._on = False
      with self._timer.part('profile'):
        jax.profiler.stop_trace()
