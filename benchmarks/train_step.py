"""A training step of a CLIP-style model, against the same model in PyTorch.

  python -m benchmarks.train_step [--model=S/16] [--batch=16] [--steps=1] [--rounds=9]
    [--dtype=float32] [--activation=quick_gelu] [--torch_compile=auto]

The step is the one that training runs: `align_jax.train.plan`. The peer is `transformers.CLIPModel`
with PyTorch's fused attention and fused AdamW, on the same weights, batch, precision and threads;
both normalise the same uint8 images, clip the gradient and decay the same parameters. Their losses
over the first steps are printed side by side. The process keeps the memory it frees, which serves
both (`common.keep_memory`).
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from align_jax.config import build
from align_jax.errors import UserError, did_you_mean
from align_jax.models.flat import count
from align_jax.models.variants import VARIANTS
from align_jax.objectives import make_objective
from align_jax.parallel.chips import find_peak
from align_jax.parallel.mesh import put_batch
from align_jax.train.config import TrainConfig
from align_jax.train.plan import Plan, plan
from align_jax.train.state import create_state
from benchmarks import common

FORMULA = (
  '3 x forward; forward = matrix products at 2 FLOPs a multiply-add: patches, projections '
  '2LW(4W+2M) and attention 4LLW a block, projections of the embeddings'
)
CHECKED_STEPS = 3


@dataclasses.dataclass(frozen=True)
class Options:
  """What is measured.

  Attributes:
    model: size of both towers and the patch, `S/16`.
    batch: images of a step.
    steps: of a turn.
    rounds: turns of each side.
    dtype: of the towers, float32 or bfloat16.
    activation: as in `models.layers.BlockConfig`.
    torch_compile: yes, no, or auto: on a GPU.
    image_size, text_length, vocab_size, depth: of the model; depth 0 is that of its size.
  """

  model: str = 'S/16'
  batch: int = 16
  steps: int = 1
  rounds: int = 9
  dtype: str = 'float32'
  activation: str = 'quick_gelu'
  torch_compile: str = 'auto'
  image_size: int = 224
  text_length: int = 77
  vocab_size: int = 49408
  depth: int = 0


def train_config(options: Options) -> TrainConfig:
  """The experiment: CLIP of that size, InfoNCE over the batch, AdamW.

  Raises:
    UserError: an unknown size.
  """
  name, _, patch = options.model.partition('/')
  if name not in VARIANTS or not patch.isdigit():
    raise UserError(f'--model: {options.model!r}{did_you_mean(name, VARIANTS)}; a size is S/16')
  size = dataclasses.asdict(VARIANTS[name])
  tower = size | {'activation': options.activation, 'eps': 1e-5, 'dtype': options.dtype}
  tower |= {'depth': options.depth} if options.depth else {}
  image = {'image_size': options.image_size, 'patch': int(patch), 'pool': 'cls'}
  text = {'vocab_size': options.vocab_size, 'length': options.text_length}
  values = {
    'seed': 0,
    'steps': 1_000_000,
    'batch_size': options.batch,
    'objective': {'name': 'contrastive', 'same_caption_is_positive': False},
    'model': {
      'image': tower | image | {'pre_norm': True, 'patch_bias': False},
      'text': tower | text | {'eot_id': options.vocab_size - 1, 'pad_id': 1},
      'dim': size['width'],
    },
    'data': {'length': options.text_length},
    'optimizer': {'lr': 1e-4, 'schedule': 'constant', 'weight_decay': 0.1, 'clip_norm': 1.0},
  }
  return build(TrainConfig, values)


def make_batch(config: TrainConfig, model: Any) -> dict[str, np.ndarray]:
  """Random pictures, and random words up to an end token somewhere in the second half."""
  rng = np.random.default_rng(0)
  size, length, count = model.image_size, config.data.length, config.batch_size
  text = rng.integers(2, model.eot_id, (count, length))
  ends = rng.integers(length // 2, length, count)
  for row, end in zip(text, ends, strict=True):
    row[end], row[end + 1 :] = model.eot_id, model.pad_id
  return {
    'image': rng.integers(0, 256, (count, size, size, 3), np.uint8),
    'text': text.astype(np.int32),
    'group': np.arange(count, dtype=np.int32),
    'modality': np.zeros(count, np.int32),
  }


class JaxStep:
  """Our step, compiled for one device, with its state and batch."""

  def __init__(
    self, config: TrainConfig, planned: Plan, batch: dict[str, np.ndarray], given: dict[str, Any]
  ):
    objective = make_objective(config.objective)
    self._state = create_state(
      planned.skeleton,
      objective,
      planned.optimizer,
      key=jax.random.key(config.seed),
      mesh=planned.mesh,
      rules=config.mesh.rules,
      ema=False,
      given=given,
    )
    self._batch = put_batch(batch, planned.mesh)
    common.say('compiling our step')
    self._step = planned.step.lower(planned.state, planned.batch).compile()

  def __call__(self) -> float:
    """Takes one step and waits for it. Returns the loss before it."""
    self._state, metrics = self._step(self._state, self._batch)
    jax.block_until_ready(self._state)
    return float(metrics['loss'])

  @property
  def peak_bytes(self) -> int:
    """Bytes that the compiler sets aside: state, batch and all that lives within a step."""
    stats = self._step.memory_analysis()
    return stats.argument_size_in_bytes + stats.temp_size_in_bytes


def peak_flops(dtype: str) -> float | None:
  """FLOP/s the chip can do at most in bfloat16; None where it is not known (CPUs, float32)."""
  peak = find_peak(jax.devices()[0]) if dtype == 'bfloat16' else None
  return peak.flops if peak else None


def matmul_flops(size: int = 1536) -> float:
  """FLOP/s of a large float32 matrix product of JAX here: what a CPU's step is held against."""
  x = jnp.ones((size, size), jnp.float32)
  product = jax.jit(lambda x: x @ x)
  product(x).block_until_ready()
  best = float('inf')
  for _ in range(5):
    start = time.perf_counter()
    product(x).block_until_ready()
    best = min(best, time.perf_counter() - start)
  return 2 * size**3 / best


