"""The layers that towers are built of."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float

from align_jax.models.adapter import Adapter, Gate, LoraConfig
from align_jax.models.attention import Backend, attend
from align_jax.models.param import Init, param
from align_jax.models.products import product
from align_jax.models.residual import fork

Activation = Literal['quick_gelu', 'gelu', 'gelu_tanh']
Dtype = Literal['float32', 'bfloat16']


@dataclasses.dataclass(frozen=True)
class BlockConfig:
  """A transformer block, the same in every tower.

  Attributes:
    width: of the residual stream.
    heads: width must divide by it.
    mlp_dim: hidden width of the MLP.
    activation: `quick_gelu` as OpenAI's CLIP, `gelu` exact, `gelu_tanh` as SigLIP.
    eps: of the layer norms.
    dtype: of the computation; parameters are float32.
    post_norm: the norms come after the residual sums (BERT), not before the layers.
    layer_scale: what a layer adds is multiplied by a learned vector (DINOv2).
  """

  width: int
  heads: int
  mlp_dim: int
  activation: Activation
  eps: float
  dtype: Dtype
  post_norm: bool = False
  layer_scale: bool = False


def activate(kind: Activation) -> Callable[[Array], Array]:
  """Returns the activation function. Reverse mode only."""
  return functools.partial(_activated, kind)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _activated(kind: Activation, x: Array) -> Array:
  if kind == 'quick_gelu':
    return x * jax.nn.sigmoid(1.702 * x)
  return jax.nn.gelu(x, approximate=kind == 'gelu_tanh')


def _activated_forward(kind: Activation, x: Array) -> tuple[Array, Array]:
  return _activated(kind, x), x


def _activated_backward(kind: Activation, x: Array, gradient: Array) -> tuple[Array]:
  # behind the barrier nothing is shared with the forward pass: what is cheap to compute again is
  # not kept, which saves more time at the memory than it costs
  x = jax.lax.optimization_barrier(x).astype(jnp.float32)
  return (gradient * _slope(kind, x).astype(gradient.dtype),)


_activated.defvjp(_activated_forward, _activated_backward)


def _slope(kind: Activation, x: Array) -> Array:
  """The derivative of an activation."""
  if kind == 'quick_gelu':
    share = jax.nn.sigmoid(1.702 * x)
    return share * (1 + 1.702 * x * (1 - share))
  if kind == 'gelu':
    density = jnp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return 0.5 * (1 + jax.lax.erf(x / math.sqrt(2))) + x * density
  # 0.5 x (1 + tanh(u)), u = √(2/π) (x + 0.044715 x³)
  root = math.sqrt(2 / math.pi)
  tanh = jnp.tanh(root * (x + 0.044715 * x**3))
  return 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh**2) * root * (1 + 3 * 0.044715 * x**2)


class Linear(nnx.Module):
  """`x W + b`, plus an adapter's update for generated examples."""

  def __init__(
    self,
    size: tuple[int, int],
    axes: tuple[str, str],
    rngs: nnx.Rngs,
    *,
    bias: bool = True,
    init: Init | None = None,
    lora: LoraConfig | None = None,
  ):
    init = init or nnx.initializers.xavier_uniform()
    self.kernel = param(rngs, init, size, axes)
    self.bias = param(rngs, nnx.initializers.zeros, size[1:], axes[1:]) if bias else None
    self.lora = Adapter(lora, size, axes, rngs) if lora is not None else None

  def __call__(
    self, x: Float[Array, 'batch *positions in'], gate: Gate = None
  ) -> Float[Array, 'batch *positions out']:
    # one flat product: XLA's CPU backend takes three times as long for the weights' gradient of a
    # batched one
    flat = product(x.reshape(-1, x.shape[-1]), self.kernel[...].astype(x.dtype))
    y = flat.reshape(*x.shape[:-1], flat.shape[-1])
    if self.bias is not None:
      y = y + self.bias[...].astype(x.dtype)
    if self.lora is not None and gate is not None:
      y = y + self.lora(x, gate)
    return y


