"""The peer of the training step: CLIP in PyTorch, as `transformers` has it, of the same sizes."""

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import transformers

from align_jax.models.dual_encoder import DualEncoderConfig
from align_jax.train.optimizer import OptimizerConfig

_ACTIVATIONS = {'quick_gelu': 'quick_gelu', 'gelu': 'gelu', 'gelu_tanh': 'gelu_pytorch_tanh'}


def make_clip(config: DualEncoderConfig) -> transformers.CLIPModel:
  """A CLIPModel with fresh weights, its attention PyTorch's own fused one."""
  towers = []
  for tower in (config.image, config.text):
    towers.append(
      {
        'hidden_size': tower.width,
        'num_hidden_layers': tower.depth,
        'num_attention_heads': tower.heads,
        'intermediate_size': tower.mlp_dim,
        'hidden_act': _ACTIVATIONS[tower.activation],
        'layer_norm_eps': tower.eps,
        'projection_dim': config.dim,
      }
    )
  image = {'image_size': config.image.image_size, 'patch_size': config.image.patch}
  text = {
    'vocab_size': config.text.vocab_size,
    'max_position_embeddings': config.text.length,
    'eos_token_id': config.text.eot_id,
    'bos_token_id': 0,
    'pad_token_id': config.text.pad_id,
  }
  settings = transformers.CLIPConfig(
    vision_config=towers[0] | image,
    text_config=towers[1] | text,
    projection_dim=config.dim,
    logit_scale_init_value=float(np.log(config.init_scale)),
    attn_implementation='sdpa',
  )
  return transformers.CLIPModel(settings)


def to_params(model: transformers.CLIPModel) -> dict[str, np.ndarray]:
  """The weights under our names: kernels transposed, query, key, value joined, blocks stacked."""
  state = {name: value.detach().float().cpu().numpy() for name, value in model.state_dict().items()}
  kernel = state['vision_model.embeddings.patch_embedding.weight'].transpose(2, 3, 1, 0)
  return {
    'image/patch_embed/kernel': kernel.reshape(-1, kernel.shape[-1]),
    'image/cls': state['vision_model.embeddings.class_embedding'],
    'image/position': state['vision_model.embeddings.position_embedding.weight'],
    **_norm(state, 'image/pre_norm', 'vision_model.pre_layrnorm'),
    **_blocks(state, 'image', 'vision_model'),
    **_norm(state, 'image/norm', 'vision_model.post_layernorm'),
    'image_projection/kernel': state['visual_projection.weight'].T,
    'text/token': state['text_model.embeddings.token_embedding.weight'],
    'text/position': state['text_model.embeddings.position_embedding.weight'],
    **_blocks(state, 'text', 'text_model'),
    **_norm(state, 'text/norm', 'text_model.final_layer_norm'),
    'text_projection/kernel': state['text_projection.weight'].T,
    'log_scale': state['logit_scale'],
  }


def _blocks(state: Mapping[str, np.ndarray], ours: str, theirs: str) -> dict[str, np.ndarray]:
  depth = len([name for name in state if name.startswith(theirs) and 'mlp.fc1.weight' in name])
  layers = [
    _block(state, f'{ours}/blocks/layer', f'{theirs}.encoder.layers.{i}') for i in range(depth)
  ]
  return {name: np.stack([layer[name] for layer in layers]) for name in layers[0]}


def _block(state: Mapping[str, np.ndarray], ours: str, theirs: str) -> dict[str, np.ndarray]:
  attention = f'{theirs}.self_attn'
  return {
    **_norm(state, f'{ours}/norm1', f'{theirs}.layer_norm1'),
    **_norm(state, f'{ours}/norm2', f'{theirs}.layer_norm2'),
    **_linear(state, f'{ours}/attention/qkv', *(f'{attention}.{name}_proj' for name in 'qkv')),
    **_linear(state, f'{ours}/attention/out', f'{attention}.out_proj'),
    **_linear(state, f'{ours}/mlp/up', f'{theirs}.mlp.fc1'),
    **_linear(state, f'{ours}/mlp/down', f'{theirs}.mlp.fc2'),
  }