def run(options: Options) -> dict[str, Any]:
  """Measures both sides in turns."""
  common.need('torch')
  import torch  # the peer's package comes with an extra

  from benchmarks.clip_torch import TorchStep, to_params

  keeps = common.keep_memory()
  config = train_config(options)
  torch.manual_seed(0)
  torch.set_num_threads(common.cores())
  planned = plan(config, make_objective(config.objective), jax.devices()[:1])
  batch = make_batch(config, planned.model)
  compiled = {'yes': True, 'no': False, 'auto': torch.cuda.is_available()}[options.torch_compile]
  peer = TorchStep(planned.model, config.optimizer, batch, dtype=options.dtype, compiled=compiled)
  ours = JaxStep(config, planned, batch, to_params(peer.model))
  losses = {'ours': [ours() for _ in range(CHECKED_STEPS)]}
  losses['peer'] = [peer() for _ in range(CHECKED_STEPS)]
  common.say(f'losses {losses}')

  def timed(step: Callable[[], float]) -> Callable[[], float]:
    def turn() -> float:
      start = time.perf_counter()
      for _ in range(options.steps):
        step()
      return (time.perf_counter() - start) / options.steps

    return turn

  seconds = common.in_turns({'ours': timed(ours), 'peer': timed(peer)}, options.rounds)
  peak = peak_flops(options.dtype)

  def side(name: str, peak_bytes: int | None) -> dict[str, Any]:
    step = common.spread(seconds[name])
    rate = planned.flops / step['median']
    return {
      'images_per_second_per_chip': common.rounded(options.batch / step['median']),
      'step_seconds': step,
      'gflops_per_second': common.rounded(rate / 1e9),
      'mfu': None if peak is None else common.rounded(rate / peak),
      'peak_bytes': peak_bytes,
      'first_losses': [round(loss, 5) for loss in losses[name]],
    }

  return {
    'benchmark': 'train_step',
    **common.machine(),
    'threads': common.cores(),
    'keeps_freed_memory': keeps,
    'model': f'CLIP {options.model}, {options.image_size} px, {options.text_length} tokens',
    'activation': options.activation,
    'parameters': count(planned.learn),
    'peer_parameters': peer.parameters,
    'batch': options.batch,
    'dtype': options.dtype,
    'flops_per_step': planned.flops,
    'flops_formula': FORMULA,
    'peak_flops_per_second': peak,
    'matmul_gflops_per_second': common.rounded(matmul_flops() / 1e9),
    'ours': side('ours', ours.peak_bytes),
    'peer': side('peer', peer.peak_bytes) | peer.describe(),
    'ratio': common.ratios(seconds, target=1.0),
  }


if __name__ == '__main__':
  common.command(Options, run, __doc__.splitlines()[0])
