"""Where numbers go: `metrics.jsonl`, TensorBoard, and a progress line with rate and time left."""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align_jax import storage
from align_jax.files import write_file

METRICS = 'metrics.jsonl'
_NEW = 0.3  # weight of the newest window in the pace that tells the time left


def read_metrics(workdir: storage.AnyPath) -> list[dict[str, Any]]:
  """Returns the lines of a run's `metrics.jsonl`; a last line cut short by a kill is left out."""
  try:
    text = storage.read_bytes(workdir / METRICS).decode()
  except FileNotFoundError:
    return []
  out = []
  for line in text.splitlines():
    try:
      out.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return out


class MetricWriter:
  """Appends scalars by step. On resume, lines past the restored step are dropped: no step twice."""

  def __init__(self, workdir: Path, *, resume_step: int):
    workdir.mkdir(parents=True, exist_ok=True)
    kept = [m for m in read_metrics(workdir) if m['step'] <= resume_step]
    path = workdir / METRICS
    write_file(path, ''.join(json.dumps(m) + '\n' for m in kept))
    # a line of training has a loss; one of an evaluation has not
    self._evaluated = {m['step'] for m in kept if 'loss' not in m}
    self._file = path.open('a')
    self._board = _board(workdir / 'tensorboard', resume_step + 1)

  def has_evaluation(self, step: int) -> bool:
    """Whether an earlier process has written the evaluation of a step."""
    return step in self._evaluated

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Writes one line of scalars."""
    clean = {k: float(v) for k, v in values.items()}
    safe = {k: v if math.isfinite(v) else None for k, v in clean.items()}
    self._file.write(json.dumps({'step': step, **safe}) + '\n')
    self._file.flush()
    for name, value in clean.items():
      self._board.add_scalar(name, value, step)

  def close(self) -> None:
    """Flushes and closes both."""
    self._file.close()
    self._board.close()


class Progress:
  """One line that says step, loss, rate and time left; a terminal sees it overwritten in place."""

  def __init__(self, label: str, steps: int, *, quiet: bool = False):
    """`quiet`: prints nothing, as all processes but the first do."""
    self._label, self._steps, self._quiet = label, steps, quiet
    self._pace: float | None = None  # seconds per step, smoothed
    self._tty = sys.stderr.isatty()

  def say(self, text: str) -> None:
    """Prints a line of its own."""
    if not self._quiet:
      print(f'{self._label}: {text}', flush=True)

  def show(self, step: int, loss: float, speed: float, pace: float) -> None:
    """Prints the line.

    Args:
      step: of `steps`.
      loss: of this step.
      speed: examples per second, lately.
      pace: seconds from step to step, lately, with all that happens between them.
    """
    before = pace if self._pace is None else self._pace
    self._pace = before + _NEW * (pace - before)
    if self._quiet:
      return
    end = '\r' if self._tty and step < self._steps else '\n'
    left = self._pace * (self._steps - step)
    print(
      f'{self._label}: step {step}/{self._steps}  loss {loss:.4f}  {speed:,.0f} examples/s  '
      f'{left / 60:.1f} min left',
      end=end,
      file=sys.stderr,
      flush=True,
    )


def _board(folder: Path, purge_step: int) -> Any:
  """Opens TensorBoard's file.

  Where PyTorch is installed, tensorboardX imports it to log its tensors: four seconds of every
  start, for numbers that are none. It is told that there is none.
  """
  hidden = 'torch' not in sys.modules
  if hidden:
    sys.modules['torch'] = None  # type: ignore[assignment]  # an import of it then fails
  try:
    from tensorboardX import SummaryWriter
  finally:
    if hidden:
      del sys.modules['torch']
  return SummaryWriter(str(folder), purge_step=purge_step)