def _linear(state: Mapping[str, np.ndarray], ours: str, *theirs: str) -> dict[str, np.ndarray]:
  return {
    f'{ours}/kernel': np.concatenate([state[f'{name}.weight'].T for name in theirs], axis=1),
    f'{ours}/bias': np.concatenate([state[f'{name}.bias'] for name in theirs]),
  }


def _norm(state: Mapping[str, np.ndarray], ours: str, theirs: str) -> dict[str, np.ndarray]:
  return {
    f'{ours}/scale': state[f'{theirs}.weight'],
    f'{ours}/bias': state[f'{theirs}.bias'],
  }


class TorchStep:
  """CLIP's training step in PyTorch: loss, gradients, clipping, fused AdamW.

  Attributes:
    model: the network.
    device: `cuda` where there is one, else `cpu`.
    compiled: whether torch.compile is used.
  """

  def __init__(
    self,
    config: DualEncoderConfig,
    optimizer: OptimizerConfig,
    batch: Mapping[str, np.ndarray],
    *,
    dtype: str,
    compiled: bool,
  ):
    self.device = 'cuda' if torch.cuda.is_available() else 'cpu'
    self.model = make_clip(config).to(self.device).train()
    self.compiled = compiled
    self._dtype = dtype
    self._clip_norm = optimizer.clip_norm
    if dtype == 'float32' and self.device == 'cuda':
      torch.set_float32_matmul_precision('high')  # TF32, as XLA takes it on such a GPU
    # matrices decay and vectors do not, as in ours
    named = [p for p in self.model.parameters() if p.requires_grad]
    groups = [
      {'params': [p for p in named if p.ndim >= 2], 'weight_decay': optimizer.weight_decay},
      {'params': [p for p in named if p.ndim < 2], 'weight_decay': 0.0},
    ]
    betas = (optimizer.b1, optimizer.b2)
    self._optimizer = torch.optim.AdamW(
      groups, lr=optimizer.lr, betas=betas, eps=optimizer.eps, fused=True
    )
    scale = 1 / (255 * np.asarray(config.image.std))
    shift = -np.asarray(config.image.mean) / np.asarray(config.image.std)
    self._scale = torch.tensor(scale, dtype=torch.float32, device=self.device)
    self._shift = torch.tensor(shift, dtype=torch.float32, device=self.device)
    self._image = torch.tensor(batch['image'], device=self.device)
    self._text = torch.tensor(batch['text'], device=self.device).long()
    self._loss = torch.compile(self._plain_loss) if compiled else self._plain_loss

  def _plain_loss(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    pixels = (image.float() * self._scale + self._shift).permute(0, 3, 1, 2)
    return self.model(input_ids=text, pixel_values=pixels, return_loss=True).loss

  def __call__(self) -> float:
    """Takes one step and waits for it. Returns the loss before it."""
    half = torch.autocast(self.device, torch.bfloat16)
    with half if self._dtype == 'bfloat16' else contextlib.nullcontext():
      loss = self._loss(self._image, self._text)
    self._optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._clip_norm)
    self._optimizer.step()
    if self.device == 'cuda':
      torch.cuda.synchronize()
    return float(loss.detach())

  @property
  def parameters(self) -> int:
    return sum(p.numel() for p in self.model.parameters())

  @property
  def peak_bytes(self) -> int | None:
    """Bytes of GPU memory at the peak; None on a CPU, whose allocator does not say."""
    return torch.cuda.max_memory_allocated() if self.device == 'cuda' else None

  def describe(self) -> dict[str, Any]:
    """What runs on this side."""
    return {
      'name': 'torch, transformers.CLIPModel',
      'attention': 'sdpa',
      'optimizer': 'torch.optim.AdamW(fused=True)',
      'compiled': self.compiled,
      'device': self.device,
    }
