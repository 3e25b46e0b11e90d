"""The text transformer, in CLIP's, SigLIP's and BERT's flavours."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from align_jax.errors import UserError
from align_jax.models.layers import Activation, Block, BlockConfig, Dtype, LayerNorm
from align_jax.models.param import param
from align_jax.models.stack import Stack
from align_jax.models.vit import block_flops, check_heads


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """A text tower.

  Attributes:
    vocab_size, length: of the token table and of the longest text.
    width, depth, heads, mlp_dim: of the transformer.
    causal: every token sees those before it alone (CLIP); else all see all (SigLIP).
    pool: `eot` the vector at the first end token (CLIP), `last` that of the last position,
      padding included (SigLIP), `mean` over the real tokens (MiniLM), `cls` the first (BGE).
    eot_id, pad_id: of the tokenizer.
    mask_padding: bidirectional attention does not look at padding. SigLIP's does.
    activation, eps, dtype: see `BlockConfig`.
    bert: norms after the layers, and one after the embeddings instead of one at the end; a table
      of token types, of which the first is added everywhere.
    token_types: rows of that table.
  """

  vocab_size: int
  length: int
  width: int
  depth: int
  heads: int
  mlp_dim: int
  causal: bool = True
  pool: Literal['eot', 'last', 'mean', 'cls'] = 'eot'
  eot_id: int = 1
  pad_id: int = 0
  mask_padding: bool = False
  activation: Activation = 'gelu_tanh'
  eps: float = 1e-6
  dtype: Dtype = 'float32'
  bert: bool = False
  token_types: int = 2

  def __post_init__(self) -> None:
    check_heads(self.width, self.heads, 'config.model.text')

  @property
  def block(self) -> BlockConfig:
    return BlockConfig(
      self.width,
      self.heads,
      self.mlp_dim,
      self.activation,
      self.eps,
      self.dtype,
      post_norm=self.bert,
    )

  @property
  def flops(self) -> int:
    """Floating-point operations of one text forward, matrix products alone."""
    return self.depth * block_flops(self.block, self.length)


class TextTransformer(nnx.Module):
  """Tokens in, one vector each out, before any projection."""

  def __init__(self, config: TextConfig, rngs: nnx.Rngs):
    self.config = config
    shape = (config.vocab_size, config.width)
    self.token = param(rngs, nnx.initializers.normal(0.02), shape, ('vocab', 'embed'))
    shape = (config.length, config.width)
    self.position = param(rngs, nnx.initializers.normal(0.01), shape, ('position', 'embed'))
    shape = (config.token_types, config.width)
    normal = nnx.initializers.normal(0.02)
    self.token_type = param(rngs, normal, shape, (None, 'embed')) if config.bert else None
    self.blocks = Stack(lambda r: Block(config.block, None, r), config.depth, rngs)
    self.norm = LayerNorm(config.width, config.eps, rngs)

  def __call__(self, tokens: Int[Array, 'batch length']) -> Float[Array, 'batch width']:
    """Embeds texts, padded to any length up to the config's.

    Raises:
      UserError: the texts are longer than the position table.
    """
    config = self.config
    if tokens.shape[1] > config.length:
      raise UserError(
        f'texts of {tokens.shape[1]} tokens, but the model reads {config.length}: set '
        'config.data.length and config.model.text.length to the same number'
      )
    x = self.hidden(tokens)
    # BERT's last norm is that of its last block
    norm = (lambda x: x) if config.bert else self.norm
    if config.pool == 'mean':
      real = (tokens != config.pad_id)[..., None]
      x = norm(x)
      return jnp.sum(jnp.where(real, x, 0), axis=1) / jnp.maximum(1, jnp.sum(real, axis=1))
    if config.pool in ('last', 'cls'):
      return norm(x[:, -1 if config.pool == 'last' else 0])
    # argmax finds the first end token; a text cut without one is read at position 0, so the
    # tokenizer keeps the end token when it cuts
    end = jnp.argmax(tokens == config.eot_id, axis=1)
    return norm(jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0])

  def hidden(self, tokens: Int[Array, 'batch length']) -> Float[Array, 'batch length width']:
    """What the last block returns, before a norm at the end."""
    x = self.token[...][tokens] + self.position[...][: tokens.shape[1]]
    if self.token_type is not None:
      x = self.norm(x + self.token_type[...][0])
    return self.blocks(x.astype(self.config.dtype), self._mask(tokens))

  def _mask(
    self, tokens: Int[Array, 'batch length']
  ) -> Bool[Array, '#batch 1 #length length'] | None:
    config = self.config
    length = tokens.shape[1]
    if config.causal:
      # padding comes after the end token, which therefore never sees it
      return jnp.tril(jnp.ones((length, length), bool))[None, None]
    if config.mask_padding:
      return (tokens != config.pad_id)[:, None, None, :]
    return None
