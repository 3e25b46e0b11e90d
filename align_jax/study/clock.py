"""How long a study's pieces take, kept over restarts, and how long is left."""

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from align_jax.files import write_file

# Work is told in examples trained. What stands beside training, roughly in the same unit:
GENERATOR_EXAMPLE = 4.0  # of an example of the generator: many patches, and the text at every layer
GENERATED_IMAGE = 12.0  # of a generated image: some twenty forwards of the generator
EVALUATION = 8_000.0  # of one judgement of a run
PLAN = 4_000.0  # of one batch plan: all its pairs are embedded
PAGE = 20_000.0  # of the report, most of it the two maps


class Clock:
  """Times pieces; says after each how much of the work is done and how long the rest will take."""

  def __init__(self, path: Path, work: float):
    """Reads the seconds of earlier calls from `path`; `work` is that of the whole study."""
    self._path, self._work, self._done = path, work, 0.0
    self.seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    self._began = time.monotonic()
    self._worked = 0.0  # in this process: finished pieces pass at once and say nothing of the rate

  @contextlib.contextmanager
  def piece(self, name: str, work: float) -> Iterator[None]:
    """Times what happens inside; nothing is recorded when it fails."""
    start = time.monotonic()
    yield
    spent = time.monotonic() - start
    self._done += work
    if spent < 1 and name in self.seconds:
      return  # done by an earlier call
    self._worked += work
    self.seconds[name] = round(self.seconds.get(name, 0.0) + spent, 1)
    write_file(self._path, json.dumps(self.seconds, indent=1))
    passed = time.monotonic() - self._began
    left = passed / self._worked * max(0.0, self._work - self._done)
    print(
      f'[{self._done / self._work:4.0%}] {name}: {spent:.0f} s; {passed / 60:.1f} min passed, '
      f'about {left / 60:.1f} left',
      file=sys.stderr,
      flush=True,
    )
