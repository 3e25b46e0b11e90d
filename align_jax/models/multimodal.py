"""The multimodal model: a vision tower whose patches a causal decoder reads among its tokens.

Source: LLaVA, Liu et al. 2023, arXiv 2304.08485, section 4.1, with the projector of LLaVA-1.5,
  arXiv 2310.03744.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from align_jax.errors import require
from align_jax.models.adapter import Gate, LoraConfig
from align_jax.models.decoder import Cache, Decoder, DecoderConfig
from align_jax.models.layers import Activation, Linear, activate
from align_jax.models.vit import Vit, VitConfig


@dataclasses.dataclass(frozen=True)
class MultimodalConfig:
  """The model.

  Attributes:
    image: the vision tower. Its last block's patches are read, without the norm after it: LLaVA
      leaves out CLIP's last block, so that the tower here has one block fewer. With `image_norm`
      they go through the norm (SigLIP).
    decoder: see `DecoderConfig`.
    image_id: the token that stands for a patch in a text: an image takes as many as it has patches.
    image_norm: see above.
    projector_activation: between the two layers from the tower to the decoder.
    projector_bias: they have biases.
    image_lora: adapters of the vision tower, for generated images; None: none.
    length: tokens of the longest text, patches among them; it bounds `config.data.length`, and
      operations are counted for it.
  """

  image: VitConfig
  decoder: DecoderConfig
  image_id: int
  image_norm: bool = False
  projector_activation: Activation = 'gelu'
  projector_bias: bool = True
  image_lora: LoraConfig | None = None
  length: int = 2048

  def __post_init__(self) -> None:
    where = 'config.model'
    require(
      0 <= self.image_id < self.decoder.vocab_size,
      f'{where}.image_id',
      f'{self.image_id} is none of the {self.decoder.vocab_size} tokens',
    )
    patches = self.image.patches
    require(
      self.length > patches, f'{where}.length', f'{self.length}, but an image alone takes {patches}'
    )

  @property
  def image_size(self) -> int:
    return self.image.image_size

  @property
  def vocab_size(self) -> int:
    return self.decoder.vocab_size

  @property
  def projector_flops(self) -> int:
    """Operations of the projector, one image forward."""
    width = self.decoder.width
    return 2 * self.image.patches * width * (self.image.width + width)

  @property
  def decoder_flops(self) -> int:
    """Operations of the decoder and its head, one text of `length` tokens forward."""
    return self.decoder.flops(self.length) + 2 * self.length * self.decoder.width * self.vocab_size


class Projector(nnx.Module):
  """Two linear layers from the width of the tower to that of the decoder."""

  def __init__(self, config: MultimodalConfig, rngs: nnx.Rngs):
    size = (config.image.width, config.decoder.width)
    bias = config.projector_bias
    self.first = Linear(size, ('embed', 'mlp'), rngs, bias=bias)
    self.second = Linear((size[1], size[1]), ('mlp', 'embed'), rngs, bias=bias)
    self.activation = config.projector_activation

  def __call__(self, x: Float[Array, 'images patches in']) -> Float[Array, 'images patches out']:
    return self.second(activate(self.activation)(self.first(x)))


class Multimodal(nnx.Module):
  """Tokens and images in, hidden states of the decoder out."""

  def __init__(self, config: MultimodalConfig, rngs: nnx.Rngs):
    self.config = config
    self.image = Vit(config.image, config.image_lora, rngs)
    self.projector = Projector(config, rngs)
    self.decoder = Decoder(config.decoder, rngs)

  def see(self, images: Array, gate: Gate = None) -> Float[Array, 'batch patches width']:
    """What the decoder reads of images.

    Args:
      images: `[batch, images, height, width, 3]`, values from 0 to 255; the patches of all images
        of an example follow one another.
      gate: 1 for examples whose images are generated, 0 for others; None: no adapter.
    """
    batch, count = images.shape[:2]
    flat = images.reshape(batch * count, *images.shape[2:])
    x = self.image.tokens(flat, None if gate is None else jnp.repeat(gate, count))
    if self.config.image.pool == 'cls':
      x = x[:, 1:]
    if self.config.image_norm:
      x = self.image.norm(x)
    x = self.projector(x)
    return x.reshape(batch, -1, x.shape[-1]).astype(self.config.decoder.dtype)

  def embed(
    self, tokens: Int[Array, 'batch length'], seen: Float[Array, 'batch patches width'] | None
  ) -> Float[Array, 'batch length width']:
    """Embeds tokens; those that stand for a patch take the next one of `seen`."""
    x = self.decoder.embed(tokens)
    if seen is None or not seen.shape[1]:
      return x
    is_image = tokens == self.config.image_id
    place = jnp.maximum(jnp.cumsum(is_image, axis=1) - 1, 0)
    patches = jnp.take_along_axis(seen, jnp.minimum(place, seen.shape[1] - 1)[..., None], axis=1)
    return jnp.where(is_image[..., None], patches.astype(x.dtype), x)

  def __call__(
    self,
    tokens: Int[Array, 'batch length'],
    segment: Int[Array, 'batch length'],
    images: Array | None = None,
    *,
    gate: Gate = None,
    image_gate: Gate = None,
    prefix: Bool[Array, 'batch length'] | None = None,
    last: bool = False,
  ) -> Float[Array, 'batch states width']:
    """Hidden states of a text with images in it.

    Args:
      tokens: with `image_id` once for each patch of each image, in their order.
      segment: see `models.decoder.attention_mask`.
      images: see `see`; None: there are none.
      gate: of the decoder's adapters.
      image_gate: of the tower's.
      prefix: see `models.decoder.attention_mask`.
      last: return the last token's alone, `[batch, 1, width]`, which is less work.
    """
    seen = None if images is None else self.see(images, image_gate)
    return self.decoder(self.embed(tokens, seen), segment, gate, prefix, last=last)

  def read(
    self,
    tokens: Int[Array, 'batch length'],
    segment: Int[Array, 'batch length'],
    position: Int[Array, 'batch length'],
    cache: Cache,
    seen: Float[Array, 'batch patches width'] | None = None,
    gate: Gate = None,
  ) -> tuple[Float[Array, 'batch length width'], Cache]:
    """Reads tokens after those of a cache, see `Decoder.read`."""
    return self.decoder.read(self.embed(tokens, seen), segment, position, cache, gate)
