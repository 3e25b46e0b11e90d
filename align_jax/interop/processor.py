"""The image processor of a folder as our transform: which pixels the model was trained on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align_jax.errors import UserError

_FILTERS = {2: 'bilinear', 3: 'bicubic'}  # Pillow's numbers
_FILE = 'preprocessor_config.json'
_WHOLE = 'processor_config.json'
_OPEN_CLIP = 'open_clip_config.json'
# what open_clip does where its config says nothing
_OPENAI = {
  'mean': (0.48145466, 0.4578275, 0.40821073),
  'std': (0.26862954, 0.26130258, 0.27577711),
}
_RESIZES = {'shortest': 'crop', 'squash': 'squash'}


def read_processor(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads `preprocessor_config.json` or `processor_config.json`, else OpenCLIP's `preprocess_cfg`.

  Returns: fields for `config.model.image` (image_size, mean, std) and for `config.data` (resize,
    interpolation, short_side); both empty where the folder has no such file.

  Raises:
    UserError: a processor that does something our transforms do not.
  """
  path = folder / _FILE
  if not path.is_file():
    # a processor for images and texts keeps that for images under a key of its own
    path = folder / _WHOLE
    if not path.is_file() or 'image_processor' not in _read(path):
      other = folder / _OPEN_CLIP
      return _open_clip(other) if other.is_file() else ({}, {})
  config = _read(path)
  config = config.get('image_processor', config)
  if not config.get('do_resize', True):
    raise UserError(f'{path}: do_resize is false; only processors that resize are supported')
  factor = config.get('rescale_factor', 1 / 255)
  if not config.get('do_rescale', True) or abs(factor * 255 - 1) > 1e-6:
    raise UserError(f'{path}: pixels are not rescaled by 1/255; that is not supported')
  filters = config.get('resample', 3)
  if filters not in _FILTERS:
    raise UserError(
      f'{path}: resample {filters} is not supported; bilinear (2) and bicubic (3) are'
    )
  size = config.get('size', 224)
  short = size if isinstance(size, int) else size.get('shortest_edge')
  data: dict[str, Any] = {'interpolation': _FILTERS[filters]}
  if short is not None:
    crop = _side(config.get('crop_size', short), path)
    if not config.get('do_center_crop', True):
      raise UserError(f'{path}: images are not made square; set do_center_crop')
    side = crop
    data |= {'resize': 'crop', 'short_side': 0 if short == crop else short}
  else:
    if config.get('do_center_crop'):
      raise UserError(f'{path}: a crop after a resize to a square is not supported')
    side = _side(size, path)
    data |= {'resize': 'squash', 'short_side': 0}
  image: dict[str, Any] = {'image_size': side}
  if config.get('do_normalize', True):
    image |= {k: tuple(config[f'image_{k}']) for k in ('mean', 'std') if f'image_{k}' in config}
  else:
    image |= {'mean': (0.0, 0.0, 0.0), 'std': (1.0, 1.0, 1.0)}
  return image, data


def _side(size: int | Mapping[str, int], path: Path) -> int:
  """The side of a square.

  Raises:
    UserError: it is none.
  """
  if isinstance(size, int):
    return size
  if size.get('height') != size.get('width') or not isinstance(size.get('height'), int):
    raise UserError(f'{path}: size {dict(size)} is not a square')
  return size['height']


def _open_clip(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
  config = _read(path).get('preprocess_cfg', {})
  filters, resize = config.get('interpolation', 'bicubic'), config.get('resize_mode', 'shortest')
  if filters not in _FILTERS.values() or resize not in _RESIZES:
    raise UserError(f'{path}: interpolation {filters}, resize_mode {resize} are not supported')
  image = {name: tuple(config.get(name) or values) for name, values in _OPENAI.items()}
  return image, {'interpolation': filters, 'resize': _RESIZES[resize], 'short_side': 0}


def _read(path: Path) -> dict[str, Any]:
  try:
    return dict(json.loads(path.read_bytes()))
  except (ValueError, TypeError) as error:
    raise UserError(f'{path}: not a group of settings in JSON ({error})') from error
