"""SigLIP and SigLIP 2 as `transformers` has them: `SiglipModel`, `SiglipVisionModel`."""

from pathlib import Path
from typing import Any

from align_jax.interop.architecture import Architecture, Fields, check_fields
from align_jax.interop.clip import encoder_layer, image_size, text_config, tower, vision_config
from align_jax.interop.rules import Rule, linear, norm
from align_jax.models.dual_encoder import DualEncoderConfig


def image_fields(config: Any, where: str) -> Fields:
  """Our fields of a `SiglipVisionConfig`."""
  shape = {'pool': 'map', 'positions': 'learned', 'pre_norm': False, 'patch_bias': True}
  return {**image_size(config, where), **tower(config, where), **shape}


def image_rules(theirs: str = '') -> list[Rule]:
  """The vision tower with its attention pooling; `theirs` stands before its names."""
  head = f'{theirs}head'
  joined = ('image/head/query', 'image/head/key_value')
  return [
    Rule(('image/position',), (f'{theirs}embeddings.position_embedding.weight',)),
    Rule(('image/patch_embed/kernel',), (f'{theirs}embeddings.patch_embedding.weight',), 'patches'),
    Rule(('image/patch_embed/bias',), (f'{theirs}embeddings.patch_embedding.bias',)),
    *encoder_layer('image', theirs),
    *norm('image/norm', f'{theirs}post_layernorm'),
    Rule(('image/head/probe',), (f'{head}.probe',), lead=1),
    Rule(
      tuple(f'{name}/kernel' for name in joined), (f'{head}.attention.in_proj_weight',), 'linear'
    ),
    Rule(tuple(f'{name}/bias' for name in joined), (f'{head}.attention.in_proj_bias',)),
    *linear('image/head/out', f'{head}.attention.out_proj'),
    *norm('image/head/norm', f'{head}.layernorm'),
    *linear('image/head/mlp/up', f'{head}.mlp.fc1'),
    *linear('image/head/mlp/down', f'{head}.mlp.fc2'),
  ]


def _read(folder: Path, config: Any) -> Fields:
  text, where = config.text_config, f'{folder}/config.json'
  return {
    'image': image_fields(config.vision_config, where),
    'text': {
      **tower(text, where),
      'vocab_size': text.vocab_size,
      'length': text.max_position_embeddings,
      'causal': False,
      'pool': 'last',
      'eot_id': text.eos_token_id,
      'pad_id': text.pad_token_id,
      'mask_padding': False,
    },
    'dim': text.projection_size or text.hidden_size,
    'image_projection': False,
    'projection_bias': True,
    'init_scale': 10.0,
    'init_bias': -10.0,
    'max_scale': 1000.0,  # published models stand above CLIP's bound of 100
  }


def rules(fields: Fields) -> list[Rule]:
  """The table of `SiglipModel`."""
  del fields  # the same for all sizes
  embeddings = 'text_model.embeddings'
  return [
    *image_rules('vision_model.'),
    Rule(('text/token',), (f'{embeddings}.token_embedding.weight',)),
    Rule(('text/position',), (f'{embeddings}.position_embedding.weight',)),
    *encoder_layer('text', 'text_model.'),
    *norm('text/norm', 'text_model.final_layer_norm'),
    *linear('text_projection', 'text_model.head'),
    Rule(('log_scale',), ('logit_scale',), lead=1),
    Rule(('logit_bias',), ('logit_bias',), lead=1),
  ]


def write(config: DualEncoderConfig) -> dict[str, Any]:
  """The config.json of a `SiglipModel`.

  Raises:
    UserError: a model that `SiglipModel` cannot hold.
  """
  image, text = config.image, config.text
  check_fields(
    'SiglipModel',
    {
      'image.pool': (image.pool, 'map'),
      'image.positions': (image.positions, 'learned'),
      'image.pre_norm': (image.pre_norm, False),
      'image.patch_bias': (image.patch_bias, True),
      'image.layer_scale': (image.layer_scale, False),
      'text.causal': (text.causal, False),
      'text.pool': (text.pool, 'last'),
      'text.bert': (text.bert, False),
      'text.mask_padding': (text.mask_padding, False),
      'image_projection': (config.image_projection, False),
      'projection_bias': (config.projection_bias, True),
      'init_bias': (config.init_bias is not None, True),
    },
  )
  return {
    'architectures': ['SiglipModel'],
    'model_type': 'siglip',
    'text_config': text_config(text) | {'projection_size': config.dim},
    'vision_config': vision_config(image),
  }


_BUFFERS = ('embeddings.position_ids',)
SIGLIP = Architecture('SiglipModel', _read, rules, unused=_BUFFERS, write=write)
SIGLIP_VISION = Architecture(
  'SiglipVisionModel',
  lambda folder, config: {'image': image_fields(config, f'{folder}/config.json')},
  lambda fields: image_rules(),
  prefixes=('vision_model.', ''),
  unused=(*_BUFFERS, 'text_model.', 'logit_'),
)
