"""CLIP as `transformers` has it: `CLIPModel`, `CLIPVisionModel`."""

from pathlib import Path
from typing import Any

from align_jax.errors import UserError
from align_jax.interop.architecture import (
  Architecture,
  Fields,
  activation,
  check_fields,
  their_activation,
)
from align_jax.interop.rules import Rule, linear, norm
from align_jax.models.dual_encoder import DualEncoderConfig
from align_jax.models.text import TextConfig
from align_jax.models.vit import VitConfig

_LEGACY_EOT = 2  # in configs from before `transformers` read `eos_token_id`


def encoder_layer(ours: str, theirs: str) -> list[Rule]:
  """A block of CLIP and of SigLIP."""
  ours, theirs = f'{ours}/blocks/layer', f'{theirs}encoder.layers.{{i}}'
  query_key_value = [f'{theirs}.self_attn.{part}_proj' for part in 'qkv']
  return [
    *norm(f'{ours}/norm1', f'{theirs}.layer_norm1'),
    *linear(f'{ours}/attention/qkv', *query_key_value),
    *linear(f'{ours}/attention/out', f'{theirs}.self_attn.out_proj'),
    *norm(f'{ours}/norm2', f'{theirs}.layer_norm2'),
    *linear(f'{ours}/mlp/up', f'{theirs}.mlp.fc1'),
    *linear(f'{ours}/mlp/down', f'{theirs}.mlp.fc2'),
  ]


def tower(config: Any, where: str, mlp_dim: int | None = None) -> Fields:
  """The fields that all towers have in common; `mlp_dim` where their config does not say it."""
  return {
    'width': config.hidden_size,
    'depth': config.num_hidden_layers,
    'heads': config.num_attention_heads,
    'mlp_dim': config.intermediate_size if mlp_dim is None else mlp_dim,
    'activation': activation(config.hidden_act, where),
    'eps': config.layer_norm_eps,
  }


def image_size(config: Any, where: str) -> Fields:
  """The fields about pixels.

  Raises:
    UserError: images that are not square or have other than three channels.
  """
  if getattr(config, 'num_channels', 3) != 3:
    raise UserError(f'{where}: {config.num_channels} channels; only images of 3 are supported')
  size, patch = config.image_size, config.patch_size
  if not isinstance(size, int) or not isinstance(patch, int):
    raise UserError(f'{where}: image_size {size}, patch_size {patch}; only squares are supported')
  fields = {'image_size': size, 'patch': patch}
  return fields | ({'drop_edge': True} if size % patch else {})


def image_fields(config: Any, where: str) -> Fields:
  """Our fields of a `CLIPVisionConfig`."""
  shape = {'pool': 'cls', 'positions': 'learned', 'pre_norm': True, 'patch_bias': False}
  return {**image_size(config, where), **tower(config, where), **shape}


def image_rules(theirs: str = '') -> list[Rule]:
  """The vision tower; `theirs` stands before its names."""
  embeddings = f'{theirs}embeddings'
  return [
    Rule(('image/cls',), (f'{embeddings}.class_embedding',)),
    Rule(('image/position',), (f'{embeddings}.position_embedding.weight',)),
    Rule(('image/patch_embed/kernel',), (f'{embeddings}.patch_embedding.weight',), 'patches'),
    *norm('image/pre_norm', f'{theirs}pre_layrnorm'),
    *encoder_layer('image', theirs),
    *norm('image/norm', f'{theirs}post_layernorm'),
  ]


