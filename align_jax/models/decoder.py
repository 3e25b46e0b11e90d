"""A causal language model of the Llama and Qwen2 kind."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from align_jax.errors import require
from align_jax.models.adapter import Gate, LoraConfig
from align_jax.models.attention import Backend, attend
from align_jax.models.layers import Dtype, Linear
from align_jax.models.param import param
from align_jax.models.residual import fork
from align_jax.models.stack import Stack


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """Llama 3's stretch of rotary positions to longer texts than it was first trained on.

  Attributes:
    factor: by which slow rotations are slowed down further.
    low, high: rotations with fewer than `low` turns over `length` tokens are slowed down by the
      whole factor, those with more than `high` not at all, those between by a part.
    length: of the texts of the first training.

  Source: Llama 3, arXiv 2407.21783, section 3.4; `transformers`, rope type `llama3`.
  """

  factor: float
  low: float
  high: float
  length: int


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """A decoder.

  Attributes:
    vocab_size: rows of the token table.
    width, depth, mlp_dim: of the transformer.
    heads, kv_heads: of queries, and of keys and values; the latter divide the former.
    head_dim: of each head.
    tied: the head at the end is the token table.
    qkv_bias: query, key and value have biases (Qwen2 has, Llama has not).
    rope_base: of the rotary positions.
    rope_scaling: see `RopeScaling`; None: none.
    eps: of the norms.
    dtype: of the computation; parameters are float32.
    lora: adapters of every block; None: none.
  """

  vocab_size: int
  width: int
  depth: int
  heads: int
  kv_heads: int
  head_dim: int
  mlp_dim: int
  tied: bool = False
  qkv_bias: bool = False
  rope_base: float = 10_000.0
  rope_scaling: RopeScaling | None = None
  eps: float = 1e-6
  dtype: Dtype = 'float32'
  lora: LoraConfig | None = None

  def __post_init__(self) -> None:
    where = 'config.model.decoder'
    require(
      self.kv_heads > 0 and self.heads % self.kv_heads == 0,
      f'{where}.kv_heads',
      f'{self.kv_heads} does not divide the {self.heads} heads',
    )
    require(
      self.head_dim % 2 == 0, f'{where}.head_dim', f'{self.head_dim} is odd; they turn in pairs'
    )

  def flops(self, length: int) -> int:
    """Operations of a sequence forward, matrix products alone, without the head at the end."""
    projections = 2 * self.width * self.head_dim * 2 * (self.heads + self.kv_heads)
    mlp = 6 * self.width * self.mlp_dim
    attention = 4 * length * self.heads * self.head_dim
    return self.depth * length * (projections + mlp + attention)


SHARED = -1  # the segment of what all texts that come after it in a row begin with


class Cache(NamedTuple):
  """Keys and values of tokens that were read before, of all blocks.

  Attributes:
    key, value: rotated keys, and values.
    segment: of each place, see `attention_mask`; 0 where nothing has been written.
    used: how many places are written.
  """

  key: Float[Array, 'depth batch places kv_heads head_dim']
  value: Float[Array, 'depth batch places kv_heads head_dim']
  segment: Int[Array, 'batch places']
  used: Int[Array, '']


def empty_cache(config: DecoderConfig, batch: int, places: int) -> Cache:
  """Returns a cache with room for so many tokens of each sequence."""
  shape = (config.depth, batch, places, config.kv_heads, config.head_dim)
  zeros = jnp.zeros(shape, config.dtype)
  return Cache(zeros, zeros, jnp.zeros((batch, places), jnp.int32), jnp.int32(0))


def attention_mask(
  segment: Int[Array, 'batch length'],
  keys: Int[Array, 'batch places'] | None = None,
  first: Int[Array, ''] | int = 0,
  prefix: Bool[Array, 'batch length'] | None = None,
) -> Bool[Array, 'batch 1 length places']:
  """Says where each token may look: back, within its own segment and what is `SHARED`.

  Args:
    segment: which of the packed texts a token is of; 0 for padding; `SHARED` of what all
      texts that come after it in the row begin with, so that it is computed once.
    keys: the same of the places looked at; None: those of the tokens themselves.
    first: the place of the first token.
    prefix: tokens that all others of their segment's prefix may look at, whatever their order
      (arXiv 1910.10683, section 3.1.1); None: none.
  """
  keys = segment if keys is None else keys
  places, length = keys.shape[1], segment.shape[1]
  mask = (first + jnp.arange(length))[:, None] >= jnp.arange(places)
  mask = jnp.broadcast_to(mask, (len(segment), length, places))
  if prefix is not None:
    mask |= prefix[:, :, None] & prefix[:, None, :]
  own = segment[:, :, None] == keys[:, None, :]
  shared = (keys == SHARED)[:, None, :] & (segment > 0)[:, :, None]
  return (mask & (own | shared))[:, None]


def positions_of(segment: Int[Array, 'batch length']) -> Int[Array, 'batch length']:
  """Counts the tokens of each text from 0; segments stand together, padding at either end."""
  place = jnp.arange(segment.shape[1])
  starts = jnp.diff(segment, axis=1, prepend=-1) != 0
  own = place - jax.lax.cummax(jnp.where(starts, place, 0), axis=1)
  before = jnp.cumsum(segment == SHARED, axis=1)
  return own + jnp.where(segment > 0, before, 0)


class RmsNorm(nnx.Module):
  """`x / √(mean x² + eps) · scale` over the last axis, in float32.

  Source: Zhang and Sennrich 2019, arXiv 1910.07467, equation 4.
  """

  def __init__(self, width: int, eps: float, rngs: nnx.Rngs):
    self.scale = param(rngs, nnx.initializers.ones, (width,), ('embed',))
    self.eps = eps

  def __call__(self, x: Float[Array, '*batch width']) -> Float[Array, '*batch width']:
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
    # rounded before it is scaled, as published models are
    return y.astype(x.dtype) * self.scale[...].astype(x.dtype)


class SwiGlu(nnx.Module):
  """`(silu(x G) · x U) D`. Source: Shazeer 2020, arXiv 2002.05202, equation 6."""

  def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
    lora = config.lora if config.lora is not None and 'mlp' in config.lora.layers else None
    size, axes = (config.width, config.mlp_dim), ('embed', 'mlp')
    self.gate = Linear(size, axes, rngs, bias=False, lora=lora)
    self.up = Linear(size, axes, rngs, bias=False, lora=lora)
    self.down = Linear(size[::-1], axes[::-1], rngs, bias=False, lora=lora)

  def __call__(
    self, x: Float[Array, 'batch length width'], gate: Gate = None
  ) -> Float[Array, 'batch length width']:
    return self.down(jax.nn.silu(self.gate(x, gate)) * self.up(x, gate), gate)


class GroupedAttention(nnx.Module):
  """Self-attention with rotary positions, several query heads to each head of keys and values.

  Sources: Ainslie et al. 2023, arXiv 2305.13245; Su et al. 2021, arXiv 2104.09864.

  Attributes:
    backend: see `attend`; set when a model is bound to parameters.
  """

  def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
    lora = config.lora if config.lora is not None and 'attention' in config.lora.layers else None
    width, own = config.width, config.heads * config.head_dim
    shared = config.kv_heads * config.head_dim
    bias = config.qkv_bias
    self.query = Linear((width, own), ('embed', 'heads'), rngs, bias=bias, lora=lora)
    self.key = Linear((width, shared), ('embed', 'heads'), rngs, bias=bias, lora=lora)
    self.value = Linear((width, shared), ('embed', 'heads'), rngs, bias=bias, lora=lora)
    self.out = Linear((own, width), ('heads', 'embed'), rngs, bias=False, lora=lora)
    self.config = config
    self.backend: Backend = 'plain'

  def __call__(
    self,
    x: Float[Array, 'batch length width'],
    rotation: tuple[Float[Array, 'batch length half'], Float[Array, 'batch length half']],
    mask: Bool[Array, 'batch 1 length places'],
    gate: Gate = None,
    kept: tuple[Array, Array] | None = None,
    first: Int[Array, ''] | None = None,
    asking: int = 0,
  ) -> tuple[Float[Array, 'batch asking width'], tuple[Array, Array] | None]:
    """Looks at all that a token may look at.

    Args:
      kept: keys and values of this block that were read before, written from `first` on.
      asking: so many of the last tokens alone look; 0: all do.
    """
    batch, length, _ = x.shape
    size = self.config.head_dim
    asked, turns, mask = x[:, -asking:], [r[:, -asking:] for r in rotation], mask[:, :, -asking:]
    query = rotate(self.query(asked, gate).reshape(batch, asked.shape[1], -1, size), *turns)
    key = rotate(self.key(x, gate).reshape(batch, length, -1, size), *rotation)
    value = self.value(x, gate).reshape(batch, length, -1, size)
    if kept is not None:
      start = (0, 0 if first is None else first, 0, 0)
      key = jax.lax.dynamic_update_slice(kept[0], key.astype(kept[0].dtype), start)
      value = jax.lax.dynamic_update_slice(kept[1], value.astype(kept[1].dtype), start)
      kept = key, value
    # the logits of few tokens are small, and the other backends are made for many
    y = attend(query, key, value, mask, 'plain' if asking else self.backend)
    return self.out(y.reshape(*asked.shape[:2], -1), gate), kept


class DecoderBlock(nnx.Module):
  """`x + attention(norm(x))`, then `x + mlp(norm(x))`."""

  def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
    self.norm1 = RmsNorm(config.width, config.eps, rngs)
    self.attention = GroupedAttention(config, rngs)
    self.norm2 = RmsNorm(config.width, config.eps, rngs)
    self.mlp = SwiGlu(config, rngs)

  def __call__(
    self,
    x: Float[Array, 'batch length width'],
    rotation: tuple[Float[Array, 'batch length half'], Float[Array, 'batch length half']],
    mask: Bool[Array, 'batch 1 length places'],
    gate: Gate = None,
  ) -> Float[Array, 'batch length width']:
    return self.step(x, None, rotation, mask, gate)[0]

  def last(
    self,
    x: Float[Array, 'batch length width'],
    rotation: tuple[Float[Array, 'batch length half'], Float[Array, 'batch length half']],
    mask: Bool[Array, 'batch 1 length places'],
    gate: Gate = None,
  ) -> Float[Array, 'batch 1 width']:
    """The same of the last token alone; of the others no more than it looks at is computed."""
    x, y = fork(x)
    y, _ = self.attention(self.norm1(y), rotation, mask, gate, asking=1)
    x, y = fork(x[:, -1:] + y)
    return x + self.mlp(self.norm2(y), gate)

  def step(
    self,
    x: Float[Array, 'batch length width'],
    kept: tuple[Array, Array] | None,
    rotation: tuple[Float[Array, 'batch length half'], Float[Array, 'batch length half']],
    mask: Bool[Array, 'batch 1 length places'],
    gate: Gate = None,
    first: Int[Array, ''] | None = None,
  ) -> tuple[Float[Array, 'batch length width'], tuple[Array, Array] | None]:
    """The same with keys and values of earlier tokens; returns them with those of `x`."""
    x, y = fork(x)
    y, kept = self.attention(self.norm1(y), rotation, mask, gate, kept, first)
    x, y = fork(x + y)
    return x + self.mlp(self.norm2(y), gate), kept


class Decoder(nnx.Module):
  """Embedded tokens in, hidden states out, and from those the next token's logits."""

  def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
    self.config = config
    normal = nnx.initializers.normal(0.02)
    shape = (config.vocab_size, config.width)
    self.token = param(rngs, normal, shape, ('vocab', 'embed'))
    self.blocks = Stack(lambda r: DecoderBlock(config, r), config.depth, rngs)
    self.norm = RmsNorm(config.width, config.eps, rngs)
    axes = ('embed', 'vocab')
    self.head = None if config.tied else Linear(shape[::-1], axes, rngs, bias=False, init=normal)

  def embed(self, tokens: Int[Array, 'batch length']) -> Float[Array, 'batch length width']:
    return self.token[...][tokens].astype(self.config.dtype)

  def __call__(
    self,
    x: Float[Array, 'batch length width'],
    segment: Int[Array, 'batch length'],
    gate: Gate = None,
    prefix: Bool[Array, 'batch length'] | None = None,
    *,
    last: bool = False,
  ) -> Float[Array, 'batch states width']:
    """Hidden states after the last norm.

    Args:
      x: from `embed`, or images' features.
      segment, prefix: see `attention_mask`.
      gate: of the adapters, per example; None: without them.
      last: return the last token's alone, `[batch, 1, width]`: the last block does no more.
    """
    rotation = rotations(self.config, positions_of(segment))
    mask = attention_mask(segment, prefix=prefix)
    x = (self.blocks.last if last else self.blocks)(x, rotation, mask, gate)
    return self.norm(x[:, -1:] if last else x)

  def read(
    self,
    x: Float[Array, 'batch length width'],
    segment: Int[Array, 'batch length'],
    position: Int[Array, 'batch length'],
    cache: Cache,
    gate: Gate = None,
  ) -> tuple[Float[Array, 'batch length width'], Cache]:
    """Reads tokens after those of a cache; returns their hidden states and the cache with them.

    Args:
      x: of the new tokens.
      segment: 1 of a token, 0 of padding.
      position: of each in its text.
      cache: of the tokens before; it must have room.
    """
    keys = jax.lax.dynamic_update_slice(cache.segment, segment, (0, cache.used))
    mask = attention_mask(segment, keys, cache.used)
    rotation = rotations(self.config, position)
    x, (key, value) = self.blocks.step(
      x, (cache.key, cache.value), rotation, mask, gate, cache.used
    )
    return self.norm(x), Cache(key, value, keys, cache.used + segment.shape[1])

  def logits(self, hidden: Float[Array, '*batch width']) -> Float[Array, '*batch vocab']:
    """Of the next token, float32."""
    kernel = self.token[...].T if self.head is None else self.head.kernel[...]
    return jnp.matmul(hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)


