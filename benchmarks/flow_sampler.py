"""Images a second of the flow sampler, against the same transformer and steps in `diffusers`.

  python -m benchmarks.flow_sampler [--model=S] [--patch=2] [--size=32] [--images=2] [--steps=8]
    [--guidance=4] [--rounds=7] [--dtype=float32] [--cross=0] [--scan=0] [--torch_compile=auto]

Ours is what the data engine runs, `align_jax.synth.sampler.make_draw`. The peer is
`diffusers.DiTTransformer2DModel`, class-conditional, in the loop of `DiTPipeline`: the batch
doubled for guidance, a scheduler's step (`FlowMatchEulerDiscreteScheduler`), pixels rounded. Both
have the same weights (the peer's class table holds what our text encoder says of each class), start
from the same noise and end with the same images; how far those are apart is printed. Neither has an
autoencoder: 32x32 with patches of 2 are the 256 patches of a latent DiT at 256 px.

With `--cross=1` ours attends to the words besides, which the peer cannot: another architecture,
more work, and images that are not compared.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from align_jax.errors import UserError, did_you_mean
from align_jax.models.dit import Dit, DitConfig
from align_jax.models.flat import Params, Skeleton, count
from align_jax.models.variants import VARIANTS
from align_jax.models.vit import sincos2d
from align_jax.parallel.mesh import MeshConfig, make_mesh
from align_jax.synth.sampler import Solver, make_draw, seed_words, seeded_noise
from benchmarks import common

FORMULA = (
  'forwards x images x matrix products at 2 FLOPs a multiply-add: patches, projections 2LW(4W+2M) '
  'and attention 4LLW a block, modulation 12WW a block, time and ends'
)
CLASSES = 1000
_VECTORS = 0.1  # deviation of random biases and embeddings


@dataclasses.dataclass(frozen=True)
class Options:
  """What is measured.

  Attributes:
    model: size of the transformer, as of our towers: Ti, S, B, L.
    patch, size: of the images, which have three channels.
    images: of a batch; guidance doubles it.
    steps, guidance: of the Euler solver.
    rounds: batches of each side.
    dtype: of the transformer, float32 or bfloat16.
    cross: 1: our blocks attend to the words besides.
    length: words.
    scan: 1: our blocks as one loop.
    torch_compile: yes, no, or auto: on a GPU.
    depth: 0 is that of the size.
  """

  model: str = 'S'
  patch: int = 2
  size: int = 32
  images: int = 2
  steps: int = 8
  guidance: float = 4.0
  rounds: int = 7
  dtype: str = 'float32'
  cross: int = 0
  length: int = 1
  scan: int = 0
  torch_compile: str = 'auto'
  depth: int = 0


def model_config(options: Options) -> DitConfig:
  """Our model; a class is a word.

  Raises:
    UserError: an unknown size or dtype.
  """
  if options.model not in VARIANTS:
    raise UserError(f'--model: {options.model!r}{did_you_mean(options.model, VARIANTS)}')
  if options.dtype not in ('float32', 'bfloat16'):
    raise UserError(f"--dtype: {options.dtype!r} is neither 'float32' nor 'bfloat16'")
  size = VARIANTS[options.model]
  return DitConfig(
    image_size=options.size,
    patch=options.patch,
    width=size.width,
    depth=options.depth or size.depth,
    heads=size.heads,
    mlp_dim=size.mlp_dim,
    vocab_size=CLASSES + 1,
    length=options.length,
    predict='velocity',
    cross_attention=bool(options.cross),
    dtype=options.dtype,  # type: ignore[arg-type]
  )


def random_params(skeleton: Skeleton) -> Params:
  """Random weights, of the gates too, which start at zero: every part takes its share."""
  rng = np.random.default_rng(0)
  out = {}
  for name, shape in skeleton.shapes.items():
    kernel = name.endswith('/kernel')
    value = rng.standard_normal(shape.shape, np.float32)
    value *= shape.shape[-2] ** -0.5 if kernel else _VECTORS
    out[name] = value + 1 if name.endswith('/scale') else value
  out['out/kernel'] *= 0.3  # most pixels stay in range: what is clipped compares nothing
  return out


def class_table(skeleton: Skeleton, params: Params) -> np.ndarray:
  """What our model adds to the time for each class, and last for none: `[classes + 1, width]`."""
  config = skeleton.bind(params).config
  full = Skeleton(lambda rngs: Dit(dataclasses.replace(config, dtype='float32'), rngs))
  words = np.zeros((CLASSES + 1, config.length), np.int32)
  words[:CLASSES, 0] = np.arange(1, CLASSES + 1)

  @jax.jit
  def table(params: Params) -> jax.Array:
    model = full.bind(params)
    return model.pooled(model.encode_text(jnp.asarray(words)).pooled)

  return np.asarray(table(params))


class Peer:
  """The loop of `DiTPipeline` around a `DiTTransformer2DModel` of our weights."""

  def __init__(self, options: Options, skeleton: Skeleton, params: Params):
    import diffusers
    import torch

    config: DitConfig = skeleton.bind(params).config
    self._torch, self._options = torch, options
    model = diffusers.DiTTransformer2DModel(
      num_attention_heads=config.heads,
      attention_head_dim=config.width // config.heads,
      in_channels=3,
      num_layers=config.depth,
      sample_size=config.image_size,
      patch_size=config.patch,
      num_embeds_ada_norm=CLASSES,
      norm_eps=config.eps,
    )
    table = class_table(skeleton, params)
    state = {n: torch.tensor(v) for n, v in to_state(config, params, table).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if missing or unexpected:
      raise ValueError(f'another DiT than expected: {missing} {unexpected}')
    side = config.image_size // config.patch
    model.pos_embed.pos_embed.copy_(torch.tensor(sincos2d((side, side), config.width)[None]))
    for block in model.transformer_blocks:
      block.norm1.emb.time_proj.downscale_freq_shift = 0  # published DiTs, and ours, have none
    self.parameters = sum(p.numel() for p in model.parameters())
    self._model = model.eval().to(getattr(torch, options.dtype))
    self.compiled = options.torch_compile == 'yes' or (
      options.torch_compile == 'auto' and torch.cuda.is_available()
    )
    self._run = torch.compile(self._model) if self.compiled else self._model
    self._scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    self._sigmas = np.linspace(1, 1 / options.steps, options.steps)

  def __call__(self, classes: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Draws images of classes from noise `[batch, size, size, 3]`."""
    torch, guidance = self._torch, self._options.guidance
    with torch.inference_mode():
      x = torch.tensor(noise).permute(0, 3, 1, 2).contiguous()
      labels = torch.cat([torch.tensor(classes), torch.full((len(classes),), CLASSES)])
      self._scheduler.set_timesteps(sigmas=list(self._sigmas))
      for t in self._scheduler.timesteps:
        twice = torch.cat([x, x]).to(self._model.dtype)
        out = self._run(twice, timestep=t.expand(len(twice)), class_labels=labels).sample.float()
        with_class, without = out.chunk(2)
        x = self._scheduler.step(without + guidance * (with_class - without), t, x).prev_sample
      pixels = torch.round(127.5 * (x.clamp(-1, 1) + 1)).to(torch.uint8)
      return pixels.permute(0, 2, 3, 1).numpy()

  def flops(self) -> int:
    """Floating-point operations of one forward of one image, as PyTorch counts them.

    Attention's products are not among those it knows on a CPU; they are added.
    """
    from torch.utils.flop_counter import FlopCounterMode

    config, torch = self._model.config, self._torch
    x = torch.zeros(1, 3, config.sample_size, config.sample_size, dtype=self._model.dtype)
    one = torch.zeros(1, dtype=torch.long)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
      self._model(x, timestep=one, class_labels=one)
    patches = (config.sample_size // config.patch_size) ** 2
    width = config.num_attention_heads * config.attention_head_dim
    counted = counter.get_flop_counts().get('Global', {})
    attention = 0 if any('attention' in str(op) for op in counted) else 4 * patches**2 * width
    return int(counter.get_total_flops()) + config.num_layers * attention


def to_state(config: DitConfig, params: Params, table: np.ndarray) -> dict[str, np.ndarray]:
  """Our weights under the names of a `DiTTransformer2DModel`."""
  values = {name: np.asarray(value) for name, value in params.items()}
  out: dict[str, np.ndarray] = {}

  def linear(theirs: str, ours: str, layer: int | None = None) -> None:
    kernel, bias = values[f'{ours}/kernel'], values[f'{ours}/bias']
    kernel, bias = (kernel, bias) if layer is None else (kernel[layer], bias[layer])
    out[f'{theirs}.weight'], out[f'{theirs}.bias'] = np.ascontiguousarray(kernel.T), bias

  kernel = values['patch_embed/kernel'].reshape(config.patch, config.patch, 3, config.width)
  out['pos_embed.proj.weight'] = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
  out['pos_embed.proj.bias'] = values['patch_embed/bias']
  linear('proj_out_1', 'modulation')
  linear('proj_out_2', 'out')
  for layer in range(config.depth):
    theirs, ours = f'transformer_blocks.{layer}', 'blocks/layer'
    linear(f'{theirs}.norm1.emb.timestep_embedder.linear_1', 'time_in')
    linear(f'{theirs}.norm1.emb.timestep_embedder.linear_2', 'time_out')
    out[f'{theirs}.norm1.emb.class_embedder.embedding_table.weight'] = table
    linear(f'{theirs}.norm1.linear', f'{ours}/modulation', layer)
    linear(f'{theirs}.qkv', f'{ours}/attention/qkv', layer)
    weight, bias = out.pop(f'{theirs}.qkv.weight'), out.pop(f'{theirs}.qkv.bias')
    for name, w, b in zip('qkv', np.split(weight, 3), np.split(bias, 3), strict=True):
      out[f'{theirs}.attn1.to_{name}.weight'], out[f'{theirs}.attn1.to_{name}.bias'] = w, b
    linear(f'{theirs}.attn1.to_out.0', f'{ours}/attention/out', layer)
    linear(f'{theirs}.ff.net.0.proj', f'{ours}/mlp/up', layer)
    linear(f'{theirs}.ff.net.2', f'{ours}/mlp/down', layer)
  return out


def run(options: Options) -> dict[str, Any]:
  """Measures both sides in turns."""
  common.need('torch')
  common.need('diffusers')
  import torch  # the peer's package comes with an extra

  keeps = common.keep_memory()
  torch.set_num_threads(common.cores())
  config = model_config(options)
  skeleton = Skeleton(lambda rngs: Dit(config, rngs))
  params = random_params(skeleton)
  peer = Peer(options, skeleton, params)
  solver = Solver(options.steps, options.guidance)
  draw = make_draw(
    config, solver, make_mesh(MeshConfig(), jax.devices()[:1]), scan=bool(options.scan)
  )
  placed = jax.device_put(params)
  classes = np.arange(options.images) % CLASSES
  words = np.zeros((options.images, options.length), np.int32)
  words[:, 0] = classes + 1
  seeds = jnp.asarray(seed_words(range(options.images)))
  noise = np.asarray(seeded_noise(seeds, config.shape))

  def ours() -> np.ndarray:
    return np.asarray(draw(placed, words, seeds)[0])

  common.say('compiling our sampler')
  images = {'ours': ours(), 'peer': peer(classes, noise)}
  apart = np.abs(images['ours'].astype(int) - images['peer'].astype(int))

  def timed(one: Callable[[], Any]) -> Callable[[], float]:
    def turn() -> float:
      start = time.perf_counter()
      one()
      return time.perf_counter() - start

    return turn

  sides = {'ours': timed(ours), 'peer': timed(lambda: peer(classes, noise))}
  seconds = common.in_turns(sides, options.rounds)
  flops = {
    'ours': options.images * solver.flops(config),
    'peer': options.images * solver.evaluations * peer.flops(),
  }

  def side(name: str) -> dict[str, Any]:
    batch = common.spread(seconds[name])
    return {
      'images_per_second': common.rounded(options.images / batch['median']),
      'batch_seconds': batch,
      'flops_per_batch': flops[name],
      'gflops_per_second': common.rounded(flops[name] / batch['median'] / 1e9),
    }

  compared = None if options.cross else {'largest': int(apart.max()), 'mean': float(apart.mean())}
  return {
    'benchmark': 'flow_sampler',
    **common.machine(),
    'diffusers': common.version('diffusers'),
    'threads': common.cores(),
    'keeps_freed_memory': keeps,
    'model': f'DiT-{options.model}/{options.patch}, {options.size}x{options.size}x3',
    'width': config.width,
    'depth': config.depth,
    'heads': config.heads,
    'patches': config.patches,
    'cross_attention': config.cross_attention,
    'parameters': count(skeleton.shapes),
    'peer_parameters': peer.parameters,
    'images': options.images,
    'steps': options.steps,
    'guidance': options.guidance,
    'dtype': options.dtype,
    'peer_compiled': peer.compiled,
    'flops_formula': FORMULA,
    'flops_ratio': common.rounded(flops['ours'] / flops['peer']),
    'difference_of_images': compared,
    'ours': side('ours'),
    'peer': side('peer'),
    'ratio': common.ratios(seconds, target=1.0),
  }


if __name__ == '__main__':
  common.command(Options, run, __doc__.splitlines()[0])
