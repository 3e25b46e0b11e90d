"""From noise to images: solves the generator's flow, guided by captions.

Times as in `losses.flow`: noise is at 1, images at 0.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Bool, Float, Int, UInt8, UInt32

from align_jax.data.tokenizer import Tokenizer
from align_jax.errors import UserError
from align_jax.models.attention import backend_of
from align_jax.models.dit import Context, Dit, DitConfig
from align_jax.models.flat import Params, Skeleton
from align_jax.models.stack import Execution
from align_jax.parallel.fsdp import make_fetch, manual_spec
from align_jax.parallel.mesh import BATCH_AXES, RULES
from align_jax.train.state import param_shardings

Method = Literal['euler', 'heun']
Velocity = Callable[[Array, Array], Array]  # (x [batch, ...], time []) -> [batch, ...]
# (parameters, text [batch, length], seeds [batch, 2]) -> images, and which are finite
Draw = Callable[[Params, Array, Array], tuple[Array, Array]]


@dataclasses.dataclass(frozen=True)
class Solver:
  """How the flow is solved.

  Attributes:
    steps: of equal length.
    guidance: 1 follows the caption as trained; larger follows it more, at the cost of variety.
    method: see `integrate`.
  """

  steps: int = 50
  guidance: float = 3.0
  method: Method = 'euler'

  def check(self, where: str) -> None:
    """Raises a UserError, `where.field: …`, for a value out of range."""
    if self.steps < 1:
      raise UserError(f'{where}.steps: {self.steps} must be at least 1')
    if not 0 <= self.guidance < float('inf'):
      raise UserError(f'{where}.guidance: {self.guidance} must be 0 or more; 1 is none')
    if self.method not in ('euler', 'heun'):
      raise UserError(f"{where}.method: {self.method!r} is neither 'euler' nor 'heun'")

  @property
  def evaluations(self) -> int:
    """Forwards of the model for one image."""
    each = self.steps if self.method == 'euler' else 2 * self.steps - 1
    return each * (1 if self.guidance == 1 else 2)

  def flops(self, config: DitConfig) -> int:
    """Floating-point operations of one image, matrix products and convolutions alone."""
    texts = 1 if self.guidance == 1 else 2
    decoder = config.autoencoder
    decoded = 0 if decoder is None else decoder.decode_flops(config.image_size)
    return self.evaluations * config.velocity_flops + texts * config.text_flops + decoded


def integrate(
  velocity: Velocity, noise: Float[Array, 'batch *shape'], steps: int, method: Method
) -> Float[Array, 'batch *shape']:
  """Solves dx/dt = velocity(x, t) from `noise` at t = 1 to t = 0, in equal steps.

  Args:
    velocity: takes the batch and one time for all of it.
    noise: where to start.
    steps: number of steps, one evaluation each with `euler`, two (but the last) with `heun`.
    method: `heun` corrects each Euler step by the velocity at its end (Karras et al. 2022,
      arXiv 2206.00364, algorithm 1); the last is a plain Euler step, for at t = 0 a velocity that
      is told by way of the image has no meaning.
  """

  def euler(index: Array, x: Array) -> Array:
    return x - velocity(x, 1 - index / steps) / steps

  def heun(index: Array, x: Array) -> Array:
    here = velocity(x, 1 - index / steps)
    there = velocity(x - here / steps, 1 - (index + 1) / steps)
    return x - (here + there) / (2 * steps)

  if method == 'euler':
    return jax.lax.fori_loop(0, steps, euler, noise)
  return euler(jnp.asarray(steps - 1), jax.lax.fori_loop(0, steps - 1, heun, noise))


def guided_velocity(model: Dit, text: Int[Array, 'batch length'], guidance: float) -> Velocity:
  """Returns the classifier-free guided velocity, u + guidance · (c - u).

  c is the velocity with the text, u without; both come from one forward of twice the batch.
  `guidance` 1 is the text alone and costs one forward.

  Source: Ho & Salimans 2022, arXiv 2207.12598, equation 6 (there with guidance = 1 + w).
  """
  if guidance == 1:
    context = model.encode_text(text)
    return lambda x, time: model.velocity(x, jnp.full(len(x), time, jnp.float32), context)
  null = jnp.full_like(text, model.config.pad_id)
  both = model.encode_text(jnp.concatenate([text, null]))

  def velocity(x: Array, time: Array) -> Array:
    twice = jnp.concatenate([x, x])
    out = model.velocity(twice, jnp.full(len(twice), time, jnp.float32), Context(*both))
    with_text, without = jnp.split(out, 2)
    return without + guidance * (with_text - without)

  return velocity


def image_noise(
  seed: int | Array, indices: UInt32[Array, 'batch'], shape: tuple[int, ...]
) -> Float[Array, 'batch *shape']:
  """Returns the noise each image starts from; it depends on the seed and its own index alone."""
  key = jax.random.key(seed)

  def one(index: Array) -> Array:
    return jax.random.normal(jax.random.fold_in(key, index), shape)

  return jax.vmap(one)(indices)


def seed_words(seeds: Sequence[int]) -> UInt32[np.ndarray, 'batch 2']:
  """Returns the high and the low half of seeds of 64 bits, which JAX has no integers for.

  Raises:
    UserError: a seed outside 0 to 2**63 - 1.
  """
  for seed in seeds:
    if not 0 <= seed < 2**63:
      raise UserError(f'generator: seed {seed} is outside 0 to 2**63 - 1')
  words = [(seed >> 32, seed & 0xFFFFFFFF) for seed in map(int, seeds)]
  return np.asarray(words, np.uint32).reshape(-1, 2)


def seeded_noise(
  seeds: UInt32[Array, 'batch 2'], shape: tuple[int, ...]
) -> Float[Array, 'batch *shape']:
  """Returns the noise each image starts from; it depends on its own seed alone.

  Args:
    seeds: of `seed_words`: the key that `jax.random.key` makes of such a seed where integers have
      64 bits, by name, for another default generator must not change the images.
    shape: of one image's noise.
  """

  def one(words: Array) -> Array:
    return jax.random.normal(jax.random.wrap_key_data(words, impl='threefry2x32'), shape)

  return jax.vmap(one)(seeds)


def sample(
  model: Dit,
  text: Int[Array, 'batch length'],
  noise: Float[Array, 'batch side side channels'],
  *,
  steps: int,
  guidance: float,
  method: Method,
) -> tuple[UInt8[Array, 'batch size size 3'], Bool[Array, 'batch']]:
  """Draws images of captions; to be called under `jit`.

  Returns: the images, and for each whether all its numbers were finite.
  """
  x = model.to_images(integrate(guided_velocity(model, text, guidance), noise, steps, method))
  finite = jnp.all(jnp.isfinite(x), axis=(1, 2, 3))
  pixels = jnp.round(127.5 * (jnp.clip(x, -1, 1) + 1))
  return jnp.where(jnp.isfinite(x), pixels, 0).astype(jnp.uint8), finite


def make_draw(
  config: DitConfig,
  solver: Solver,
  mesh: Mesh,
  rules: Mapping[str, str] = RULES,
  *,
  scan: bool = False,
) -> Draw:
  """Returns the jitted function that draws images on all devices of a mesh.

  Each device draws its own rows of the batch, by the program that one device alone would run: with
  as many rows on each, an image is the same to the last bit on any number of devices.

  Args:
    config: of the model; its dtype is that of the computation, whatever it was trained in.
    solver: of the flow.
    mesh: its axes `data` and `fsdp` split the batch. Parameters are split as in training, and those
      split over `fsdp` are gathered block by block, at every step of the solver.
    rules: logical axis -> mesh axis.
    scan: the blocks as one loop, whose program does not grow with depth.
  """
  skeleton = Skeleton(lambda rngs: Dit(config, rngs))
  shardings = param_shardings(skeleton, mesh, rules)
  specs = {name: manual_spec(sharding.spec) for name, sharding in shardings.items()}
  # a Pallas kernel cannot be split by the compiler, as heads over `tensor` would be
  platform = mesh.devices.flat[0].platform if mesh.shape['tensor'] == 1 else 'cpu'
  fetch = make_fetch(specs, mesh, config.dtype)
  execution = Execution(scan=scan, fetch=fetch, attention=backend_of(platform))

  def draw(params: Params, text: Array, seeds: Array) -> tuple[Array, Array]:
    model = skeleton.bind(params, execution)
    noise = seeded_noise(seeds, config.shape)
    return sample(model, text, noise, **dataclasses.asdict(solver))

  rows = PartitionSpec(BATCH_AXES)
  return jax.jit(
    jax.shard_map(
      draw,
      mesh=mesh,
      in_specs=(specs, rows, rows),
      out_specs=(rows, rows),
      axis_names=set(BATCH_AXES),
    )
  )


def weights_digest(params: Params) -> str:
  """Returns a short checksum that tells one set of weights from another."""
  digest = hashlib.blake2b(digest_size=6)
  for name in sorted(params):
    digest.update(name.encode())
    digest.update(np.ascontiguousarray(params[name]).tobytes())
  return digest.hexdigest()


class Sampler:
  """A trained generator for use: captions in, images out.

  Attributes:
    settings: all that the images depend on, besides caption, seed and index.
    image_size: pixels.
  """

  def __init__(
    self,
    skeleton: Skeleton,
    params: Params,
    tokenizer: Tokenizer,
    length: int,
    *,
    steps: int,
    guidance: float,
    method: Method,
  ):
    config = skeleton.bind(params).config
    self.image_size: int = config.image_size
    self.settings: Mapping[str, str | int | float] = {
      'weights': weights_digest(params),
      'steps': steps,
      'guidance': guidance,
      'method': method,
    }
    self._tokenizer, self._length = tokenizer, length
    self._params = {name: jnp.asarray(p) for name, p in params.items()}

    @jax.jit
    def draw(
      params: Params, text: Array, seed: Array, indices: Array
    ) -> tuple[UInt8[Array, 'batch size size 3'], Bool[Array, 'batch']]:
      noise = image_noise(seed, indices, config.shape)
      model = skeleton.bind(params)
      return sample(model, text, noise, steps=steps, guidance=guidance, method=method)

    self._draw = draw

  def __call__(
    self, captions: Sequence[str], indices: Sequence[int], seed: int
  ) -> UInt8[np.ndarray, 'batch size size 3']:
    """Draws one image for each caption; every new batch size compiles once more.

    Args:
      captions: longer ones are cut to the model's text length.
      indices: of the images; seed, index and caption decide an image, not its batch.
      seed: of the noise.

    Raises:
      UserError: numbers that are not finite came out for a caption.
    """
    text = self._tokenizer.encode(captions, self._length)
    images, finite = self._draw(self._params, text, np.uint32(seed), np.asarray(indices, np.uint32))
    bad = np.flatnonzero(~np.asarray(finite))
    if bad.size:
      raise UserError(
        f'generator: image {indices[bad[0]]}, prompt {captions[bad[0]]!r}, is not finite '
        f'({bad.size} of {len(captions)} in this batch); lower the guidance or use an earlier '
        'checkpoint'
      )
    return np.asarray(images)


def make_sampler(
  skeleton: Skeleton,
  params: Params,
  tokenizer: Tokenizer,
  *,
  length: int,
  image_size: int,
  steps: int,
  guidance: float,
  method: Method = 'euler',
) -> Sampler:
  """Builds a sampler, after checking that everything fits the model.

  Args:
    skeleton: of a `Dit`.
    params: its weights, best their moving average.
    tokenizer: the one of its training.
    length: text tokens per caption, as in training.
    image_size: pixels, as in training.
    steps: of the solver.
    guidance: 1 follows the caption as trained; larger follows it more, at the cost of variety.
    method: `euler` or `heun`, see `integrate`.

  Raises:
    UserError: a setting out of range, or a tokenizer or size that is not the model's.
  """
  config = skeleton.bind(params).config
  Solver(steps, guidance, method).check('sampling')
  if image_size != config.image_size:
    raise UserError(f'sampling: image size {image_size}, but the model draws {config.image_size}')
  check_tokenizer(config, tokenizer, length, 'sampling')
  return Sampler(skeleton, params, tokenizer, length, steps=steps, guidance=guidance, method=method)


def check_tokenizer(config: DitConfig, tokenizer: Tokenizer, length: int, where: str) -> None:
  """Raises a UserError unless captions become what the model was trained on.

  Args:
    config: of the model.
    tokenizer, length: of its captions.
    where: for messages.
  """
  if length > config.length:
    raise UserError(f'{where}: {length} text tokens, but the model reads {config.length}')
  if tokenizer.pad_id != config.pad_id:
    raise UserError(
      f'{where}: the tokenizer pads with {tokenizer.pad_id}, the model was made for '
      f'{config.pad_id}; set pad_id of its model config and train again'
    )
  if tokenizer.vocab_size > config.vocab_size:
    raise UserError(
      f'{where}: the tokenizer has {tokenizer.vocab_size} tokens, the model '
      f'{config.vocab_size}; use the tokenizer of its training'
    )
