"""The autoencoder of latent generators: images to latents, an eighth of the side, and back.

The same computation as `diffusers.AutoencoderKL`, whose weights `interop.autoencoder` reads.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from align_jax.errors import UserError, require
from align_jax.models.attention import attend
from align_jax.models.layers import Dtype, Linear
from align_jax.models.param import param

_EPS = 1e-6
_LOG_VAR = (-30.0, 20.0)  # clipped to, as published: a variance beyond says nothing


class Posterior(NamedTuple):
  """The distribution of an image's latents, independent in every number.

  Attributes:
    mean, log_var: float32.
  """

  mean: Float[Array, 'batch rows columns channels']
  log_var: Float[Array, 'batch rows columns channels']


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
  """An autoencoder with a Gaussian latent; the defaults are Stable Diffusion's.

  Attributes:
    widths: channels of each level; between two levels the side is halved.
    blocks: residual blocks of a level of the encoder; the decoder has one more.
    groups: of the group norms; every width must divide by it.
    latent_channels: numbers that a latent position is told in.
    attention: one layer of self-attention in the middle of encoder and decoder.
    quant, post_quant: a 1x1 convolution after the encoder, before the decoder.
    scale, shift: a generator works on (latent - shift) · scale, which is near unit variance.
    dtype: of the computation; parameters are float32.
  """

  widths: tuple[int, ...] = (128, 256, 512, 512)
  blocks: int = 2
  groups: int = 32
  latent_channels: int = 4
  attention: bool = True
  quant: bool = True
  post_quant: bool = True
  scale: float = 0.18215
  shift: float = 0.0
  dtype: Dtype = 'float32'

  def __post_init__(self) -> None:
    where = 'model.autoencoder'
    require(bool(self.widths), f'{where}.widths', 'empty; name the channels of each level')
    for width in self.widths:
      good = self.groups >= 1 and width >= 1 and width % self.groups == 0
      require(good, f'{where}.widths', f'{width} is not divisible by {self.groups} groups')
    require(self.blocks >= 1, f'{where}.blocks', f'{self.blocks} must be 1 or more')
    require(self.latent_channels >= 1, f'{where}.latent_channels', 'must be 1 or more')
    require(self.scale > 0, f'{where}.scale', f'{self.scale} must be positive')

  @property
  def factor(self) -> int:
    """Pixels along the side of a latent position."""
    return 2 ** (len(self.widths) - 1)

  def encode_flops(self, image_size: int) -> int:
    """Floating-point operations of encoding an image, convolutions and matrix products alone."""
    side, total = image_size, _conv_flops(image_size, 3, self.widths[0])
    width = self.widths[0]
    for level, out in enumerate(self.widths):
      total += _level_flops(side, width, out, self.blocks)
      width = out
      if level < len(self.widths) - 1:
        side //= 2
        total += _conv_flops(side, out, out)
    out = 2 * self.latent_channels
    total += self._middle_flops(side) + _conv_flops(side, width, out)
    return total + (_conv_flops(side, out, out, kernel=1) if self.quant else 0)

  def decode_flops(self, image_size: int) -> int:
    """Floating-point operations of decoding an image, convolutions and matrix products alone."""
    side, width = image_size // self.factor, self.widths[-1]
    total = _conv_flops(side, self.latent_channels, width) + self._middle_flops(side)
    if self.post_quant:
      total += _conv_flops(side, self.latent_channels, self.latent_channels, kernel=1)
    for level, out in enumerate(reversed(self.widths)):
      total += _level_flops(side, width, out, self.blocks + 1)
      width = out
      if level < len(self.widths) - 1:
        side *= 2
        total += _conv_flops(side, out, out)
    return total + _conv_flops(side, width, 3)

  def _middle_flops(self, side: int) -> int:
    width, length = self.widths[-1], side * side
    attention = 8 * length * width * width + 4 * length * length * width
    return _level_flops(side, width, width, 2) + (attention if self.attention else 0)


def _conv_flops(side: int, channels: int, out: int, kernel: int = 3) -> int:
  return 2 * kernel**2 * channels * out * side * side


def _level_flops(side: int, channels: int, out: int, blocks: int) -> int:
  """Of residual blocks at one resolution, the first of which may change the width."""
  shortcut = _conv_flops(side, channels, out, kernel=1) if channels != out else 0
  first = _conv_flops(side, channels, out) + _conv_flops(side, out, out) + shortcut
  return first + (blocks - 1) * 2 * _conv_flops(side, out, out)


class Autoencoder(nnx.Module):
  """Images within [-1, 1] to latents and back.

  Source: Rombach et al. 2022, arXiv 2112.10752, section 3.1 and appendix G; the layers as in
    Esser et al. 2021 (VQGAN), arXiv 2012.09841.
  """

  def __init__(self, config: AutoencoderConfig, rngs: nnx.Rngs):
    self.config = config
    channels = config.latent_channels
    self.encoder = Encoder(config, rngs)
    self.quant = Conv(2 * channels, 2 * channels, 1, rngs) if config.quant else None
    self.post_quant = Conv(channels, channels, 1, rngs) if config.post_quant else None
    self.decoder = Decoder(config, rngs)

  def encode(self, images: Float[Array, 'batch height width 3']) -> Posterior:
    """Returns the distribution of the latents of images within [-1, 1].

    Raises:
      UserError: a side that the levels do not divide.
    """
    factor = self.config.factor
    if images.shape[1] % factor or images.shape[2] % factor:
      raise UserError(
        f'model.autoencoder: images of {images.shape[1]}x{images.shape[2]} px do not divide by '
        f'{factor}, as its {len(self.config.widths)} levels need'
      )
    x = self.encoder(images.astype(self.config.dtype))
    x = x if self.quant is None else self.quant(x)
    mean, log_var = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return Posterior(mean, jnp.clip(log_var, *_LOG_VAR))

  def decode(
    self, latents: Float[Array, 'batch rows columns channels']
  ) -> Float[Array, 'batch height width 3']:
    """Returns images, float32; nothing bounds them to [-1, 1]."""
    x = latents.astype(self.config.dtype)
    x = x if self.post_quant is None else self.post_quant(x)
    return self.decoder(x).astype(jnp.float32)

  def to_latents(
    self,
    images: Float[Array, 'batch height width 3'],
    noise: Float[Array, 'batch rows columns channels'],
  ) -> Float[Array, 'batch rows columns channels']:
    """Returns scaled latents of images, drawn with standard normal `noise`; 0 gives the mean."""
    mean, log_var = self.encode(images)
    return (mean + jnp.exp(0.5 * log_var) * noise - self.config.shift) * self.config.scale

  def to_images(
    self, latents: Float[Array, 'batch rows columns channels']
  ) -> Float[Array, 'batch height width 3']:
    """Returns images of scaled latents."""
    return self.decode(latents / self.config.scale + self.config.shift)


class Encoder(nnx.Module):
  """Levels of residual blocks, each but the last halving the side, then the middle."""

  def __init__(self, config: AutoencoderConfig, rngs: nnx.Rngs):
    widths, groups = config.widths, config.groups
    self.conv_in = Conv(3, widths[0], 3, rngs)
    before = (widths[0], *widths[:-1])
    self.levels = nnx.List(
      [
        Level(channels, out, config.blocks, groups, rngs, down=level < len(widths) - 1)
        for level, (channels, out) in enumerate(zip(before, widths, strict=True))
      ]
    )
    self.middle = Middle(widths[-1], config, rngs)
    self.norm = GroupNorm(widths[-1], groups, rngs)
    self.conv_out = Conv(widths[-1], 2 * config.latent_channels, 3, rngs)

  def __call__(
    self, x: Float[Array, 'batch height width 3']
  ) -> Float[Array, 'batch rows columns channels']:
    x = self.conv_in(x)
    for level in self.levels:
      x = level(x)
    return self.conv_out(jax.nn.silu(self.norm(self.middle(x))))


class Decoder(nnx.Module):
  """The middle, then levels of residual blocks, each but the last doubling the side."""

  def __init__(self, config: AutoencoderConfig, rngs: nnx.Rngs):
    widths, groups = config.widths[::-1], config.groups
    self.conv_in = Conv(config.latent_channels, widths[0], 3, rngs)
    self.middle = Middle(widths[0], config, rngs)
    before = (widths[0], *widths[:-1])
    self.levels = nnx.List(
      [
        Level(channels, out, config.blocks + 1, groups, rngs, up=level < len(widths) - 1)
        for level, (channels, out) in enumerate(zip(before, widths, strict=True))
      ]
    )
    self.norm = GroupNorm(widths[-1], groups, rngs)
    self.conv_out = Conv(widths[-1], 3, 3, rngs)

  def __call__(
    self, x: Float[Array, 'batch rows columns channels']
  ) -> Float[Array, 'batch height width 3']:
    x = self.middle(self.conv_in(x))
    for level in self.levels:
      x = level(x)
    return self.conv_out(jax.nn.silu(self.norm(x)))


class Level(nnx.Module):
  """Residual blocks at one resolution, and the way to the next one."""

  def __init__(
    self,
    channels: int,
    out: int,
    blocks: int,
    groups: int,
    rngs: nnx.Rngs,
    *,
    down: bool = False,
    up: bool = False,
  ):
    self.residual = nnx.List(
      [Residual(channels if i == 0 else out, out, groups, rngs) for i in range(blocks)]
    )
    self.down = Conv(out, out, 3, rngs) if down else None
    self.up = Conv(out, out, 3, rngs) if up else None

  def __call__(
    self, x: Float[Array, 'batch height width channels']
  ) -> Float[Array, 'batch rows columns out']:
    for block in self.residual:
      x = block(x)
    if self.down is not None:
      # one column and row of zeros at the end alone, as the published weights were trained with
      return self.down(x, stride=2, padding=(0, 1))
    if self.up is not None:
      return self.up(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2))
    return x


class Middle(nnx.Module):
  """Two residual blocks, between them one head of self-attention."""

  def __init__(self, width: int, config: AutoencoderConfig, rngs: nnx.Rngs):
    self.before = Residual(width, width, config.groups, rngs)
    self.attention = GridAttention(width, config.groups, rngs) if config.attention else None
    self.after = Residual(width, width, config.groups, rngs)

  def __call__(
    self, x: Float[Array, 'batch rows columns width']
  ) -> Float[Array, 'batch rows columns width']:
    x = self.before(x)
    if self.attention is not None:
      x = self.attention(x)
    return self.after(x)


class Residual(nnx.Module):
  """`x + conv(silu(norm(conv(silu(norm(x))))))`; a 1x1 convolution where the width changes."""

  def __init__(self, channels: int, out: int, groups: int, rngs: nnx.Rngs):
    self.norm1 = GroupNorm(channels, groups, rngs)
    self.conv1 = Conv(channels, out, 3, rngs)
    self.norm2 = GroupNorm(out, groups, rngs)
    self.conv2 = Conv(out, out, 3, rngs)
    self.shortcut = Conv(channels, out, 1, rngs) if channels != out else None

  def __call__(
    self, x: Float[Array, 'batch height width channels']
  ) -> Float[Array, 'batch height width out']:
    y = self.conv1(jax.nn.silu(self.norm1(x)))
    y = self.conv2(jax.nn.silu(self.norm2(y)))
    return (x if self.shortcut is None else self.shortcut(x)) + y


class GridAttention(nnx.Module):
  """Self-attention of one head over all positions, with a residual."""

  def __init__(self, width: int, groups: int, rngs: nnx.Rngs):
    self.norm = GroupNorm(width, groups, rngs)
    self.qkv = Linear((width, 3 * width), ('channels', 'out'), rngs)
    self.out = Linear((width, width), ('channels', 'out'), rngs)

  def __call__(
    self, x: Float[Array, 'batch rows columns width']
  ) -> Float[Array, 'batch rows columns width']:
    batch, rows, columns, width = x.shape
    y = self.norm(x).reshape(batch, rows * columns, width)
    query, key, value = jnp.split(self.qkv(y)[:, :, None], 3, axis=-1)
    y = self.out(attend(query, key, value)[:, :, 0])
    return x + y.reshape(x.shape)


class GroupNorm(nnx.Module):
  """Normalises groups of channels over all positions, in float32.

  Source: Wu & He 2018, arXiv 1803.08494, equation 1.
  """

  def __init__(self, width: int, groups: int, rngs: nnx.Rngs):
    self.scale = param(rngs, nnx.initializers.ones, (width,), ('channels',))
    self.bias = param(rngs, nnx.initializers.zeros, (width,), ('channels',))
    self.groups = groups

  def __call__(
    self, x: Float[Array, 'batch height width channels']
  ) -> Float[Array, 'batch height width channels']:
    # each channel first, then its group: an axis of a group's few channels would be the last one
    # of a large array, which a TPU pads to 128
    y = x.astype(jnp.float32)
    y = y - self._of_groups(jnp.mean(y, axis=(1, 2)))[:, None, None]
    variance = self._of_groups(jnp.mean(y * y, axis=(1, 2)))
    scale = jax.lax.rsqrt(variance + _EPS) * self.scale[...]
    return (y * scale[:, None, None] + self.bias[...]).astype(x.dtype)

  def _of_groups(self, x: Float[Array, 'batch channels']) -> Float[Array, 'batch channels']:
    """The mean of each channel's group."""
    grouped = jnp.mean(x.reshape(len(x), self.groups, -1), axis=2)
    return jnp.repeat(grouped, x.shape[1] // self.groups, axis=1)


class Conv(nnx.Module):
  """A square convolution with a bias; `kernel` is [row, column, channel, out]."""

  def __init__(self, channels: int, out: int, kernel: int, rngs: nnx.Rngs):
    init = nnx.initializers.xavier_uniform()
    axes = ('row', 'column', 'channels', 'out')
    self.kernel = param(rngs, init, (kernel, kernel, channels, out), axes)
    self.bias = param(rngs, nnx.initializers.zeros, (out,), ('out',))
    self.size = kernel

  def __call__(
    self,
    x: Float[Array, 'batch height width channels'],
    stride: int = 1,
    padding: tuple[int, int] | None = None,
  ) -> Float[Array, 'batch rows columns out']:
    around = padding or (self.size // 2, self.size // 2)
    y = jax.lax.conv_general_dilated(
      x,
      self.kernel[...].astype(x.dtype),
      (stride, stride),
      (around, around),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    return y + self.bias[...].astype(x.dtype)
