"""The vision transformer, in CLIP's and SigLIP's flavours."""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float, UInt8

from align_jax.errors import UserError
from align_jax.models.adapter import Gate, LoraConfig
from align_jax.models.attention import attend
from align_jax.models.layers import Activation, Block, BlockConfig, Dtype, LayerNorm, Linear, Mlp
from align_jax.models.param import param
from align_jax.models.stack import Stack


@dataclasses.dataclass(frozen=True)
class VitConfig:
  """A vision tower.

  Attributes:
    image_size, patch: in pixels; images are square, the size divides by the patch.
    drop_edge: it need not: pixels at the right and lower edge that fill no patch go unseen, as in
      the published SigLIP So400m/14 at 384 pixels.
    width, depth, heads, mlp_dim: of the transformer.
    pool: `cls` a class token (CLIP), `map` attention pooling (SigLIP), `mean`.
    positions: `learned`, or fixed `sincos2d`.
    pre_norm: layer norm before the first block (CLIP).
    patch_bias: the patch embedding has a bias (SigLIP has, CLIP has not).
    activation, eps, dtype, layer_scale: see `BlockConfig`.
    mean, std: of the colour channels in [0, 1], for normalisation.
  """

  image_size: int
  patch: int
  width: int
  depth: int
  heads: int
  mlp_dim: int
  pool: Literal['cls', 'map', 'mean'] = 'cls'
  positions: Literal['learned', 'sincos2d'] = 'learned'
  pre_norm: bool = False
  patch_bias: bool = True
  activation: Activation = 'gelu_tanh'
  eps: float = 1e-6
  dtype: Dtype = 'float32'
  mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
  std: tuple[float, float, float] = (0.5, 0.5, 0.5)
  drop_edge: bool = False
  layer_scale: bool = False

  def __post_init__(self) -> None:
    where = 'config.model.image'
    if self.patch < 1 or self.image_size < 1:
      raise UserError(f'{where}: image_size and patch must be positive')
    if self.image_size % self.patch and not self.drop_edge:
      near = max(1, round(self.image_size / self.patch)) * self.patch
      raise UserError(
        f'{where}: image_size {self.image_size} is not divisible by patch {self.patch}; use {near} '
        'or set drop_edge'
      )
    check_heads(self.width, self.heads, where)
    if self.positions == 'sincos2d':
      _check_sincos(self.width)

  @property
  def block(self) -> BlockConfig:
    return BlockConfig(
      self.width,
      self.heads,
      self.mlp_dim,
      self.activation,
      self.eps,
      self.dtype,
      layer_scale=self.layer_scale,
    )

  @property
  def patches(self) -> int:
    """Patches of an image."""
    return (self.image_size // self.patch) ** 2

  @property
  def flops(self) -> int:
    """Floating-point operations of one image forward, matrix products alone (2 a multiply-add)."""
    tokens = self.patches + (self.pool == 'cls')
    total = 2 * self.patches * 3 * self.patch**2 * self.width
    total += self.depth * block_flops(self.block, tokens)
    if self.pool == 'map':
      width, length = self.width, self.patches
      # the query is the same for every image, so it costs nothing per image
      total += 2 * width * width * (2 * length + 1) + 4 * length * width
      total += 4 * width * self.mlp_dim
    return total


def check_heads(width: int, heads: int, where: str) -> None:
  """Raises a UserError unless the heads share the width evenly."""
  if heads < 1 or width % heads:
    raise UserError(f'{where}: width {width} is not divisible by {heads} heads; change either')


def block_flops(config: BlockConfig, length: int) -> int:
  """Operations of one block over a sequence: four square projections, attention, the MLP."""
  width = config.width
  projections = 2 * length * width * (4 * width + 2 * config.mlp_dim)
  return projections + 4 * length * length * width


class Vit(nnx.Module):
  """Images in, one vector each out, before any projection."""

  def __init__(self, config: VitConfig, lora: LoraConfig | None, rngs: nnx.Rngs):
    self.config = config
    width = config.width
    normal = nnx.initializers.normal(width**-0.5)
    size = (3 * config.patch**2, width)
    self.patch_embed = Linear(size, ('patch', 'embed'), rngs, bias=config.patch_bias)
    count = config.patches + (config.pool == 'cls')
    self.position = (
      param(rngs, normal, (count, width), ('position', 'embed'))
      if config.positions == 'learned'
      else None
    )
    self.cls = param(rngs, normal, (width,), ('embed',)) if config.pool == 'cls' else None
    self.pre_norm = LayerNorm(width, config.eps, rngs) if config.pre_norm else None
    self.blocks = Stack(lambda r: Block(config.block, lora, r), config.depth, rngs)
    self.norm = LayerNorm(width, config.eps, rngs)
    self.head = AttentionPool(config.block, rngs) if config.pool == 'map' else None

  def __call__(
    self,
    images: UInt8[Array, 'batch height width 3'] | Float[Array, 'batch height width 3'],
    gate: Gate = None,
  ) -> Float[Array, 'batch features']:
    """Embeds images.

    Args:
      images: values from 0 to 255, of another size than the config's too, as long as it divides by
        the patch: learned positions are interpolated then.
      gate: of the adapters, per example; None for the real track.
    """
    x = self.tokens(images, gate)
    if self.config.pool == 'cls':
      return self.norm(x[:, 0])
    x = self.norm(x)
    return self.head(x) if self.head is not None else jnp.mean(x, axis=1)

  def tokens(
    self,
    images: UInt8[Array, 'batch height width 3'] | Float[Array, 'batch height width 3'],
    gate: Gate = None,
  ) -> Float[Array, 'batch tokens features']:
    """What the last block returns, before its norm: the class token, if any, then the patches."""
    config = self.config
    grid = (images.shape[1] // config.patch, images.shape[2] // config.patch)
    if config.drop_edge:
      images = images[:, : grid[0] * config.patch, : grid[1] * config.patch]
    x = self.patch_embed(patchify(self._normalise(images), config.patch))
    position = self._positions(grid).astype(x.dtype)
    if self.cls is not None:
      # CLIP adds a position to the class token as well
      token = jnp.broadcast_to(self.cls[...].astype(x.dtype), (x.shape[0], 1, x.shape[2]))
      x = jnp.concatenate([token, x], axis=1)
    x = x + position
    if self.pre_norm is not None:
      x = self.pre_norm(x)
    return self.blocks(x, None, gate)

  def _normalise(self, images: Array) -> Float[Array, 'batch height width 3']:
    # one multiply-add a pixel: (x / 255 - mean) / std
    mean, std = np.asarray(self.config.mean), np.asarray(self.config.std)
    scale = jnp.asarray(1 / (255 * std), jnp.float32)
    shift = jnp.asarray(-mean / std, jnp.float32)
    return (images.astype(jnp.float32) * scale + shift).astype(self.config.dtype)

  def _positions(self, grid: tuple[int, int]) -> Float[Array, 'length width']:
    config = self.config
    own = (config.image_size // config.patch,) * 2
    extra = int(config.pool == 'cls')
    if self.position is None:
      table = jnp.asarray(sincos2d(grid, config.width))
      return jnp.concatenate([jnp.zeros((extra, config.width)), table])
    table = self.position[...]
    if grid == own:
      return table
    return jnp.concatenate([table[:extra], interpolate_positions(table[extra:], own, grid)])


class AttentionPool(nnx.Module):
  """SigLIP's head: one learned query attends to all tokens, then an MLP with a residual.

  Source: Zhai et al. 2022 (Scaling Vision Transformers), arXiv 2106.04560, section 3.1.
  """

  def __init__(self, config: BlockConfig, rngs: nnx.Rngs):
    width = config.width
    self.probe = param(rngs, nnx.initializers.xavier_uniform(), (1, width), (None, 'embed'))
    self.query = Linear((width, width), ('embed', 'heads'), rngs)
    # each of the two is initialised as the square matrix it is
    init = nnx.initializers.variance_scaling(1.0, 'fan_in', 'uniform')
    self.key_value = Linear((width, 2 * width), ('embed', 'qkv'), rngs, init=init)
    self.out = Linear((width, width), ('heads', 'embed'), rngs)
    self.norm = LayerNorm(width, config.eps, rngs)
    self.mlp = Mlp(config, None, rngs)
    self.heads = config.heads

  def __call__(self, x: Float[Array, 'batch length width']) -> Float[Array, 'batch width']:
    batch, length, width = x.shape
    shape = (self.heads, width // self.heads)
    query = self.query(self.probe[...].astype(x.dtype)[None]).reshape(1, 1, *shape)
    query = jnp.broadcast_to(query, (batch, 1, *shape))
    key_value = self.key_value(x).reshape(batch, length, 2, *shape)
    y = attend(query, key_value[:, :, 0], key_value[:, :, 1])
    y = self.out(y.reshape(batch, 1, width))
    return (y + self.mlp(self.norm(y)))[:, 0]


def patchify(
  images: Float[Array, 'batch height width 3'], patch: int
) -> Float[Array, 'batch length values']:
  """Cuts images into patches, row by row; a patch's values are ordered (row, column, channel)."""
  batch, height, width, _ = images.shape
  if height % patch or width % patch:
    raise UserError(f'images of {height}x{width} do not divide into patches of {patch}')
  rows, columns = height // patch, width // patch
  cut = images.reshape(batch, rows, patch, columns, patch, 3)
  return cut.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, 3 * patch**2)


def sincos2d(grid: tuple[int, int], width: int) -> np.ndarray:
  """Fixed positions, float32 `[rows · columns, width]`.

  Source: Chen et al. 2021 (MoCo v3), arXiv 2104.02057; the temperature is 10,000.
  """
  _check_sincos(width)
  frequency = 1 / 10_000 ** (np.arange(width // 4) / max(1, width // 4 - 1))
  y, x = np.mgrid[: grid[0], : grid[1]]
  angles = [np.outer(axis.ravel(), frequency) for axis in (x, y)]
  parts = [f(angle) for angle in angles for f in (np.sin, np.cos)]
  return np.concatenate(parts, axis=1).astype(np.float32)


def _check_sincos(width: int) -> None:
  if width % 4:
    raise UserError(f'config.model: sin-cos positions need a width divisible by 4, not {width}')


def fit_positions(table: Float[Array, 'length width'] | np.ndarray, length: int) -> Array:
  """Resizes learned positions of a square grid, with or without a class token, to `length`.

  Raises:
    UserError: either length is no square, plus one for a class token.
  """
  if len(table) == length:
    return jnp.asarray(table)
  extra = len(table) - math.isqrt(len(table)) ** 2
  old, new = math.isqrt(len(table) - extra), math.isqrt(length - extra)
  if extra not in (0, 1) or new * new != length - extra:
    raise UserError(
      f'config.model.image: {len(table)} positions cannot be resized to {length}; use the same pool'
    )
  grid = interpolate_positions(jnp.asarray(table)[extra:], (old, old), (new, new))
  return jnp.concatenate([jnp.asarray(table)[:extra], grid])


def interpolate_positions(
  table: Float[Array, 'length width'], old: tuple[int, int], new: tuple[int, int]
) -> Float[Array, 'other width']:
  """Resizes a learned grid of positions to another resolution, bicubic with antialiasing.

  Args:
    table: row by row, `old[0] · old[1]` long, without a class token's position.
    old, new: rows and columns of the grids.

  Source: the resampling of `open_clip` (PyTorch's bicubic, antialiased), to float32 rounding.
  """
  width = table.shape[-1]
  grid = table.reshape(*old, width)
  resized = jax.image.resize(grid, (*new, width), 'bicubic', antialias=True)
  return resized.reshape(-1, width)
