"""Where numbers go: `metrics.jsonl`, TensorBoard, and a progress line with rate and time left."""

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from align_jax.files import write_file


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
  """Returns the lines of a run's `metrics.jsonl`; a last line cut short by a kill is left out."""
  path = workdir / 'metrics.jsonl'
  if not path.exists():
    return []
  out = []
  for line in path.read_text().splitlines():
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
    path = workdir / 'metrics.jsonl'
    write_file(path, ''.join(json.dumps(m) + '\n' for m in kept))
    self._file = path.open('a')
    self._board = SummaryWriter(str(workdir / 'tensorboard'), purge_step=resume_step + 1)

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

  def __init__(
    self, label: str, steps: int, start: int, examples_per_step: int, *, quiet: bool = False
  ):
    """`quiet`: works out the rate and prints nothing, as all processes but the first do."""
    self._label, self._steps, self._start, self._quiet = label, steps, start, quiet
    self._examples = examples_per_step
    self._began = time.monotonic()
    self._tty = sys.stderr.isatty()

  def say(self, text: str) -> None:
    """Prints a line of its own."""
    if not self._quiet:
      print(f'{self._label}: {text}', flush=True)

  def show(self, step: int, loss: float) -> float:
    """Prints the line; returns examples per second since the start of this process."""
    passed = max(1e-9, time.monotonic() - self._began)
    rate = (step - self._start) / passed
    left = (self._steps - step) / rate if rate > 0 else 0.0
    speed = rate * self._examples
    if self._quiet:
      return speed
    end = '\r' if self._tty and step < self._steps else '\n'
    print(
      f'{self._label}: step {step}/{self._steps}  loss {loss:.4f}  {speed:,.0f} examples/s  '
      f'{left / 60:.1f} min left',
      end=end,
      file=sys.stderr,
      flush=True,
    )
    return speed
