"""OpenCLIP's own weights, `open_clip_config.json` with a safetensors file; CLIP's towers alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align_jax.errors import UserError
from align_jax.interop.architecture import Architecture, Fields
from align_jax.interop.rules import Rule, linear, norm

_KNOWN = {
  'vision_cfg': {'image_size', 'layers', 'width', 'patch_size', 'head_width', 'mlp_ratio'},
  'text_cfg': {'context_length', 'vocab_size', 'width', 'heads', 'layers', 'mlp_ratio'},
}
# names of what is on in CLIP anyway, or changes nothing about its function
_HARMLESS = {
  'hf_tokenizer_name',
  'tokenizer_kwargs',
  'patch_dropout',
  'ls_init_value',
  'output_tokens',
}


def _read(folder: Path, config: Mapping[str, Any]) -> Fields:
  where = f'{folder}/open_clip_config.json'
  model = config.get('model_cfg')
  if not isinstance(model, Mapping):
    raise UserError(f'{where}: no model_cfg in it; save the model with open_clip.push_to_hf_hub')
  vision, text = (_group(model, name, where) for name in _KNOWN)
  shared = {'activation': 'quick_gelu' if model.get('quick_gelu') else 'gelu', 'eps': 1e-5}
  width = vision.get('width', 768)
  return {
    'image': {
      **shared,
      'image_size': _whole(vision.get('image_size', 224), where),
      'patch': _whole(vision.get('patch_size', 16), where),
      'width': width,
      'depth': _whole(vision.get('layers', 12), where),
      'heads': width // vision.get('head_width', 64),
      'mlp_dim': int(width * vision.get('mlp_ratio', 4.0)),
      'pool': 'cls',
      'positions': 'learned',
      'pre_norm': True,
      'patch_bias': False,
    },
    'text': {
      **shared,
      'vocab_size': text.get('vocab_size', 49408),
      'length': text.get('context_length', 77),
      'width': text.get('width', 512),
      'depth': text.get('layers', 12),
      'heads': text.get('heads', 8),
      'mlp_dim': int(text.get('width', 512) * text.get('mlp_ratio', 4.0)),
      'causal': True,
      'pool': 'eot',
      # read where the id is highest: CLIP's end token is the last of the vocabulary
      'eot_id': text.get('vocab_size', 49408) - 1,
      'pad_id': 0,
      'mask_padding': False,
    },
    'dim': model['embed_dim'],
    'image_projection': True,
    'projection_bias': False,
    'init_scale': 1 / 0.07,
    'init_bias': None,
    'max_scale': 100.0,
  }


def _group(model: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
  """A tower's settings.

  Raises:
    UserError: one that makes it another tower than CLIP's.
  """
  group = model.get(name, {})
  odd = {k for k, v in group.items() if k not in _KNOWN[name] and v not in (None, False, 0.0)}
  if odd - _HARMLESS:
    raise UserError(
      f'{where}: {name}.{min(odd - _HARMLESS)} makes this another tower than CLIP; take the '
      'transformers version of the model'
    )
  return group


def _whole(value: Any, where: str) -> int:
  if not isinstance(value, int):
    raise UserError(f'{where}: {value!r} instead of one number; only plain ViTs are supported')
  return value


def _block(ours: str, theirs: str) -> list[Rule]:
  ours, theirs = f'{ours}/blocks/layer', f'{theirs}transformer.resblocks.{{i}}'
  qkv = f'{theirs}.attn.in_proj_'
  return [
    *norm(f'{ours}/norm1', f'{theirs}.ln_1'),
    Rule((f'{ours}/attention/qkv/kernel',), (f'{qkv}weight',), 'linear'),
    Rule((f'{ours}/attention/qkv/bias',), (f'{qkv}bias',)),
    *linear(f'{ours}/attention/out', f'{theirs}.attn.out_proj'),
    *norm(f'{ours}/norm2', f'{theirs}.ln_2'),
    *linear(f'{ours}/mlp/up', f'{theirs}.mlp.c_fc'),
    *linear(f'{ours}/mlp/down', f'{theirs}.mlp.c_proj'),
  ]


def rules(fields: Fields) -> list[Rule]:
  """The table of `open_clip.model.CLIP`; projections are kept as `[in, out]` there too."""
  del fields  # the same for all sizes
  return [
    Rule(('image/cls',), ('visual.class_embedding',)),
    Rule(('image/position',), ('visual.positional_embedding',)),
    Rule(('image/patch_embed/kernel',), ('visual.conv1.weight',), 'patches'),
    *norm('image/pre_norm', 'visual.ln_pre'),
    *_block('image', 'visual.'),
    *norm('image/norm', 'visual.ln_post'),
    Rule(('image_projection/kernel',), ('visual.proj',)),
    Rule(('text/token',), ('token_embedding.weight',)),
    Rule(('text/position',), ('positional_embedding',)),
    *_block('text', ''),
    *norm('text/norm', 'ln_final'),
    Rule(('text_projection/kernel',), ('text_projection',)),
    Rule(('log_scale',), ('logit_scale',)),
  ]


OPEN_CLIP = Architecture('open_clip', _read, rules, unused=('attn_mask',))
