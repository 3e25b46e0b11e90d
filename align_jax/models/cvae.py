"""A second generator: a variational autoencoder over patches, given captions."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from align_jax.errors import UserError, require
from align_jax.models.dit import Context, DitConfig, TextEncoder, unpatchify
from align_jax.models.layers import Activation, Block, BlockConfig, Dtype, LayerNorm, Linear
from align_jax.models.param import Init, param
from align_jax.models.stack import Stack
from align_jax.models.vit import block_flops, check_heads, patchify, sincos2d

_LARGEST_LOG_STD = 5.0  # of latents: a wild step must not overflow their exponential


class Gaussian(NamedTuple):
  """A distribution of latents, independent in every number.

  Attributes:
    mean, log_std: float32.
  """

  mean: Float[Array, 'batch latents dim']
  log_std: Float[Array, 'batch latents dim']


class Reconstruction(NamedTuple):
  """What training looks at.

  Attributes:
    images: the decoder's mean, float32; of images in [-1, 1], though nothing bounds it.
    posterior, prior: of the latents, with and without having seen the image.
  """

  images: Float[Array, 'batch size size 3']
  posterior: Gaussian
  prior: Gaussian


@dataclasses.dataclass(frozen=True)
class CvaeConfig:
  """A conditional variational autoencoder.

  Attributes:
    image_size, patch: in pixels; images are square, the size divides by the patch.
    width, heads, mlp_dim: of all its transformers.
    encoder_depth, decoder_depth: blocks of the posterior and of the decoder.
    prior_depth: blocks of the prior p(z | caption); 0 for the standard normal, which no caption
      changes.
    text_depth: blocks over the text alone, see `DitConfig`.
    latents, latent_dim: how many vectors an image is told in, and numbers of each.
    vocab_size, length: of the token table and of the longest text.
    pad_id: of the tokenizer.
    activation, eps, dtype: see `BlockConfig`.
  """

  image_size: int = 32
  patch: int = 4
  width: int = 96
  heads: int = 3
  mlp_dim: int = 384
  encoder_depth: int = 2
  decoder_depth: int = 4
  prior_depth: int = 1
  text_depth: int = 1
  latents: int = 16
  latent_dim: int = 4
  vocab_size: int = 1024
  length: int = 32
  pad_id: int = 0
  activation: Activation = 'gelu_tanh'
  eps: float = 1e-6
  dtype: Dtype = 'float32'

  def __post_init__(self) -> None:
    if self.image_size % self.patch:
      near = max(1, round(self.image_size / self.patch)) * self.patch
      raise UserError(
        f'model: image_size {self.image_size} is not divisible by patch {self.patch}; use {near}'
      )
    if self.width % 4:
      raise UserError(f'model: width {self.width} is not divisible by 4, as the positions need')
    if not 0 <= self.pad_id < self.vocab_size:
      raise UserError(f'model: pad_id {self.pad_id} is outside the {self.vocab_size} tokens')
    for name in ('encoder_depth', 'decoder_depth', 'latents', 'latent_dim'):
      require(getattr(self, name) >= 1, 'model', f'{name} must be 1 or more')
    require(self.prior_depth >= 0, 'model', 'prior_depth must be 0 or more')
    check_heads(self.width, self.heads, 'model')

  @property
  def block(self) -> BlockConfig:
    return BlockConfig(self.width, self.heads, self.mlp_dim, self.activation, self.eps, self.dtype)

  @property
  def text(self) -> DitConfig:
    """Of the text encoder, which is the DiT's."""
    return DitConfig(
      image_size=self.image_size,
      patch=self.patch,
      width=self.width,
      heads=self.heads,
      mlp_dim=self.mlp_dim,
      text_depth=self.text_depth,
      vocab_size=self.vocab_size,
      length=self.length,
      pad_id=self.pad_id,
      activation=self.activation,
      eps=self.eps,
      dtype=self.dtype,
    )

  @property
  def eot_id(self) -> None:
    """The generator looks for no end token."""
    return None

  @property
  def patches(self) -> int:
    """Patches of an image."""
    return (self.image_size // self.patch) ** 2

  @property
  def flops(self) -> int:
    """Floating-point operations of one `__call__` on an image, matrix products alone."""
    tokens, patches, latents = self.length + 1, self.patches, self.latents
    whole = latents + patches + tokens
    ends = 2 * 2 * patches * 3 * self.patch**2 * self.width
    said = 2 * latents * self.latent_dim * self.width  # one number of each latent, said or read
    blocks = self.text_depth * block_flops(self.block, tokens)
    blocks += (self.encoder_depth + self.decoder_depth) * block_flops(self.block, whole)
    blocks += self.prior_depth * block_flops(self.block, latents + tokens)
    return blocks + ends + said * (5 if self.prior_depth else 3)


class Cvae(nnx.Module):
  """Images and captions in, images out, by way of a few random numbers.

  Three transformers see, as one sequence, latents, patches and text: the posterior reads its
  latents off after seeing the image, the prior without, and the decoder reads the patches off. The
  decoder has the caption besides, so latents need to say only what it leaves open: which of many
  pictures. It answers with the mean of what it cannot tell apart, hence blurred.

  Sources: Sohn et al. 2015 (CVAE, NeurIPS); learned queries as in Jaegle et al. 2021 (Perceiver
    IO), arXiv 2107.14795.
  """

  def __init__(self, config: CvaeConfig, rngs: nnx.Rngs):
    self.config = config
    width, latents, dim = config.width, config.latents, config.latent_dim
    values = 3 * config.patch**2
    self.text = TextEncoder(config.text, rngs)
    self.patch_embed = Linear((values, width), ('patch', 'embed'), rngs)
    self.posterior = LatentReader(config, config.encoder_depth, nnx.initializers.normal(0.02), rngs)
    zeros = nnx.initializers.zeros  # the prior starts as the standard normal
    learnt = config.prior_depth > 0
    self.prior = LatentReader(config, config.prior_depth, zeros, rngs) if learnt else None
    normal = nnx.initializers.normal(0.1)
    self.latent_embed = Linear((dim, width), ('latent', 'embed'), rngs)
    self.latent_position = param(rngs, normal, (latents, width), ('latents', 'embed'))
    self.canvas = param(rngs, normal, (width,), ('embed',))
    self.decoder = Stack(lambda r: Block(config.block, None, r), config.decoder_depth, rngs)
    self.norm = LayerNorm(width, config.eps, rngs)
    self.out = Linear((width, values), ('embed', 'patch'), rngs)

  def __call__(
    self,
    images: Float[Array, 'batch size size 3'],
    text: Int[Array, 'batch length'],
    noise: Float[Array, 'batch latents dim'],
    blind: Bool[Array, 'batch'],
  ) -> Reconstruction:
    """Draws latents of images and decodes them.

    Args:
      images: within [-1, 1].
      text: token ids; padding is not looked at.
      noise: standard normal; latents are mean + std · noise of the posterior.
      blind: of which images the latents are the prior's instead, so that the decoder is told by
        the caption alone. They give the prior no gradient: it learns where the posterior goes.
    """
    context = self.encode_text(text)
    posterior, prior = self.encode(images, context), self.prior_of(context)
    drawn = jax.lax.stop_gradient(latents_at(prior, noise))
    latents = jnp.where(blind[:, None, None], drawn, latents_at(posterior, noise))
    return Reconstruction(self.decode(latents, context), posterior, prior)

  def encode_text(self, text: Int[Array, 'batch length']) -> Context:
    """Returns what the other methods need of the captions."""
    return self.text(text)

  def encode(self, images: Float[Array, 'batch size size 3'], context: Context) -> Gaussian:
    """Returns the posterior q(z | image, caption)."""
    config = self.config
    if images.shape[1] != config.image_size:
      raise UserError(f'model: made for images of {config.image_size} px, not {images.shape[1]}')
    x = self.patch_embed(patchify(images.astype(config.dtype), config.patch))
    return self.posterior(x + self._positions(x.dtype), context)

  def prior_of(self, context: Context) -> Gaussian:
    """Returns the prior p(z | caption)."""
    if self.prior is not None:
      return self.prior(context.tokens[:, :0], context)
    shape = (len(context.tokens), self.config.latents, self.config.latent_dim)
    return Gaussian(jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32))

  def decode(
    self, latents: Float[Array, 'batch latents dim'], context: Context
  ) -> Float[Array, 'batch size size 3']:
    """Returns the mean image of latents and a caption, float32."""
    config = self.config
    z = self.latent_embed(latents.astype(config.dtype))
    z = z + self.latent_position[...].astype(z.dtype)
    canvas = self.canvas[...].astype(z.dtype) + self._positions(z.dtype)
    canvas = jnp.broadcast_to(canvas, (len(z), *canvas.shape))
    x, mask = joined(z, canvas, context)
    x = self.decoder(x, mask)[:, config.latents : config.latents + config.patches]
    return unpatchify(self.out(self.norm(x)).astype(jnp.float32), config.patch)

  def _positions(self, dtype: jnp.dtype) -> Float[Array, 'patches width']:
    side = self.config.image_size // self.config.patch
    return jnp.asarray(sincos2d((side, side), self.config.width), dtype)


