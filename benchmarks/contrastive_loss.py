"""Memory and time of the sigmoid loss against the size of the batch, open_clip's beside ours.

  python -m benchmarks.contrastive_loss [--max_batch=8192] [--largest=65536] [--dim=512]

Value and gradient by both embeddings, the scale and the bias, in float32:

- `plain`: all logits at once, on one device.
- `ring`: eight simulated devices, a block of `batch/8 x batch/8` at a time on each.
- `rows`: the same ring, `--rows` rows of a block at a time.
- `open_clip`: `open_clip.loss.SigLipLoss` as it is in one process.
- `open_clip_blocks`: the blocks that its distributed forms compute on eight ranks, here one after
  another in one process, each with its own backward pass. (It has no chunked form for one process;
  its distributed ones keep every block until the backward pass, so this flatters it.)

Each size runs in a process of its own. `compiled_bytes` is what XLA's compiler sets aside beyond
the arguments, for one device, known without running; `rss_bytes` is what the process grew by while
it ran, all eight devices together. The exponent is that of the power of the batch that fits them.
"""

import dataclasses
import importlib.util
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import common

DEVICES = 8
OURS = ('plain', 'ring', 'rows')
PEERS = ('open_clip', 'open_clip_blocks')


@dataclasses.dataclass(frozen=True)
class Options:
  """What is measured.

  Attributes:
    min_batch, max_batch: sizes that are run, each double the one before.
    largest: sizes up to here are compiled, to learn of their memory.
    dim: of the embeddings.
    rows: of a block at a time, of the kind `rows`.
    rounds: runs of each size; the best counts.
    only: one kind in this process, at `max_batch`: what the program starts for every figure.
    execute: 0 only compiles it.
  """

  min_batch: int = 1024
  max_batch: int = 8192
  largest: int = 65536
  dim: int = 512
  rows: int = 256
  rounds: int = 3
  only: str = ''
  execute: int = 1


def embeddings(batch: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
  """Unit-norm rows; those of a pair lie near each other."""
  rng = np.random.default_rng(0)
  image = rng.standard_normal((batch, dim), np.float32)
  text = image + rng.standard_normal((batch, dim), np.float32)
  norm = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
  return norm(image), norm(text)


def ours(kind: str, options: Options, *, execute: bool) -> dict[str, Any]:
  """Compiles, and runs, one of our losses at `max_batch`."""
  import jax
  import jax.numpy as jnp

  jax.config.update('jax_num_cpu_devices', DEVICES)
  from align_jax.losses import contrastive
  from align_jax.parallel import ring
  from align_jax.parallel.mesh import MeshConfig, batch_sharding, make_mesh

  devices = jax.devices()[: 1 if kind == 'plain' else DEVICES]
  mesh = make_mesh(MeshConfig(), devices)
  around = ring.Ring(mesh, rows=options.rows if kind == 'rows' else 0)

  def loss(image: Any, text: Any, scale: Any, bias: Any) -> Any:
    if kind == 'plain':
      return contrastive.sigmoid_loss(image, text, scale, bias)
    return ring.sigmoid_loss(around, image, text, scale, bias)

  step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)))
  shape = jax.ShapeDtypeStruct(
    (options.max_batch, options.dim), jnp.float32, sharding=batch_sharding(mesh)
  )
  scalar = jax.ShapeDtypeStruct((), jnp.float32)
  compiled = step.lower(shape, shape, scalar, scalar).compile()
  out: dict[str, Any] = {'compiled_bytes': compiled.memory_analysis().temp_size_in_bytes}
  if not execute:
    return out
  arrays = [
    jax.device_put(x, batch_sharding(mesh)) for x in embeddings(options.max_batch, options.dim)
  ]
  scalars = jnp.float32(10.0), jnp.float32(-10.0)
  value, seconds, grown = timed(
    lambda: float(jax.block_until_ready(compiled(*arrays, *scalars))[0]), options.rounds
  )
  return out | {'seconds': seconds, 'rss_bytes': grown, 'loss': value}


def peer(kind: str, options: Options) -> dict[str, Any]:
  """Runs one of open_clip's losses at `max_batch`."""
  import torch

  torch.set_num_threads(common.cores())
  module = siglip_loss()
  arrays = [
    torch.from_numpy(x).requires_grad_() for x in embeddings(options.max_batch, options.dim)
  ]
  scalars = [torch.tensor(x, requires_grad=True) for x in (10.0, -10.0)]
  ranks = 1 if kind == 'open_clip' else DEVICES

  def run() -> float:
    for x in (*arrays, *scalars):
      x.grad = None
    total = 0.0
    images, texts = (x.chunk(ranks) for x in arrays)
    for i, image in enumerate(images):
      for j, text in enumerate(texts):
        loss = module._loss(image, text, *scalars, negative_only=i != j) / ranks
        loss.backward(retain_graph=False)
        total += float(loss.detach())
    return total

  value, seconds, grown = timed(run, options.rounds)
  return {'seconds': seconds, 'rss_bytes': grown, 'loss': value}


