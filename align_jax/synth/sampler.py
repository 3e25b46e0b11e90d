"""From noise to images: solves the generator's flow, guided by captions.

Times as in `losses.flow`: noise is at 1, images at 0.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, UInt8, UInt32

from align_jax.data.tokenizer import Tokenizer
from align_jax.errors import UserError
from align_jax.models.dit import Context, Dit
from align_jax.models.flat import Params, Skeleton

Method = Literal['euler', 'heun']
Velocity = Callable[[Array, Array], Array]  # (x [batch, ...], time []) -> [batch, ...]


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
  seed: int | Array, indices: UInt32[Array, 'batch'], image_size: int
) -> Float[Array, 'batch size size 3']:
  """Returns the noise each image starts from; it depends on the seed and its own index alone."""
  key = jax.random.key(seed)

  def one(index: Array) -> Array:
    return jax.random.normal(jax.random.fold_in(key, index), (image_size, image_size, 3))

  return jax.vmap(one)(indices)


def sample(
  model: Dit,
  text: Int[Array, 'batch length'],
  noise: Float[Array, 'batch size size 3'],
  *,
  steps: int,
  guidance: float,
  method: Method,
) -> tuple[UInt8[Array, 'batch size size 3'], Bool[Array, 'batch']]:
  """Draws images of captions; to be called under `jit`.

  Returns: the images, and for each whether all its numbers were finite.
  """
  x = integrate(guided_velocity(model, text, guidance), noise, steps, method)
  finite = jnp.all(jnp.isfinite(x), axis=(1, 2, 3))
  pixels = jnp.round(127.5 * (jnp.clip(x, -1, 1) + 1))
  return jnp.where(jnp.isfinite(x), pixels, 0).astype(jnp.uint8), finite


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
      noise = image_noise(seed, indices, config.image_size)
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
  if steps < 1:
    raise UserError(f'sampling.steps: {steps} must be at least 1')
  if not 0 <= guidance < float('inf'):
    raise UserError(f'sampling.guidance: {guidance} must be 0 or more; 1 is none')
  if method not in ('euler', 'heun'):
    raise UserError(f"sampling.method: {method!r} is neither 'euler' nor 'heun'")
  if image_size != config.image_size:
    raise UserError(f'sampling: image size {image_size}, but the model draws {config.image_size}')
  if length > config.length:
    raise UserError(f'sampling: {length} text tokens, but the model reads {config.length}')
  if tokenizer.pad_id != config.pad_id:
    raise UserError(
      f'generator: the tokenizer pads with {tokenizer.pad_id}, the model was made for '
      f'{config.pad_id}; set pad_id of its model config and train again'
    )
  if tokenizer.vocab_size > config.vocab_size:
    raise UserError(
      f'generator: the tokenizer has {tokenizer.vocab_size} tokens, the model '
      f'{config.vocab_size}; use the tokenizer of its training'
    )
  return Sampler(skeleton, params, tokenizer, length, steps=steps, guidance=guidance, method=method)
