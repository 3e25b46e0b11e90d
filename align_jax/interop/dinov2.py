"""DINOv2's vision tower, `Dinov2Model`; its embedding is the class token."""

from pathlib import Path
from typing import Any

from align_jax.errors import UserError
from align_jax.interop.architecture import Architecture, Fields
from align_jax.interop.clip import image_size, tower
from align_jax.interop.rules import Rule, linear, norm


def _read(folder: Path, config: Any) -> Fields:
  where = f'{folder}/config.json'
  if config.use_swiglu_ffn:
    raise UserError(
      f'{where}: use_swiglu_ffn (the giant size) is not supported; take a smaller one'
    )
  if not config.qkv_bias:
    raise UserError(f'{where}: qkv_bias=false is not supported')
  return {
    'image': {
      **image_size(config, where),
      **tower(config, where, mlp_dim=int(config.hidden_size * config.mlp_ratio)),
      'pool': 'cls',
      'positions': 'learned',
      'pre_norm': False,
      'patch_bias': True,
      'layer_scale': True,
    }
  }


def rules(fields: Fields) -> list[Rule]:
  """The table of `Dinov2Model`."""
  del fields  # the same for all sizes
  ours, theirs = 'image/blocks/layer', 'encoder.layer.{i}'
  patches = 'embeddings.patch_embeddings.projection'
  attention = f'{theirs}.attention'
  query_key_value = [f'{attention}.attention.{part}' for part in ('query', 'key', 'value')]
  return [
    Rule(('image/cls',), ('embeddings.cls_token',), lead=2),
    Rule(('image/position',), ('embeddings.position_embeddings',), lead=1),
    Rule(('image/patch_embed/kernel',), (f'{patches}.weight',), 'patches'),
    Rule(('image/patch_embed/bias',), (f'{patches}.bias',)),
    *norm(f'{ours}/norm1', f'{theirs}.norm1'),
    *linear(f'{ours}/attention/qkv', *query_key_value),
    *linear(f'{ours}/attention/out', f'{attention}.output.dense'),
    Rule((f'{ours}/scale1',), (f'{theirs}.layer_scale1.lambda1',)),
    *norm(f'{ours}/norm2', f'{theirs}.norm2'),
    *linear(f'{ours}/mlp/up', f'{theirs}.mlp.fc1'),
    *linear(f'{ours}/mlp/down', f'{theirs}.mlp.fc2'),
    Rule((f'{ours}/scale2',), (f'{theirs}.layer_scale2.lambda1',)),
    *norm('image/norm', 'layernorm'),
  ]


DINOV2 = Architecture(
  'Dinov2Model', _read, rules, prefixes=('dinov2.', ''), unused=('mask_token', 'classifier.')
)
