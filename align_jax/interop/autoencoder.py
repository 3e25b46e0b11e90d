"""Autoencoders of `diffusers`: an `AutoencoderKL` folder in, its config.json and tensors out."""

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from safetensors import SafetensorError, safe_open

from align_jax.errors import UserError, did_you_mean
from align_jax.interop.architecture import Architecture, Fields
from align_jax.interop.rules import Rule, export_layer, import_layer, linear, norm, tensor_shapes
from align_jax.models.autoencoder import AutoencoderConfig
from align_jax.models.flat import Params

PREFIX = 'autoencoder/'  # before the names of one that a `Dit` holds
CONFIG = 'config.json'
WEIGHTS = 'diffusion_pytorch_model.safetensors'
_CLASS = 'AutoencoderKL'

# field of `AutoencoderKL` -> what it is where config.json does not say
_DEFAULTS: Mapping[str, Any] = {
  'in_channels': 3,
  'out_channels': 3,
  'down_block_types': ('DownEncoderBlock2D',),
  'up_block_types': ('UpDecoderBlock2D',),
  'block_out_channels': (64,),
  'layers_per_block': 1,
  'act_fn': 'silu',
  'latent_channels': 4,
  'norm_num_groups': 32,
  'sample_size': 32,
  'scaling_factor': 0.18215,
  'shift_factor': None,
  'latents_mean': None,
  'latents_std': None,
  'force_upcast': True,
  'use_quant_conv': True,
  'use_post_quant_conv': True,
  'mid_block_add_attention': True,
}
# field -> the values that our autoencoder can compute
_SUPPORTED: Mapping[str, tuple[Any, ...]] = {
  'in_channels': (3,),
  'out_channels': (3,),
  'act_fn': ('silu', 'swish'),
  'latents_mean': (None,),
  'latents_std': (None,),
}
# of the attention layer: the names there are now, and those of files published before 2023
_ATTENTION = ('to_q', 'to_k', 'to_v', 'to_out.0')
_OLD_ATTENTION = ('query', 'key', 'value', 'proj_attn')


def read_autoencoder(folder: Path) -> AutoencoderConfig:
  """Understands a folder; no weights are read.

  Raises:
    UserError: no config.json there, another class, or a setting that is not supported.
  """
  path = folder / CONFIG
  try:
    given = json.loads(path.read_bytes())
  except FileNotFoundError:
    raise UserError(f'{path}: missing; name the folder of an {_CLASS}, often called vae') from None
  except ValueError as error:
    raise UserError(f'{path}: not JSON ({error})') from error
  if not isinstance(given, dict) or given.get('_class_name') != _CLASS:
    kind = given.get('_class_name') if isinstance(given, dict) else None
    raise UserError(f'{path}: _class_name is {kind!r}; only {_CLASS} can be read')
  for name in given:
    if name not in _DEFAULTS and not name.startswith('_'):
      raise UserError(f'{path}: {name} is not supported{did_you_mean(name, _DEFAULTS)}')
  fields = {**_DEFAULTS, **{n: v for n, v in given.items() if n in _DEFAULTS}}
  for name, values in _SUPPORTED.items():
    if fields[name] not in values:
      may = ' or '.join(map(repr, values))
      raise UserError(f'{path}: {name}={fields[name]!r} is not supported, only {may}')
  widths = tuple(fields['block_out_channels'])
  for name, block in (
    ('down_block_types', 'DownEncoderBlock2D'),
    ('up_block_types', 'UpDecoderBlock2D'),
  ):
    kinds = fields[name]
    other = next((kind for kind in kinds if kind != block), None)
    if other is not None:
      raise UserError(f'{path}: {name} with {other!r} is not supported, only {block!r}')
    if len(kinds) != len(widths):
      raise UserError(f'{path}: {len(kinds)} {name}, but {len(widths)} block_out_channels')
  try:
    return AutoencoderConfig(
      widths=widths,
      blocks=fields['layers_per_block'],
      groups=fields['norm_num_groups'],
      latent_channels=fields['latent_channels'],
      attention=fields['mid_block_add_attention'],
      quant=fields['use_quant_conv'],
      post_quant=fields['use_post_quant_conv'],
      scale=float(fields['scaling_factor']),
      shift=float(fields['shift_factor'] or 0.0),
    )
  except UserError as error:
    raise UserError(f'{path}: {error}') from error


def read_fields(folder: Path, config: Any) -> Fields:
  """What a folder decides of a model that holds an autoencoder; the dtype is no matter of it."""
  del config  # transformers knows no autoencoders
  fields = dataclasses.asdict(read_autoencoder(folder))
  del fields['dtype']
  return {'autoencoder': fields}