def rotations(
  config: DecoderConfig, position: Int[Array, 'batch length']
) -> tuple[Float[Array, 'batch length half'], Float[Array, 'batch length half']]:
  """Cosine and sine of every position's angles, float32."""
  angle = position[..., None] * jnp.asarray(frequencies(config), jnp.float32)
  return jnp.cos(angle), jnp.sin(angle)


def frequencies(config: DecoderConfig) -> np.ndarray:
  """Angle of each pair of numbers for one position, radians, `[head_dim / 2]`."""
  turn = config.rope_base ** -(np.arange(0, config.head_dim, 2) / config.head_dim)
  scaling = config.rope_scaling
  if scaling is None:
    return turn
  turns = scaling.length * turn / (2 * math.pi)
  share = np.clip((turns - scaling.low) / (scaling.high - scaling.low), 0, 1)
  return turn * (share + (1 - share) / scaling.factor)


def rotate(
  x: Float[Array, 'batch length heads size'],
  cos: Float[Array, 'batch length half'],
  sin: Float[Array, 'batch length half'],
) -> Float[Array, 'batch length heads size']:
  """Turns the pairs (first half, second half) of each head by their angles, in float32.

  Source: Su et al. 2021, arXiv 2104.09864, equation 34, in the order of `transformers`.
  """
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  cos, sin = cos[:, :, None], sin[:, :, None]
  turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return turned.astype(x.dtype)
