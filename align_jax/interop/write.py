"""A folder that `transformers` loads: config, weights in shards, tokenizer, image processor."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from align_jax.data.chat import Chat
from align_jax.data.tokenizer import Tokenizer
from align_jax.data.transforms import Transform
from align_jax.errors import UserError
from align_jax.interop import llava
from align_jax.interop.architecture import Architecture
from align_jax.interop.clip import CLIP
from align_jax.interop.rules import Rule, export_layer, layers, name_at, numbers, tensor_shapes
from align_jax.interop.siglip import SIGLIP
from align_jax.interop.tensors import INDEX
from align_jax.interop.track import Merged, Track
from align_jax.models.dual_encoder import DualEncoderConfig
from align_jax.models.multimodal import MultimodalConfig

ExportDtype = Literal['float32', 'bfloat16', 'float16']
DTYPES: Mapping[ExportDtype, Any] = {
  'float32': np.float32,
  'bfloat16': ml_dtypes.bfloat16,
  'float16': np.float16,
}
SHARD_BYTES = 5_000_000_000
_RESAMPLE = {'bilinear': 2, 'bicubic': 3}


def architecture_of(config: DualEncoderConfig) -> Architecture:
  """The architecture of `transformers` that a model is of: SigLIP where it pools by attention."""
  return SIGLIP if config.image.pool == 'map' else CLIP


def write_model(
  folder: Path,
  config: DualEncoderConfig,
  track: Track,
  tokenizer: Tokenizer,
  transform: Transform,
  length: int,
  *,
  dtype: ExportDtype = 'float32',
  shard_bytes: int = SHARD_BYTES,
) -> list[str]:
  """Writes everything but the card.

  Args:
    folder: an empty one.
    config: of a plain track, see `track.plain_config`.
    track: its parameters.
    tokenizer, transform, length: what texts and images go through; tokens of a text.
    dtype: of the weights in the file.
    shard_bytes: at most so many in a file; one file's worth is held in memory.

  Returns: the names of the tensors.

  Raises:
    UserError: a model that `transformers` has no class for.
  """
  architecture = architecture_of(config)
  assert architecture.write is not None
  description = architecture.write(config) | {'dtype': dtype}
  check_transform(config, transform)
  rules = list(architecture.rules({}))
  names = _write_weights(folder, rules, track, config.image.patch, dtype, shard_bytes)
  write_json(folder / 'config.json', description)
  tokenizer.save(folder)
  _describe_tokenizer(folder / 'tokenizer_config.json', length)
  write_json(folder / 'preprocessor_config.json', processor_json(config, transform))
  return names


def write_llava(
  folder: Path,
  config: MultimodalConfig,
  track: Merged,
  chat: Chat,
  transform: Transform,
  *,
  dtype: ExportDtype = 'float32',
  shard_bytes: int = SHARD_BYTES,
) -> list[str]:
  """Writes a `LlavaForConditionalGeneration` with its processor; everything but the card.

  Args:
    folder: an empty one.
    config: of the model.
    track: its parameters, adapters merged.
    chat: tokenizer and template.
    transform: what images go through.
    dtype, shard_bytes: see `write_model`.

  Returns: the names of the tensors.

  Raises:
    UserError: a model that `transformers` has no class for.
  """
  description = llava.write(config) | {'dtype': dtype}
  ends = {'eos_token_id': chat.end_id, 'pad_token_id': chat.pad_id}
  description['text_config'] |= {**ends, 'bos_token_id': None, 'dtype': dtype}
  rules = llava.rules(dataclasses.asdict(config))
  names = _write_weights(folder, rules, track, config.image.patch, dtype, shard_bytes)
  write_json(folder / 'config.json', description)
  write_json(folder / 'generation_config.json', ends)
  chat.save(folder)
  write_json(folder / 'preprocessor_config.json', processor_json(config, transform))
  processor = {
    'processor_class': 'LlavaProcessor',
    'image_token': chat.template.image_token,
    'patch_size': config.image.patch,
    'vision_feature_select_strategy': description['vision_feature_select_strategy'],
    'num_additional_image_tokens': int(config.image.pool == 'cls'),
  }
  write_json(folder / 'processor_config.json', processor)
  return names


def _shapes(rules: list[Rule], track: Merged, patch: int) -> Iterator[tuple[str, tuple[int, ...]]]:
  """Every tensor's name and shape, in the order that `_tensors` reads them."""
  for rule in rules:
    count = layers(rule, track.shapes)
    for layer in range(count) if count is not None else (None,):
      shapes = tensor_shapes(rule, track.shapes, patch)
      for name, shape in zip(rule.theirs, shapes, strict=True):
        yield name_at(name, layer), shape