def write_config(config: AutoencoderConfig) -> dict[str, Any]:
  """The config.json of an `AutoencoderKL`."""
  levels = len(config.widths)
  return {
    '_class_name': _CLASS,
    **_DEFAULTS,
    'down_block_types': ['DownEncoderBlock2D'] * levels,
    'up_block_types': ['UpDecoderBlock2D'] * levels,
    'block_out_channels': list(config.widths),
    'layers_per_block': config.blocks,
    'norm_num_groups': config.groups,
    'latent_channels': config.latent_channels,
    'mid_block_add_attention': config.attention,
    'use_quant_conv': config.quant,
    'use_post_quant_conv': config.post_quant,
    'scaling_factor': config.scale,
    'shift_factor': config.shift or None,
  }


def load_autoencoder(
  folder: Path,
  shapes: Mapping[str, Any],
  prefix: str = '',
  shardings: Mapping[str, NamedSharding] | None = None,
) -> Params:
  """Reads the weights of a folder.

  Args:
    folder: of an `AutoencoderKL`.
    shapes: of the parameters by name, of an `Autoencoder` or of a model that holds one.
    prefix: before the names of the autoencoder's in `shapes`: `autoencoder/` in a `Dit`.
    shardings: of them; None: NumPy arrays.

  Returns: float32 arrays by name, of the autoencoder alone.

  Raises:
    UserError: pickled weights alone, a file that is cut short, a tensor that is missing, of another
      shape or type, or that nothing here corresponds to.
  """
  config = read_autoencoder(folder)
  own = {n: tuple(s.shape) for n, s in shapes.items() if n.startswith(prefix)}
  with _open(folder) as (path, file):
    there = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    table = rules(config, prefix, old=any('.query.' in name for name in there))
    _check(path, table, there, own)

    def read(name: str) -> np.ndarray:
      kind = file.get_slice(name).get_dtype()
      if kind not in ('F64', 'F32', 'F16', 'BF16'):
        raise UserError(f'{path}: {name} is of type {kind}; floating-point numbers are wanted')
      # files from before 2023 keep attention's matrices as 1x1 convolutions, some of them
      tensor = np.asarray(file.get_tensor(name), np.float32)
      return tensor[..., 0, 0] if tensor.ndim == 4 and _is_matrix(name) else tensor

    out: Params = {}
    for rule in table:
      for name, value in zip(rule.ours, import_layer(rule, own, read, None), strict=True):
        out[name] = np.ascontiguousarray(value).reshape(own[name])
  if shardings is None:
    return out
  return {
    n: jax.make_array_from_callback(value.shape, shardings[n], value.__getitem__)
    for n, value in out.items()
  }


def export_autoencoder(
  config: AutoencoderConfig, params: Mapping[str, Any], prefix: str = ''
) -> dict[str, np.ndarray]:
  """Our weights under the names of an `AutoencoderKL`; the inverse of `load_autoencoder`.

  Args:
    config: of the autoencoder.
    params: by name, at least the autoencoder's.
    prefix: before their names.
  """
  out = {}
  for rule in rules(config, prefix):
    kernel = np.shape(params[rule.ours[0]])
    side = kernel[0] if rule.form == 'patches' else 1

    def read(name: str, layer: int | None) -> np.ndarray:
      del layer  # no parameter of an autoencoder is stacked
      value = np.asarray(params[name])
      return value.reshape(-1, value.shape[-1]) if value.ndim == 4 else value

    for name, tensor in export_layer(rule, read, None, side):
      out[name] = np.ascontiguousarray(tensor)
  return out


def rules(config: AutoencoderConfig, prefix: str = '', *, old: bool = False) -> list[Rule]:
  """The table of `AutoencoderKL`.

  Args:
    config: which of its layers there are.
    prefix: before our names.
    old: attention has the names it had before 2023.
  """
  out: list[Rule] = []
  levels = len(config.widths)
  if config.quant:
    out += _conv(f'{prefix}quant', 'quant_conv')
  if config.post_quant:
    out += _conv(f'{prefix}post_quant', 'post_quant_conv')
  for half, theirs, blocks, move in (
    ('encoder', 'down_blocks', config.blocks, ('down', 'downsamplers')),
    ('decoder', 'up_blocks', config.blocks + 1, ('up', 'upsamplers')),
  ):
    widths = config.widths if half == 'encoder' else config.widths[::-1]
    ours = f'{prefix}{half}'
    out += _conv(f'{ours}/conv_in', f'{half}.conv_in')
    out += norm(f'{ours}/norm', f'{half}.conv_norm_out')
    out += _conv(f'{ours}/conv_out', f'{half}.conv_out')
    out += _residual(f'{ours}/middle/before', f'{half}.mid_block.resnets.0')
    out += _residual(f'{ours}/middle/after', f'{half}.mid_block.resnets.1')
    if config.attention:
      out += _attention(f'{ours}/middle/attention', f'{half}.mid_block.attentions.0', old=old)
    for level in range(levels):
      for block in range(blocks):
        changes = block == 0 and level > 0 and widths[level] != widths[level - 1]
        out += _residual(
          f'{ours}/levels/{level}/residual/{block}',
          f'{half}.{theirs}.{level}.resnets.{block}',
          shortcut=changes,
        )
      if level < levels - 1:
        out += _conv(
          f'{ours}/levels/{level}/{move[0]}', f'{half}.{theirs}.{level}.{move[1]}.0.conv'
        )
  return out


