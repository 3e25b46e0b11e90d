"""Saving and restoring a training state: asynchronous, blocking, and by PyTorch and safetensors.

  python -m benchmarks.checkpoint [--gib=0.5] [--rounds=3] [--folder=DIR]

The state has parameters and both of Adam's moments, random float32 numbers (which do not compress).
It is written by `align_jax.train.checkpoints`, as training does: once returning at once while steps
go on, once waiting for the disk. The peers write the same arrays in one file and flush it to the
disk as well. What is restored is compared bit for bit; it comes out of the page cache, for all.

The stall of an asynchronous save is what it costs the training: the time until `save` returns and
what the steps lose while it is written, in the background, on the same cores.
"""

import dataclasses
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from align_jax.train.checkpoints import Checkpoints
from align_jax.train.state import TrainState
from benchmarks import common

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Options:
  """What is measured.

  Attributes:
    gib: of the state.
    arrays: parameters that it is split into.
    rounds: saves and restores of each kind.
    folder: where to write; '' is a temporary folder.
    step_ms: of the training step that goes on meanwhile, about.
  """

  gib: float = 0.5
  arrays: int = 24
  rounds: int = 3
  folder: str = ''
  step_ms: float = 50.0


def make_state(options: Options) -> TrainState:
  """Parameters and Adam's moments, all random."""
  rows = max(1, int(options.gib * _GIB / 4 / 3 / options.arrays / 1024))
  rng = np.random.default_rng(0)

  def fresh() -> dict[str, jax.Array]:
    draw = lambda: jnp.asarray(rng.standard_normal((rows, 1024), np.float32))  # noqa: E731
    return {f'block{i:03d}/kernel': draw() for i in range(options.arrays)}

  learn = fresh()
  adam = optax.scale_by_adam().init(learn)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    learn=learn,
    frozen={},
    optimizer=(adam._replace(mu=fresh(), nu=fresh()),),
    average=None,
    key=jax.random.key_data(jax.random.key(0)),
  )


def at_step(state: TrainState, step: int) -> TrainState:
  return dataclasses.replace(state, step=jnp.asarray(step, jnp.int32))


def zeros_like(state: TrainState) -> TrainState:
  """What a restore fills."""
  return jax.tree.map(jnp.zeros_like, state)


def same(a: Any, b: Any) -> bool:
  """Whether two trees of arrays are equal bit for bit."""
  leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in leaves)


def seconds_of(work: Callable[[], Any]) -> float:
  """Wall time of one call."""
  start = time.perf_counter()
  work()
  return time.perf_counter() - start


class Steps:
  """A stand-in for training: a step of matrix products that takes about so many milliseconds."""

  def __init__(self, milliseconds: float):
    self._x = jnp.ones((512, 512), jnp.float32) / 512
    self._products = 1
    self._compile()
    alone = min(seconds_of(self) for _ in range(3))
    self._products = max(1, round(milliseconds / 1e3 / alone))
    self._compile()

  def _compile(self) -> None:
    products = self._products
    self._run = jax.jit(lambda x: jax.lax.fori_loop(0, products, lambda _, y: x @ y, x))
    self()

  def __call__(self) -> None:
    self._run(self._x).block_until_ready()


def asynchronous(checkpoints: Checkpoints, state: TrainState, step: Callable[[], None]) -> Any:
  """One asynchronous save with steps under way.

  Returns: seconds until `save` returned, until it was on disk, and lost to the training in all.
  """
  alone = sorted(seconds_of(step) for _ in range(9))[4]
  written = threading.Event()
  done: list[float] = []

  def train() -> None:
    while not written.is_set():
      done.append(seconds_of(step))

  start = time.perf_counter()
  checkpoints.save(state, {'position': int(state.step)})
  returned = time.perf_counter() - start
  # steps in a thread, waiting here: who has started a save is the one to wait for it
  steps = threading.Thread(target=train)
  steps.start()
  try:
    checkpoints.wait()
    total = time.perf_counter() - start
  finally:
    written.set()
    steps.join()
  return returned, total, returned + max(0.0, sum(done) - len(done) * alone)