def check_transform(config: DualEncoderConfig, transform: Transform) -> None:
  """Refuses what no image processor of the architecture does.

  Raises:
    UserError: CLIP's processor crops, SigLIP's does not.
  """
  wanted = 'squash' if config.image.pool == 'map' else 'crop'
  if transform.resize != wanted:
    raise UserError(
      f'config.data.resize: {transform.resize!r}, but the image processor of a '
      f'{architecture_of(config).name} does {wanted!r}; set it before training'
    )


def processor_json(
  config: DualEncoderConfig | MultimodalConfig, transform: Transform
) -> dict[str, Any]:
  """`preprocessor_config.json`: our evaluation transform in the words of `transformers`."""
  side = {'height': transform.image_size, 'width': transform.image_size}
  crops = transform.resize == 'crop'
  size = {'shortest_edge': transform.short_side or transform.image_size} if crops else side
  return {
    'image_processor_type': 'CLIPImageProcessor' if crops else 'SiglipImageProcessor',
    'do_convert_rgb': True,
    'do_resize': True,
    'size': size,
    'resample': _RESAMPLE[transform.interpolation],
    **({'do_center_crop': True, 'crop_size': side} if crops else {}),
    'do_rescale': True,
    'rescale_factor': 1 / 255,
    'do_normalize': True,
    'image_mean': list(config.image.mean),
    'image_std': list(config.image.std),
  }


def _write_weights(
  folder: Path, rules: list[Rule], track: Merged, patch: int, dtype: ExportDtype, limit: int
) -> list[str]:
  """Writes the tensors, a file's worth at a time."""
  size = np.dtype(DTYPES[dtype]).itemsize
  named = [(name, numbers(shape) * size) for name, shape in _shapes(rules, track, patch)]
  groups: list[list[str]] = [[]]
  held = 0
  for name, count in named:
    if groups[-1] and held + count > limit:
      groups.append([])
      held = 0
    groups[-1].append(name)
    held += count
  files = [f'model-{i + 1:05d}-of-{len(groups):05d}.safetensors' for i in range(len(groups))]
  if len(groups) == 1:
    files = ['model.safetensors']
  stream = _tensors(rules, track, patch)
  for file, names in zip(files, groups, strict=True):
    held_tensors = {}
    for wanted in names:
      name, tensor = next(stream)
      assert name == wanted
      # a copy in their order: what is written are the bytes in memory
      held_tensors[name] = np.array(tensor, dtype=DTYPES[dtype], order='C')
    save_file(held_tensors, folder / file, metadata={'format': 'pt'})
  if len(groups) > 1:
    total = sum(count for _, count in named)
    placed = {name: file for file, names in zip(files, groups, strict=True) for name in names}
    write_json(folder / INDEX, {'metadata': {'total_size': total}, 'weight_map': placed})
  return [name for name, _ in named]


def _tensors(rules: list[Rule], track: Merged, patch: int) -> Iterator[tuple[str, np.ndarray]]:
  for rule in rules:
    count = layers(rule, track.shapes)
    for layer in range(count) if count is not None else (None,):
      yield from export_layer(rule, track.read, layer, patch)


def _describe_tokenizer(path: Path, length: int) -> None:
  """Adds what `transformers` must know to encode as we do."""
  described = json.loads(path.read_bytes())
  described |= {'model_max_length': length, 'padding_side': 'right', 'truncation_side': 'right'}
  write_json(path, described)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
  """Writes a file of JSON as `transformers` formats it."""
  path.write_text(json.dumps(content, indent=2) + '\n')
