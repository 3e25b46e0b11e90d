"""SIGTERM, which a scheduler sends before it takes the machine: save, end, be started again."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def watch() -> Iterator[Callable[[int], bool]]:
  """Yields `asked(step)`: whether to save and end after this step.

  All processes of a run must ask after every step, and all are told so at the same one, even if
  only one of them got the signal. With a single process a second SIGTERM ends it at once.
  """
  if jax.process_count() > 1:
    # JAX's own handler is in place since `distributed.initialize`; ours would silence it
    yield multihost_utils.reached_preemption_sync_point
    return
  if threading.current_thread() is not threading.main_thread():
    yield lambda step: False  # signals are the main thread's
    return
  told = threading.Event()

  def handle(signum: int, frame: FrameType | None) -> None:
    told.set()
    signal.signal(signum, before)

  before = signal.signal(signal.SIGTERM, handle)
  try:
    yield lambda step: told.is_set()
  finally:
    signal.signal(signal.SIGTERM, before)