class LayerNorm(nnx.Module):
  """Layer norm over the last axis, computed in float32."""

  def __init__(self, width: int, eps: float, rngs: nnx.Rngs):
    self.scale = param(rngs, nnx.initializers.ones, (width,), ('embed',))
    self.bias = param(rngs, nnx.initializers.zeros, (width,), ('embed',))
    self.eps = eps

  def __call__(self, x: Float[Array, '*batch width']) -> Float[Array, '*batch width']:
    y = x.astype(jnp.float32)
    mean = jnp.mean(y, axis=-1, keepdims=True)
    y = y - mean
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
    return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


class Mlp(nnx.Module):
  """Two linear layers with an activation between."""

  def __init__(self, config: BlockConfig, lora: LoraConfig | None, rngs: nnx.Rngs):
    lora = lora if lora is not None and 'mlp' in lora.layers else None
    width, hidden = config.width, config.mlp_dim
    self.up = Linear((width, hidden), ('embed', 'mlp'), rngs, lora=lora)
    self.down = Linear((hidden, width), ('mlp', 'embed'), rngs, lora=lora)
    self.activation = config.activation

  def __call__(
    self, x: Float[Array, 'batch length width'], gate: Gate = None
  ) -> Float[Array, 'batch length width']:
    return self.down(activate(self.activation)(self.up(x, gate)), gate)


class Attention(nnx.Module):
  """Multi-head self-attention with one fused projection for query, key and value.

  Attributes:
    backend: see `attend`; set when a model is bound to parameters.
  """

  def __init__(self, config: BlockConfig, lora: LoraConfig | None, rngs: nnx.Rngs):
    lora = lora if lora is not None and 'attention' in lora.layers else None
    width = config.width
    # each of the three is initialised as the square matrix it is
    init = nnx.initializers.variance_scaling(1.0, 'fan_in', 'uniform')
    self.qkv = Linear((width, 3 * width), ('embed', 'qkv'), rngs, init=init, lora=lora)
    self.out = Linear((width, width), ('heads', 'embed'), rngs, lora=lora)
    self.heads = config.heads
    self.backend: Backend = 'plain'

  def __call__(
    self,
    x: Float[Array, 'batch length width'],
    mask: Bool[Array, '#batch 1 #length length'] | None = None,
    gate: Gate = None,
  ) -> Float[Array, 'batch length width']:
    batch, length, width = x.shape
    qkv = self.qkv(x, gate).reshape(batch, length, 3, self.heads, width // self.heads)
    y = attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], mask, self.backend)
    return self.out(y.reshape(batch, length, width), gate)


class Block(nnx.Module):
  """`x + attention(norm(x))`, then `x + mlp(norm(x))`; see `BlockConfig` for the variations.

  Sources: pre-norm, Xiong et al. 2020, arXiv 2002.04745; post-norm, Vaswani et al. 2017; layer
    scale, Touvron et al. 2021, arXiv 2103.17239, equation 6.
  """

  def __init__(self, config: BlockConfig, lora: LoraConfig | None, rngs: nnx.Rngs):
    self.norm1 = LayerNorm(config.width, config.eps, rngs)
    self.attention = Attention(config, lora, rngs)
    self.norm2 = LayerNorm(config.width, config.eps, rngs)
    self.mlp = Mlp(config, lora, rngs)
    ones, shape = nnx.initializers.ones, (config.width,)
    self.scale1 = param(rngs, ones, shape, ('embed',)) if config.layer_scale else None
    self.scale2 = param(rngs, ones, shape, ('embed',)) if config.layer_scale else None
    self.post_norm = config.post_norm

  def __call__(
    self,
    x: Float[Array, 'batch length width'],
    mask: Bool[Array, '#batch 1 #length length'] | None = None,
    gate: Gate = None,
  ) -> Float[Array, 'batch length width']:
    if self.post_norm:
      x = self.norm1(x + _scaled(self.attention(x, mask, gate), self.scale1))
      return self.norm2(x + _scaled(self.mlp(x, gate), self.scale2))
    x, y = fork(x)
    x, y = fork(x + _scaled(self.attention(self.norm1(y), mask, gate), self.scale1))
    return x + _scaled(self.mlp(self.norm2(y), gate), self.scale2)


def _scaled(x: Array, scale: nnx.Param | None) -> Array:
  return x if scale is None else x * scale[...].astype(x.dtype)