def _flush(path: Path) -> None:
  """Waits until a file is on the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  os.fsync(descriptor)
  os.close(descriptor)


def peers(state: TrainState, folder: Path) -> dict[str, tuple[Callable, Callable, Callable]]:
  """By name: what saves, what restores, and what compares the restored with the state."""
  import safetensors.numpy
  import torch

  leaves = jax.tree.leaves(state)
  arrays = {str(i): np.asarray(leaf) for i, leaf in enumerate(leaves)}
  tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
  places = {'torch.save': folder / 'state.pt', 'safetensors': folder / 'state.safetensors'}

  def save_torch() -> None:
    torch.save(tensors, places['torch.save'])
    _flush(places['torch.save'])

  def save_safetensors() -> None:
    safetensors.numpy.save_file(arrays, places['safetensors'])
    _flush(places['safetensors'])

  def load_torch() -> Any:
    return torch.load(places['torch.save'], weights_only=True)

  def load_safetensors() -> Any:
    return safetensors.numpy.load_file(places['safetensors'])

  def equal(loaded: Any) -> bool:
    return same([loaded[str(i)] for i in range(len(leaves))], leaves)

  return {
    'torch.save': (save_torch, load_torch, equal),
    'safetensors': (save_safetensors, load_safetensors, equal),
  }


def run(options: Options) -> dict[str, Any]:
  """Measures all kinds in turns."""
  for package in ('torch', 'safetensors'):
    common.need(package)
  state = make_state(options)
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / _GIB
  step = Steps(options.step_ms)
  folder = Path(tempfile.mkdtemp(dir=options.folder or None))
  checkpoints = Checkpoints(folder / 'run', keep=1)
  outside = peers(state, folder)
  times: dict[str, dict[str, list[float]]] = {}
  equal: dict[str, bool] = {}

  def note(kind: str, **values: float) -> None:
    for name, value in values.items():
      times.setdefault(kind, {}).setdefault(name, []).append(value / size)

  def restore_ours() -> None:
    got = checkpoints.restore(zeros_like(state))
    assert got is not None
    restored.append(jax.block_until_ready(got[0]))

  try:
    number = 0
    for turn in range(options.rounds):
      number += 1
      now = at_step(state, number)
      returned, total, lost = asynchronous(checkpoints, now, step)
      note('asynchronous', save_returns=returned, save=total, stall=lost)

      number += 1
      now = at_step(state, number)

      def block(now: TrainState = now) -> None:
        checkpoints.save(now, {'position': int(now.step)})
        checkpoints.wait()

      seconds = seconds_of(block)
      note('blocking', save=seconds, stall=seconds)
      restored: list[TrainState] = []
      note('blocking', restore=seconds_of(restore_ours))
      equal['ours'] = equal.get('ours', True) and same(restored[0], now)
      for kind, (save, load, compare) in outside.items():
        seconds = seconds_of(save)
        loaded: list[Any] = []
        note(kind, save=seconds, stall=seconds)
        note(kind, restore=seconds_of(lambda load=load, out=loaded: out.append(load())))
        equal[kind] = equal.get(kind, True) and compare(loaded[0])
      common.say(f'round {turn + 1} of {options.rounds}')
    checkpoints.close()
  finally:
    shutil.rmtree(folder, ignore_errors=True)

  figures = {
    kind: {f'{name}_seconds_per_gib': common.spread(values) for name, values in of.items()}
    for kind, of in times.items()
  }
  stalls = {
    'ours': times['asynchronous']['stall'],
    'peer': [min(pair) for pair in zip(*(times[k]['stall'] for k in outside), strict=True)],
  }
  whole = {
    'ours': times['blocking']['save'],
    'peer': [min(pair) for pair in zip(*(times[k]['save'] for k in outside), strict=True)],
  }
  back = {
    'ours': times['blocking']['restore'],
    'peer': [min(pair) for pair in zip(*(times[k]['restore'] for k in outside), strict=True)],
  }
  return {
    'benchmark': 'checkpoint',
    **common.machine(),
    'gib': common.rounded(size),
    'arrays': len(jax.tree.leaves(state)),
    'restored_equal': equal,
    **figures,
    'ratio': common.ratios(stalls, target=1.0),
    'ratio_blocking_save': common.ratios(whole, target=1.0),
    'ratio_restore': common.ratios(back, target=1.0),
  }


if __name__ == '__main__':
  common.command(Options, run, __doc__.splitlines()[0])
