"""The dual encoder: an image tower with tracks by modality, a text tower, one space."""

import dataclasses
import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Int, UInt8

from align_jax.errors import UserError
from align_jax.modality import Modality
from align_jax.models.adapter import LoraConfig
from align_jax.models.layers import Linear
from align_jax.models.param import param
from align_jax.models.text import TextConfig, TextTransformer
from align_jax.models.vit import Vit, VitConfig

# The modality of each example of a mixed batch: 0 real, 1 generated.
Modalities = Int[Array, 'batch']


@dataclasses.dataclass(frozen=True)
class DualEncoderConfig:
  """Two towers and what joins them.

  Attributes:
    image, text: the towers.
    dim: of the shared space.
    lora: adapters of the generated track; None: both modalities share everything but projections.
    image_projection: False: the pooled image is the embedding, as in SigLIP; `dim` is its width.
    projection: `single`, or `dual`: generated images have a projection of their own (GMAIL).
    projection_bias: SigLIP's text projection has a bias, CLIP's have not.
    init_scale: the inverse temperature at first, 1/0.07 for CLIP, 10 for SigLIP.
    init_bias: of the sigmoid loss, −10 in the paper, −2.71 for small locked-text batches; None: no
      bias, as CLIP.
    max_scale: CLIP's bound of 100, against unstable training.
  """

  image: VitConfig
  text: TextConfig
  dim: int
  lora: LoraConfig | None = None
  image_projection: bool = True
  projection: Literal['single', 'dual'] = 'single'
  projection_bias: bool = False
  init_scale: float = 1 / 0.07
  init_bias: float | None = None
  max_scale: float = 100.0

  def __post_init__(self) -> None:
    if not 0 < self.init_scale <= self.max_scale:
      raise UserError(
        f'config.model.init_scale: {self.init_scale} is outside (0, max_scale {self.max_scale}]'
      )
    if not self.image_projection and self.image.width != self.dim:
      raise UserError(
        f'config.model.dim: {self.dim}, but without an image projection it is the width of the '
        f'image tower; set {self.image.width}, or image_projection=True'
      )

  @property
  def image_size(self) -> int:
    return self.image.image_size

  @property
  def image_flops(self) -> int:
    """Operations of one image forward, its projection included; matrix products alone."""
    projected = self.image_projection or self.projection == 'dual'
    return self.image.flops + (2 * self.image.width * self.dim if projected else 0)

  @property
  def text_flops(self) -> int:
    """Operations of one text forward, its projection included."""
    return self.text.flops + 2 * self.text.width * self.dim

  @property
  def vocab_size(self) -> int:
    return self.text.vocab_size

  @property
  def pad_id(self) -> int:
    return self.text.pad_id

  @property
  def eot_id(self) -> int | None:
    """The end token that the text tower looks for; None where it does not."""
    return self.text.eot_id if self.text.pool == 'eot' else None


class DualEncoder(nnx.Module):
  """Embeds images of either modality and texts, unit norm, float32.

  A *track* is what a modality's images go through: the shared backbone, for generated images with
  the adapters, and a projection. The real track never reads an adapter.

  Source: Radford et al. 2021, arXiv 2103.00020; tracks: GMAIL, arXiv 2602.15368, section 3.2.
  """

  def __init__(self, config: DualEncoderConfig, rngs: nnx.Rngs):
    self.config = config
    self.image = Vit(config.image, config.lora, rngs)
    self.text = TextTransformer(config.text, rngs)
    bias = config.projection_bias
    size = (config.image.width, config.dim)
    init = nnx.initializers.normal(config.image.width**-0.5)
    axes = ('embed', 'out')
    self.image_projection = (
      Linear(size, axes, rngs, bias=bias, init=init) if config.image_projection else None
    )
    # both tracks begin as the same function
    kernel = (
      self.image_projection.kernel[...] if self.image_projection is not None else jnp.eye(*size)
    )
    self.generated_projection = (
      Linear(size, axes, rngs, bias=bias, init=lambda *_: kernel)
      if config.projection == 'dual'
      else None
    )
    size = (config.text.width, config.dim)
    init = nnx.initializers.normal(config.text.width**-0.5)
    self.text_projection = Linear(size, axes, rngs, bias=bias, init=init)
    # in log space, so that a step changes the temperature by a factor
    log_scale = nnx.initializers.constant(math.log(config.init_scale))
    self.log_scale = param(rngs, log_scale, (), ())
    self.logit_bias = (
      param(rngs, nnx.initializers.constant(config.init_bias), (), ())
      if config.init_bias is not None
      else None
    )

  def encode_image(
    self,
    images: UInt8[Array, 'batch height width 3'] | Float[Array, 'batch height width 3'],
    modality: Modality | Modalities = 'real',
    projection: Modality | None = None,
  ) -> Float[Array, 'batch dim']:
    """Embeds images.

    Args:
      images: values from 0 to 255.
      modality: one for all, or per example 0 (real) or 1 (generated).
      projection: which projection to use whatever the modality; None: that of the modality.
    """
    tracks = self.config.lora is not None and not _is(modality, 'real')
    features = self.image(images, _gate(modality, images.shape[0]) if tracks else None)
    return _unit(self._project(features, modality if projection is None else projection))

  def _project(self, features: Array, which: Modality | Modalities) -> Array:
    real, generated = self.image_projection or (lambda x: x), self.generated_projection
    if generated is None or _is(which, 'real'):
      return real(features)
    if _is(which, 'generated'):
      return generated(features)
    return jnp.where(jnp.asarray(which == 1)[:, None], generated(features), real(features))

  def encode_text(self, tokens: Int[Array, 'batch length']) -> Float[Array, 'batch dim']:
    """Embeds texts."""
    return _unit(self.text_projection(self.text(tokens)))

  @property
  def scale(self) -> Float[Array, '']:
    """The inverse temperature, at most `max_scale`."""
    return jnp.exp(_at_most(self.log_scale[...], math.log(self.config.max_scale)))

  @property
  def bias(self) -> Float[Array, '']:
    """The bias of the sigmoid loss.

    Raises:
      UserError: the model was made without one.
    """
    if self.logit_bias is None:
      raise UserError('config.model.init_bias: the sigmoid loss needs one; set -10 (SigLIP)')
    return self.logit_bias[...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _at_most(x: Float[Array, ''], bound: float) -> Float[Array, '']:
  """`min(x, bound)` that still learns at the bound: a gradient that leads back down passes.

  The gradient of a plain minimum is zero there, and a temperature that once reached the bound (that
  of OpenAI's weights has) would stay for ever.
  """
  return jnp.minimum(x, bound)


def _at_most_forward(x: Array, bound: float) -> tuple[Array, Array]:
  return jnp.minimum(x, bound), x < bound


def _at_most_backward(bound: float, inside: Array, gradient: Array) -> tuple[Array]:
  del bound
  return (jnp.where(inside | (gradient > 0), gradient, 0.0),)


_at_most.defvjp(_at_most_forward, _at_most_backward)


def _is(modality: Modality | Modalities, name: Modality) -> bool:
  return isinstance(modality, str) and modality == name


def _gate(modality: Modality | Modalities, batch: int) -> Float[Array, 'batch']:
  if isinstance(modality, str):
    return jnp.ones(batch, jnp.float32)
  return (modality == 1).astype(jnp.float32)


def _unit(x: Array) -> Float[Array, 'batch dim']:
  x = x.astype(jnp.float32)
  # the small number keeps the gradient of a zero vector finite
  return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-12))