class LatentReader(nnx.Module):
  """Learned queries that look at patches, if any, and text; a Gaussian is read off each."""

  def __init__(self, config: CvaeConfig, depth: int, init: Init, rngs: nnx.Rngs):
    width = config.width
    normal = nnx.initializers.normal(0.1)
    self.queries = param(rngs, normal, (config.latents, width), ('latents', 'embed'))
    self.blocks = Stack(lambda r: Block(config.block, None, r), depth, rngs)
    self.norm = LayerNorm(width, config.eps, rngs)
    self.out = Linear((width, 2 * config.latent_dim), ('embed', 'latent'), rngs, init=init)

  def __call__(self, patches: Float[Array, 'batch patches width'], context: Context) -> Gaussian:
    queries = self.queries[...].astype(patches.dtype)
    queries = jnp.broadcast_to(queries, (len(patches), *queries.shape))
    x, mask = joined(queries, patches, context)
    x = self.blocks(x, mask)[:, : queries.shape[1]]
    mean, log_std = jnp.split(self.out(self.norm(x)).astype(jnp.float32), 2, axis=-1)
    return Gaussian(mean, _LARGEST_LOG_STD * jnp.tanh(log_std / _LARGEST_LOG_STD))


def latents_at(
  of: Gaussian, noise: Float[Array, 'batch latents dim'], temperature: float = 1.0
) -> Float[Array, 'batch latents dim']:
  """Returns mean + temperature · std · noise; temperature 0 is the mean."""
  return of.mean + temperature * jnp.exp(of.log_std) * noise


def joined(
  latents: Float[Array, 'batch latents width'],
  patches: Float[Array, 'batch patches width'],
  context: Context,
) -> tuple[Float[Array, 'batch length width'], Bool[Array, 'batch 1 1 length']]:
  """Returns latents, patches and text as one sequence, and where it may be looked at."""
  x = jnp.concatenate([latents, patches, context.tokens], axis=1)
  before = latents.shape[1] + patches.shape[1]
  mask = jnp.pad(context.mask, ((0, 0), (before, 0)), constant_values=True)
  return x, mask[:, None, None, :]