def _conv(ours: str, theirs: str) -> list[Rule]:
  """A convolution; import and export see its kernel without the axes of its window."""
  kernel = Rule((f'{ours}/kernel',), (f'{theirs}.weight',), 'patches')
  return [kernel, Rule((f'{ours}/bias',), (f'{theirs}.bias',))]


def _residual(ours: str, theirs: str, *, shortcut: bool = False) -> list[Rule]:
  out = [*norm(f'{ours}/norm1', f'{theirs}.norm1'), *_conv(f'{ours}/conv1', f'{theirs}.conv1')]
  out += [*norm(f'{ours}/norm2', f'{theirs}.norm2'), *_conv(f'{ours}/conv2', f'{theirs}.conv2')]
  return out + (_conv(f'{ours}/shortcut', f'{theirs}.conv_shortcut') if shortcut else [])


def _attention(ours: str, theirs: str, *, old: bool) -> list[Rule]:
  *parts, after = (f'{theirs}.{name}' for name in (_OLD_ATTENTION if old else _ATTENTION))
  return [
    *norm(f'{ours}/norm', f'{theirs}.group_norm'),
    *linear(f'{ours}/qkv', *parts),
    *linear(f'{ours}/out', after),
  ]


def _is_matrix(name: str) -> bool:
  return any(f'.{part}.weight' in name for part in (*_ATTENTION, *_OLD_ATTENTION))


def _check(
  path: Path,
  table: list[Rule],
  there: Mapping[str, tuple[int, ...]],
  shapes: Mapping[str, tuple[int, ...]],
) -> None:
  """Compares what is there with what should be, before anything is read."""
  known = set()
  for rule in table:
    for name in rule.ours:
      if name not in shapes:
        raise UserError(f'{path}: holds {rule.theirs[0]}, which this model has no {name} for')
    kernel = shapes[rule.ours[0]]
    side = kernel[0] if rule.form == 'patches' else 1
    flat = {n: (math.prod(shapes[n][:-1]), shapes[n][-1]) for n in rule.ours}
    expected = tensor_shapes(rule, flat if rule.form == 'patches' else shapes, side)
    for name, shape in zip(rule.theirs, expected, strict=True):
      known.add(name)
      if name not in there:
        raise UserError(
          f'{path}: no tensor {name!r} of shape {shape}, which an {_CLASS} of this config.json '
          f'has{did_you_mean(name, there)}'
        )
      found = there[name]
      if found != shape and not (_is_matrix(name) and found == (*shape, 1, 1)):
        raise UserError(f'{path}: {name} has shape {found}, but config.json asks for {shape}')
  extra = set(there) - known
  if extra:
    more = f' and {len(extra) - 1} more' if len(extra) > 1 else ''
    raise UserError(f'{path}: {min(extra)}{more} has no place in an {_CLASS} of this config.json')


@contextlib.contextmanager
def _open(folder: Path) -> Iterator[tuple[Path, Any]]:
  """The weights file, open."""
  path = folder / WEIGHTS
  if not path.is_file():
    if next((p for pattern in ('*.bin', '*.pt', '*.ckpt') for p in folder.glob(pattern)), None):
      raise UserError(
        f'{folder}: holds pickled weights alone, which can run code and are never loaded; save the '
        'model again with safe_serialization=True'
      )
    raise UserError(f'{path}: missing; name a folder saved with save_pretrained')
  try:
    with safe_open(path, framework='np') as file:
      yield path, file
  except SafetensorError as error:
    raise UserError(f'{path}: cannot be read ({error}); copy the file again') from error


AUTOENCODER_KL = Architecture(
  _CLASS,
  read_fields,
  lambda fields: rules(AutoencoderConfig(**fields['autoencoder']), PREFIX),
)