def siglip_loss() -> Any:
  """open_clip's `SigLipLoss`, read from its own file: the package as a whole needs torchvision."""
  common.need('open_clip_torch')
  package = importlib.util.find_spec('open_clip')
  assert package is not None and package.submodule_search_locations
  file = Path(package.submodule_search_locations[0]) / 'loss.py'
  spec = importlib.util.spec_from_file_location('open_clip_loss', file)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.SigLipLoss()


def timed(work: Callable[[], float], rounds: int) -> tuple[float, float, int]:
  """Returns the result, the best time, and by how many bytes the process grew at the most."""
  before = _resident('VmRSS')
  _forget_peak()
  seconds = []
  value = float('nan')
  for _ in range(rounds):
    start = time.perf_counter()
    value = work()
    seconds.append(time.perf_counter() - start)
  return value, common.rounded(min(seconds)), max(0, _resident('VmHWM') - before)


def _forget_peak() -> None:
  """Lets the kernel measure the peak of resident memory from here."""
  try:
    Path('/proc/self/clear_refs').write_text('5')
  except OSError:  # then the peak is that of the whole process, which grows with the batch as well
    return


def _resident(field: str) -> int:
  found = re.search(rf'{field}:\s+(\d+) kB', Path('/proc/self/status').read_text())
  return int(found[1]) * 1024 if found else 0


def in_process(options: Options, kind: str, batch: int, *, execute: bool) -> dict[str, Any]:
  """One figure, from a fresh process: memory that an earlier size has left would be counted."""
  given = dataclasses.replace(options, only=kind, max_batch=batch, execute=int(execute))
  flags = [f'--{name}={value}' for name, value in dataclasses.asdict(given).items()]
  command = [sys.executable, '-m', 'benchmarks.contrastive_loss', *flags]
  done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
  return json.loads(done.stdout.strip().splitlines()[-1])


def exponent(sizes: dict[int, float]) -> float | None:
  """The power of the batch that memory or time grows with, by least squares over the logarithms."""
  points = {batch: value for batch, value in sizes.items() if value > 0}
  if len(points) < 2:
    return None
  slope, _ = np.polyfit(np.log(list(points)), np.log(list(points.values())), 1)
  return round(float(slope), 2)


def run(options: Options) -> dict[str, Any]:
  """Measures every kind at every size."""
  if options.only in OURS:
    return ours(options.only, options, execute=bool(options.execute))
  if options.only in PEERS:
    return peer(options.only, options)
  common.need('open_clip_torch')
  sizes = [options.min_batch]
  while sizes[-1] * 2 <= max(options.max_batch, options.largest):
    sizes.append(sizes[-1] * 2)
  figures: dict[str, dict[int, dict[str, Any]]] = {kind: {} for kind in (*OURS, *PEERS)}
  for batch in sizes:
    for kind in figures:
      execute = batch <= options.max_batch
      if execute or (kind in OURS and batch <= options.largest):
        figures[kind][batch] = in_process(options, kind, batch, execute=execute)
        common.say(f'{kind} {batch}: {figures[kind][batch]}')
  return {
    'benchmark': 'contrastive_loss',
    **common.machine(),
    'simulated_devices': DEVICES,
    'dim': options.dim,
    'rows': options.rows,
    'kinds': {kind: _kind(found) for kind, found in figures.items()},
    **_verdict(figures, options.max_batch),
  }


def _kind(found: dict[int, dict[str, Any]]) -> dict[str, Any]:
  """A kind's figures by batch, and the exponents that fit them."""
  out: dict[str, Any] = {'by_batch': {str(batch): values for batch, values in found.items()}}
  for name in ('compiled_bytes', 'rss_bytes', 'seconds'):
    of = {batch: values[name] for batch, values in found.items() if name in values}
    if of:
      out[f'{name}_exponent'] = exponent(of)
  return out


def _verdict(figures: dict[str, dict[int, dict[str, Any]]], batch: int) -> dict[str, Any]:
  """Our leanest form, all eight devices together, against the peer's at the largest batch run."""
  own, theirs = figures['rows'][batch], figures['open_clip'][batch]
  linear = exponent({b: v['compiled_bytes'] for b, v in figures['rows'].items()})
  losses = [figures[kind][batch]['loss'] for kind in figures]
  return {
    'batch': batch,
    'linear': {'exponent': linear, 'target': 1.1, 'met': linear is not None and linear <= 1.1},
    'ratio_memory': common.rounded(theirs['rss_bytes'] / max(1, own['rss_bytes'])),
    'ratio_time': common.rounded(theirs['seconds'] / own['seconds']),
    'losses_spread': common.rounded(max(losses) - min(losses)),
  }


if __name__ == '__main__':
  common.command(Options, run, __doc__.splitlines()[0])
