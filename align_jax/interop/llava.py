"""LLaVA as `transformers` has it: CLIP's or SigLIP's tower before a Llama or a Qwen2."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align_jax.errors import UserError, did_you_mean
from align_jax.interop import clip, siglip
from align_jax.interop.architecture import (
  Architecture,
  Fields,
  activation,
  check_fields,
  their_activation,
)
from align_jax.interop.rules import Rule, linear
from align_jax.models.decoder import DecoderConfig
from align_jax.models.multimodal import MultimodalConfig

_TOWERS = {'clip_vision_model': clip, 'siglip_vision_model': siglip}
_DECODERS = ('llama', 'qwen2')
_VISION, _TEXT = 'vision_tower.', 'language_model.model.'


def decoder_fields(config: Any, where: str) -> Fields:
  """Our fields of a `LlamaConfig` or `Qwen2Config`.

  Raises:
    UserError: another decoder, or something that ours does not do.
  """
  kind = config.model_type
  if kind not in _DECODERS:
    raise UserError(f'{where}: decoder {kind!r} is not supported{did_you_mean(kind, _DECODERS)}')
  if config.hidden_act != 'silu':
    raise UserError(f'{where}: activation {config.hidden_act!r}; only silu is supported')
  if getattr(config, 'mlp_bias', False):
    raise UserError(f'{where}: biases in the MLP are not supported')
  if kind == 'llama' and config.attention_bias:
    raise UserError(f'{where}: attention_bias puts one on the last layer too: not supported')
  if getattr(config, 'use_sliding_window', False):
    raise UserError(f'{where}: sliding windows are not supported; set use_sliding_window to false')
  heads = config.num_attention_heads
  return {
    'vocab_size': config.vocab_size,
    'width': config.hidden_size,
    'depth': config.num_hidden_layers,
    'heads': heads,
    'kv_heads': config.num_key_value_heads or heads,
    'head_dim': getattr(config, 'head_dim', None) or config.hidden_size // heads,
    'mlp_dim': config.intermediate_size,
    'qkv_bias': kind == 'qwen2',
    'eps': config.rms_norm_eps,
    **_rope_fields(config.rope_parameters, where),
  }


def _rope_fields(rope: Any, where: str) -> Fields:
  kind = rope.get('rope_type', 'default')
  if kind == 'default':
    return {'rope_base': float(rope['rope_theta']), 'rope_scaling': None}
  if kind != 'llama3':
    raise UserError(f'{where}: rotary positions of type {kind!r}; default and llama3 are supported')
  return {
    'rope_base': float(rope['rope_theta']),
    'rope_scaling': {
      'factor': rope['factor'],
      'low': rope['low_freq_factor'],
      'high': rope['high_freq_factor'],
      'length': rope['original_max_position_embeddings'],
    },
  }


def _read(folder: Path, config: Any) -> Fields:
  where = f'{folder}/config.json'
  vision = config.vision_config
  if vision.model_type not in _TOWERS:
    raise UserError(
      f'{where}: vision tower {vision.model_type!r} is not supported'
      f'{did_you_mean(vision.model_type, _TOWERS)}'
    )
  is_clip = vision.model_type == 'clip_vision_model'
  strategy = config.vision_feature_select_strategy
  if strategy != ('default' if is_clip else 'full'):
    raise UserError(
      f'{where}: vision_feature_select_strategy {strategy!r}; only default, without the class '
      'token, for CLIP and full for SigLIP are supported'
    )
  layer, depth = config.vision_feature_layer, vision.num_hidden_layers
  if not isinstance(layer, int):
    raise UserError(f'{where}: vision_feature_layer {layer}; only one layer is supported')
  # hidden state 0 is what comes before the first block
  last = layer if layer >= 0 else depth + 1 + layer
  image = _TOWERS[vision.model_type].image_fields(vision, where)
  if not is_clip:
    image['pool'] = 'mean'  # the head that pools is not read
  return {
    'image': image | {'depth': last},
    'decoder': {
      **decoder_fields(config.text_config, where),
      'tied': bool(config.tie_word_embeddings),
    },
    'image_id': config.image_token_id,
    'image_norm': False,
    'projector_activation': activation(config.projector_hidden_act, where),
    'projector_bias': config.multimodal_projector_bias,
    'length': config.text_config.max_position_embeddings,
  }


def decoder_rules(fields: Fields, ours: str, theirs: str, head: str) -> list[Rule]:
  """The table of a decoder; `ours` and `theirs` stand before the names."""
  block, layer = f'{ours}blocks/layer', f'{theirs}layers.{{i}}'
  bias = bool(fields['qkv_bias'])
  attention = [
    rule
    for name, part in (('query', 'q'), ('key', 'k'), ('value', 'v'))
    for rule in linear(f'{block}/attention/{name}', f'{layer}.self_attn.{part}_proj', bias=bias)
  ]
  return [
    Rule((f'{ours}token',), (f'{theirs}embed_tokens.weight',)),
    Rule((f'{block}/norm1/scale',), (f'{layer}.input_layernorm.weight',)),
    *attention,
    *linear(f'{block}/attention/out', f'{layer}.self_attn.o_proj', bias=False),
    Rule((f'{block}/norm2/scale',), (f'{layer}.post_attention_layernorm.weight',)),
    *linear(f'{block}/mlp/gate', f'{layer}.mlp.gate_proj', bias=False),
    *linear(f'{block}/mlp/up', f'{layer}.mlp.up_proj', bias=False),
    *linear(f'{block}/mlp/down', f'{layer}.mlp.down_proj', bias=False),
    Rule((f'{ours}norm/scale',), (f'{theirs}norm.weight',)),
    *([] if fields['tied'] else linear(f'{ours}head', head, bias=False)),
  ]


def rules(fields: Fields) -> list[Rule]:
  """The table of `LlavaForConditionalGeneration`."""
  vision = clip if fields['image']['pool'] == 'cls' else siglip
  bias = bool(fields['projector_bias'])
  return [
    *(
      rule
      for rule in vision.image_rules(_VISION)
      if not rule.ours[0].startswith('image/head/')  # SigLIP's pooling
    ),
    *linear('projector/first', 'multi_modal_projector.linear_1', bias=bias),
    *linear('projector/second', 'multi_modal_projector.linear_2', bias=bias),
    *decoder_rules(fields['decoder'], 'decoder/', _TEXT, 'language_model.lm_head'),
  ]


def _unread(fields: Fields) -> Sequence[str]:
  """Blocks of the tower after the one that is read, and a head that repeats the token table."""
  depth = fields['image']['depth']
  later = [f'{_VISION}encoder.layers.{i}.' for i in range(depth, depth + 64)]
  return [*later, *(['language_model.lm_head.'] if fields['decoder']['tied'] else [])]


def write(config: MultimodalConfig) -> dict[str, Any]:
  """The config.json of a `LlavaForConditionalGeneration`.

  Raises:
    UserError: a model that it cannot hold.
  """
  image = config.image
  is_clip = image.pool == 'cls'
  check_fields(
    'LlavaForConditionalGeneration',
    {
      'image.pool': (image.pool, 'cls' if is_clip else 'mean'),
      'image.positions': (image.positions, 'learned'),
      'image.pre_norm': (image.pre_norm, is_clip),
      'image.patch_bias': (image.patch_bias, not is_clip),
      'image.layer_scale': (image.layer_scale, False),
      'image_norm': (config.image_norm, False),
    },
  )
  kind = 'clip_vision_model' if is_clip else 'siglip_vision_model'
  vision = clip.vision_config(image) | {'model_type': kind}
  if not is_clip:
    vision['vision_use_head'] = False
  return {
    'architectures': ['LlavaForConditionalGeneration'],
    'model_type': 'llava',
    'vision_config': vision,
    'text_config': decoder_config(config.decoder) | {'max_position_embeddings': config.length},
    'image_token_index': config.image_id,
    'image_seq_length': image.patches,
    'projector_hidden_act': their_activation(config.projector_activation),
    'multimodal_projector_bias': config.projector_bias,
    'vision_feature_layer': -1,
    'vision_feature_select_strategy': 'default' if is_clip else 'full',
    'tie_word_embeddings': config.decoder.tied,
  }


def decoder_config(config: DecoderConfig) -> dict[str, Any]:
  """The part about the decoder."""
  rope: dict[str, Any] = {'rope_type': 'default', 'rope_theta': config.rope_base}
  if config.rope_scaling is not None:
    rope |= {
      'rope_type': 'llama3',
      'factor': config.rope_scaling.factor,
      'low_freq_factor': config.rope_scaling.low,
      'high_freq_factor': config.rope_scaling.high,
      'original_max_position_embeddings': config.rope_scaling.length,
    }
  return {
    'model_type': 'qwen2' if config.qkv_bias else 'llama',
    'vocab_size': config.vocab_size,
    'hidden_size': config.width,
    'num_hidden_layers': config.depth,
    'num_attention_heads': config.heads,
    'num_key_value_heads': config.kv_heads,
    'head_dim': config.head_dim,
    'intermediate_size': config.mlp_dim,
    'hidden_act': 'silu',
    'rms_norm_eps': config.eps,
    'rope_parameters': rope,
    'tie_word_embeddings': config.tied,
  }


LLAVA = Architecture(
  'LlavaForConditionalGeneration',
  _read,
  rules,
  unused=('embeddings.position_ids', 'rotary_emb.inv_freq', f'{_VISION}head.'),
  unread=_unread,
  aliases=(
    # as published, and as `transformers` 5 names them in memory
    ('vision_tower.vision_model.', _VISION),
    ('model.vision_tower.', _VISION),
    ('model.multi_modal_projector.', 'multi_modal_projector.'),
    ('model.language_model.', _TEXT),
    ('lm_head.', 'language_model.lm_head.'),
  ),
)