def _read(folder: Path, config: Any) -> Fields:
  text = config.text_config
  where = f'{folder}/config.json'
  # OpenAI's configs say 2 and mean the token of the highest id, which comes last in the vocabulary
  legacy = text.eos_token_id == _LEGACY_EOT
  return {
    'image': image_fields(config.vision_config, where),
    'text': {
      **tower(text, where),
      'vocab_size': text.vocab_size,
      'length': text.max_position_embeddings,
      'causal': True,
      'pool': 'eot',
      'eot_id': text.vocab_size - 1 if legacy else text.eos_token_id,
      'pad_id': text.pad_token_id,
      'mask_padding': False,
    },
    'dim': config.projection_dim,
    'image_projection': True,
    'projection_bias': False,
    'init_scale': 1 / 0.07,
    'init_bias': None,
    'max_scale': 100.0,
  }


def rules(fields: Fields) -> list[Rule]:
  """The table of `CLIPModel`."""
  del fields  # the same for all sizes
  embeddings = 'text_model.embeddings'
  return [
    *image_rules('vision_model.'),
    *linear('image_projection', 'visual_projection', bias=False),
    Rule(('text/token',), (f'{embeddings}.token_embedding.weight',)),
    Rule(('text/position',), (f'{embeddings}.position_embedding.weight',)),
    *encoder_layer('text', 'text_model.'),
    *norm('text/norm', 'text_model.final_layer_norm'),
    *linear('text_projection', 'text_projection', bias=False),
    Rule(('log_scale',), ('logit_scale',)),
  ]


def write(config: DualEncoderConfig) -> dict[str, Any]:
  """The config.json of a `CLIPModel`.

  Raises:
    UserError: a model that `CLIPModel` cannot hold.
  """
  image, text = config.image, config.text
  check_fields(
    'CLIPModel',
    {
      'image.pool': (image.pool, 'cls'),
      'image.positions': (image.positions, 'learned'),
      'image.pre_norm': (image.pre_norm, True),
      'image.patch_bias': (image.patch_bias, False),
      'image.layer_scale': (image.layer_scale, False),
      'text.causal': (text.causal, True),
      'text.pool': (text.pool, 'eot'),
      'text.bert': (text.bert, False),
      'image_projection': (config.image_projection, True),
      'projection_bias': (config.projection_bias, False),
    },
  )
  if text.eot_id == _LEGACY_EOT:
    raise UserError(
      f'config.model.text.eot_id: CLIPModel takes an end token of id {_LEGACY_EOT} for another; '
      'train with another tokenizer'
    )
  return {
    'architectures': ['CLIPModel'],
    'model_type': 'clip',
    'projection_dim': config.dim,
    'text_config': text_config(text) | {'projection_dim': config.dim},
    'vision_config': vision_config(image) | {'projection_dim': config.dim},
  }


def text_config(text: TextConfig) -> dict[str, Any]:
  """The part about texts, of CLIP and SigLIP."""
  special = {'pad_token_id': text.pad_id, 'eos_token_id': text.eot_id, 'bos_token_id': None}
  size = {'vocab_size': text.vocab_size, 'max_position_embeddings': text.length}
  return _tower_config(text) | size | special


def vision_config(image: VitConfig) -> dict[str, Any]:
  """The part about images, of CLIP and SigLIP."""
  return _tower_config(image) | {'image_size': image.image_size, 'patch_size': image.patch}


def _tower_config(config: VitConfig | TextConfig) -> dict[str, Any]:
  return {
    'hidden_size': config.width,
    'num_hidden_layers': config.depth,
    'num_attention_heads': config.heads,
    'intermediate_size': config.mlp_dim,
    'hidden_act': their_activation(config.activation),
    'layer_norm_eps': config.eps,
  }


CLIP = Architecture('CLIPModel', _read, rules, unused=('embeddings.position_ids',), write=write)
CLIP_VISION = Architecture(
  'CLIPVisionModel',
  lambda folder, config: {'image': image_fields(config, f'{folder}/config.json')},
  lambda fields: image_rules(),
  prefixes=('vision_model.', ''),
  # what a folder of the whole model, or one with a projection, has besides
  unused=(
    'embeddings.position_ids',
    'visual_projection',
    'text_model.',
    'text_projection',
    'logit_',
  ),
)
