"""The generator: a diffusion transformer that says the velocity of noisy images, given captions."""

import dataclasses
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from align_jax.errors import UserError
from align_jax.models.attention import attend
from align_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from align_jax.models.layers import (
  Activation,
  Attention,
  Block,
  BlockConfig,
  Dtype,
  LayerNorm,
  Linear,
  Mlp,
)
from align_jax.models.param import param
from align_jax.models.stack import Stack
from align_jax.models.vit import block_flops, check_heads, sincos2d

_FREQUENCIES = 128  # sines and as many cosines that a time is told in
_LEAST_TIME = 0.02  # nearer to the image, an error in it would become a huge velocity


class Context(NamedTuple):
  """What the blocks are told about the captions; computed once for a whole sampling run.

  Attributes:
    tokens: one vector for "there may be a text" first, then one for each text token.
    mask: True where there is a token; the first always is, so that no text is a text as well.
    pooled: the mean of the tokens that are there.
  """

  tokens: Float[Array, 'batch tokens width']
  mask: Bool[Array, 'batch tokens']
  pooled: Float[Array, 'batch width']


@dataclasses.dataclass(frozen=True)
class DitConfig:
  """A generator.

  Attributes:
    image_size: in pixels; images are square.
    patch: side of a patch, in pixels, or in latents where there is an autoencoder.
    width, depth, heads, mlp_dim: of the transformer over patches.
    text_depth: blocks over the text alone, before the patches look at it: words must find the
      nouns they belong to, and a text is much shorter than an image.
    vocab_size, length: of the token table and of the longest text.
    pad_id: of the tokenizer; a text of nothing else is no text, for classifier-free guidance.
    predict: what the last layer says: `image`, from which the velocity follows (Li & He 2025,
      arXiv 2511.13720), or the `velocity` itself.
    cross_attention: patches look at every word. Without it a caption is told by its pooled vector
      alone, as the class is in DiT: enough for names, too little for sentences.
    autoencoder: the flow is over its latents; its weights are given and never learn. None: over
      pixels.
    activation, eps, dtype: see `BlockConfig`.
  """

  image_size: int = 32
  patch: int = 8
  width: int = 128
  depth: int = 4
  heads: int = 2
  mlp_dim: int = 512
  text_depth: int = 1
  vocab_size: int = 1024
  length: int = 32
  pad_id: int = 0
  predict: Literal['image', 'velocity'] = 'image'
  cross_attention: bool = True
  autoencoder: AutoencoderConfig | None = None
  activation: Activation = 'gelu_tanh'
  eps: float = 1e-6
  dtype: Dtype = 'float32'

  def __post_init__(self) -> None:
    pixels = self.patch * (1 if self.autoencoder is None else self.autoencoder.factor)
    if self.image_size % pixels:
      near = max(1, round(self.image_size / pixels)) * pixels
      what = f'patch {self.patch}' if self.autoencoder is None else f'the {pixels} px of a patch'
      raise UserError(f'model: image_size {self.image_size} is not divisible by {what}; use {near}')
    if self.width % 4:
      raise UserError(f'model: width {self.width} is not divisible by 4, as the positions need')
    if not 0 <= self.pad_id < self.vocab_size:
      raise UserError(f'model: pad_id {self.pad_id} is outside the {self.vocab_size} tokens')
    check_heads(self.width, self.heads, 'model')

  @property
  def block(self) -> BlockConfig:
    return BlockConfig(self.width, self.heads, self.mlp_dim, self.activation, self.eps, self.dtype)

  @property
  def eot_id(self) -> None:
    """The generator looks for no end token."""
    return None

  @property
  def side(self) -> int:
    """Rows, and columns, of what the flow is over: pixels or latents."""
    return self.image_size // (1 if self.autoencoder is None else self.autoencoder.factor)

  @property
  def channels(self) -> int:
    """Numbers of each pixel or latent position."""
    return 3 if self.autoencoder is None else self.autoencoder.latent_channels

  @property
  def shape(self) -> tuple[int, int, int]:
    """Of what the flow is over: rows, columns, channels."""
    return self.side, self.side, self.channels

  @property
  def patches(self) -> int:
    """Patches of an image."""
    return (self.side // self.patch) ** 2

  @property
  def flops(self) -> int:
    """Floating-point operations of one forward of an image and its text, matrix products alone.

    The autoencoder's are not counted.
    """
    return self.text_flops + self.velocity_flops

  @property
  def text_flops(self) -> int:
    """Of `Dit.encode_text`, for one caption."""
    return self.text_depth * block_flops(self.block, self.length + 1)

  @property
  def velocity_flops(self) -> int:
    """Of `Dit.velocity`, for one image."""
    width, patches, tokens = self.width, self.patches, self.length + 1
    condition = 2 * width * (2 * _FREQUENCIES + 2 * width)
    cross = 2 * width * width * (2 * patches + 2 * tokens) + 4 * patches * tokens * width
    cross = cross if self.cross_attention else 0
    block = block_flops(self.block, patches) + cross + 2 * width * 6 * width
    ends = 2 * 2 * patches * self.channels * self.patch**2 * width + 2 * width * 2 * width
    return condition + self.depth * block + ends


def time_features(time: Float[Array, 'batch']) -> Float[Array, 'batch features']:
  """Cosines and sines of a time in [0, 1], as DiT has them for 1,000 steps."""
  frequency = jnp.exp(-math.log(10_000) * jnp.arange(_FREQUENCIES) / _FREQUENCIES)
  angle = 1000 * time.astype(jnp.float32)[:, None] * frequency
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def cut_patches(
  grid: Float[Array, 'batch size size channels'], patch: int
) -> Float[Array, 'batch length values']:
  """Cuts squares of any number of channels as `vit.patchify` cuts images."""
  batch, size, _, channels = grid.shape
  side = size // patch
  cut = grid.reshape(batch, side, patch, side, patch, channels)
  return cut.transpose(0, 1, 3, 2, 4, 5).reshape(batch, side * side, patch * patch * channels)


def unpatchify(
  patches: Float[Array, 'batch length values'], patch: int
) -> Float[Array, 'batch size size channels']:
  """Puts a square together again; the inverse of `cut_patches` and `vit.patchify`."""
  batch, length, values = patches.shape
  side, channels = math.isqrt(length), values // patch**2
  cut = patches.reshape(batch, side, side, patch, patch, channels)
  return cut.transpose(0, 1, 3, 2, 4, 5).reshape(batch, side * patch, side * patch, channels)


def modulated_norm(
  x: Float[Array, 'batch length width'],
  shift: Float[Array, 'batch width'],
  scale: Float[Array, 'batch width'],
  eps: float,
) -> Float[Array, 'batch length width']:
  """Layer norm in float32 whose shift and scale come from the condition, not from parameters."""
  y = x.astype(jnp.float32)
  y = y - jnp.mean(y, axis=-1, keepdims=True)
  y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
  return (y * (1 + scale[:, None]) + shift[:, None]).astype(x.dtype)


class Dit(nnx.Module):
  """Noisy images, times and captions in, velocities out.

  Patches attend to each other and, by cross-attention, to the text; time and pooled text scale,
  shift and gate every block. These gates and the last layer start at zero, the cross-attention does
  not: words matter from the first step, which a short training needs.

  Source: Peebles & Xie 2023 (DiT), arXiv 2212.09748, section 3.2 (adaLN-Zero); cross-attention as
  in Chen et al. 2023 (PixArt-α), arXiv 2310.00426, section 2.3.
  """

  def __init__(self, config: DitConfig, rngs: nnx.Rngs):
    self.config = config
    width = config.width
    values = config.channels * config.patch**2
    self.autoencoder = Autoencoder(config.autoencoder, rngs) if config.autoencoder else None
    self.text = TextEncoder(config, rngs)
    self.patch_embed = Linear((values, width), ('patch', 'embed'), rngs)
    self.time_in = Linear((2 * _FREQUENCIES, width), ('frequency', 'embed'), rngs)
    self.time_out = Linear((width, width), ('embed', 'condition'), rngs)
    self.pooled = Linear((width, width), ('embed', 'condition'), rngs)
    cross = config.cross_attention
    self.blocks = Stack(lambda r: DitBlock(config.block, r, cross=cross), config.depth, rngs)
    zeros = nnx.initializers.zeros
    self.modulation = Linear((width, 2 * width), ('embed', 'modulation'), rngs, init=zeros)
    self.out = Linear((width, values), ('embed', 'patch'), rngs, init=zeros)

  def __call__(
    self,
    images: Float[Array, 'batch size size channels'],
    time: Float[Array, 'batch'],
    text: Int[Array, 'batch length'],
  ) -> Float[Array, 'batch size size channels']:
    """Returns the velocity, float32.

    Args:
      images: x_t; the images that it is made of are within [-1, 1]. With an autoencoder: latents.
      time: within [0, 1]; 0 is the image, 1 is noise (see `losses.flow`).
      text: token ids; padding is not looked at.
    """
    return self.velocity(images, time, self.encode_text(text))

  def encode_text(self, text: Int[Array, 'batch length']) -> Context:
    """Returns what `velocity` needs of the captions, which no step of a solver changes."""
    return self.text(text)

  def velocity(
    self,
    images: Float[Array, 'batch size size channels'],
    time: Float[Array, 'batch'],
    context: Context,
  ) -> Float[Array, 'batch size size channels']:
    """As `__call__`, with the text encoded before."""
    config = self.config
    side = config.side // config.patch
    if images.shape[1:] != config.shape:
      made, given = (
        f'{rows} px of {channels}' for rows, _, channels in (config.shape, images.shape[1:])
      )
      raise UserError(f'model: made for images of {made} channels, not {given}')
    x = self.patch_embed(cut_patches(images.astype(config.dtype), config.patch))
    x = x + jnp.asarray(sincos2d((side, side), config.width), x.dtype)
    condition = self.time_out(jax.nn.silu(self.time_in(time_features(time).astype(x.dtype))))
    condition = jax.nn.silu(condition + self.pooled(context.pooled))
    x = self.blocks(x, condition, context)
    shift, scale = jnp.split(self.modulation(condition), 2, axis=-1)
    x = self.out(modulated_norm(x, shift, scale, config.eps))
    out = unpatchify(x.astype(jnp.float32), config.patch)
    if config.predict == 'velocity':
      return out
    # x_t = (1 - t) image + t noise, hence noise - image = (x_t - image) / t
    return (images - out) / jnp.maximum(time, _LEAST_TIME)[:, None, None, None]

  def to_latents(
    self,
    images: Float[Array, 'batch pixels pixels 3'],
    noise: Float[Array, 'batch size size channels'],
  ) -> Float[Array, 'batch size size channels']:
    """Returns what the flow is over of images within [-1, 1]: themselves, or latents of them.

    Args:
      images: of the data.
      noise: standard normal, for the draw of latents.
    """
    if self.autoencoder is None:
      return images
    # its weights are given; nothing that learns is behind them
    return jax.lax.stop_gradient(self.autoencoder.to_latents(images, noise))

  def to_images(
    self, x: Float[Array, 'batch size size channels']
  ) -> Float[Array, 'batch pixels pixels 3']:
    """Returns images, within [-1, 1] where all is well, of where the flow ends."""
    return x if self.autoencoder is None else self.autoencoder.to_images(x)


class TextEncoder(nnx.Module):
  """Token ids in, a `Context` out."""

  def __init__(self, config: DitConfig, rngs: nnx.Rngs):
    self.config = config
    # as large as the outputs of a layer norm: a rare word gets few updates to grow by
    normal = nnx.initializers.normal(0.1)
    self.token = param(rngs, normal, (config.vocab_size, config.width), ('vocab', 'embed'))
    self.position = param(rngs, normal, (config.length, config.width), ('position', 'embed'))
    self.start = param(rngs, normal, (config.width,), ('embed',))
    self.blocks = Stack(lambda r: Block(config.block, None, r), config.text_depth, rngs)
    self.norm = LayerNorm(config.width, config.eps, rngs)

  def __call__(self, text: Int[Array, 'batch length']) -> Context:
    batch, length = text.shape
    x = self.token[...][text] + self.position[...][:length]
    start = jnp.broadcast_to(self.start[...], (batch, 1, x.shape[-1]))
    x = jnp.concatenate([start, x], axis=1).astype(self.config.dtype)
    mask = jnp.pad(text != self.config.pad_id, ((0, 0), (1, 0)), constant_values=True)
    x = self.norm(self.blocks(x, mask[:, None, None, :]))
    total = jnp.sum(jnp.where(mask[..., None], x, 0), axis=1)
    return Context(x, mask, total / jnp.sum(mask, axis=1, keepdims=True).astype(x.dtype))


class DitBlock(nnx.Module):
  """Attention among patches, attention to the text, MLP; the first and last modulated."""

  def __init__(self, config: BlockConfig, rngs: nnx.Rngs, *, cross: bool = True):
    size = (config.width, 6 * config.width)
    zeros = nnx.initializers.zeros
    self.modulation = Linear(size, ('embed', 'modulation'), rngs, init=zeros)
    self.attention = Attention(config, None, rngs)
    self.norm = LayerNorm(config.width, config.eps, rngs) if cross else None
    self.cross = CrossAttention(config, rngs) if cross else None
    self.mlp = Mlp(config, None, rngs)
    self.eps = config.eps

  def __call__(
    self,
    x: Float[Array, 'batch length width'],
    condition: Float[Array, 'batch width'],
    context: Context,
  ) -> Float[Array, 'batch length width']:
    parts = jnp.split(self.modulation(condition), 6, axis=-1)
    shift1, scale1, gate1, shift2, scale2, gate2 = parts
    x = x + gate1[:, None] * self.attention(modulated_norm(x, shift1, scale1, self.eps))
    if self.cross is not None and self.norm is not None:
      x = x + self.cross(self.norm(x), context)
    return x + gate2[:, None] * self.mlp(modulated_norm(x, shift2, scale2, self.eps))


class CrossAttention(nnx.Module):
  """Patches look at the text."""

  def __init__(self, config: BlockConfig, rngs: nnx.Rngs):
    width = config.width
    self.query = Linear((width, width), ('embed', 'heads'), rngs)
    self.key_value = Linear((width, 2 * width), ('embed', 'qkv'), rngs)
    self.out = Linear((width, width), ('heads', 'embed'), rngs)
    self.heads = config.heads

  def __call__(
    self, x: Float[Array, 'batch length width'], context: Context
  ) -> Float[Array, 'batch length width']:
    batch, length, width = x.shape
    tokens = context.tokens.shape[1]
    size = width // self.heads
    query = self.query(x).reshape(batch, length, self.heads, size)
    key_value = self.key_value(context.tokens).reshape(batch, tokens, 2, self.heads, size)
    y = attend(query, key_value[:, :, 0], key_value[:, :, 1], context.mask[:, None, None, :])
    return self.out(y.reshape(batch, length, width))
