"""Where weights come from: `config.model.init`, a run folder or Hugging Face folders.

What the config leaves open of the model (a field that is missing or None) is as it is there. A
model that answers may also start from an image tower alone, as LLaVA does from CLIP's: that of a
dual encoder's run, or of a folder of a vision model. If it has `image_lora`, the adapters of the
run's generated track come along, as GMAIL's second stage needs them.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax.sharding import NamedSharding

from align_jax.config import build
from align_jax.errors import UserError
from align_jax.interop.folder import Imported, find_folder, load_folder, read_folder
from align_jax.models.flat import Params, Skeleton
from align_jax.models.vit import fit_positions
from align_jax.storage import AnyPath, is_folder, open_path, read_bytes
from align_jax.train.checkpoints import load_params
from align_jax.train.config import TrainConfig
from align_jax.train.objective import Objective

# Fields that may differ from those of a Hugging Face folder: positions are resized, and the others
# are no matter of weights.
_FREE = {
  'image.image_size',
  'image.drop_edge',
  'image.dtype',
  'text.dtype',
  'text.pool',
  'decoder.dtype',
  'length',
  'init_scale',
  'init_bias',
  'max_scale',
}


@dataclasses.dataclass(frozen=True)
class Origin:
  """A place that weights come from; `imported` is None for a run folder."""

  folder: AnyPath
  imported: Imported | None


def find_origins(init: str) -> tuple[Origin, ...]:
  """Reads `config.model.init`: '', `run:DIR`, `hf:DIR_OR_ID`, or `hf:IMAGES,hf:TEXTS`.

  Raises:
    UserError: something else, no such folder, or one of an architecture that is not supported.
  """
  return tuple(_origin(spec) for spec in init.split(',')) if init else ()


def _origin(spec: str) -> Origin:
  scheme, _, path = spec.partition(':')
  if not path or scheme not in ('run', 'hf'):
    raise UserError(
      f"config.model.init: {spec!r} is not understood; write run:DIR, a run's folder, or "
      'hf:DIR_OR_ID, a Hugging Face folder or hub id'
    )
  if scheme == 'hf':
    found = find_folder(path)
    return Origin(found, read_folder(found))
  folder = open_path(path)
  if not is_folder(folder):
    raise UserError(f'config.model.init: {path} is not a folder; name the --workdir of a run')
  return Origin(folder, None)


def make_config(values: Mapping[str, Any]) -> TrainConfig:
  """A training config from plain values, what they leave to `model.init` filled in.

  Raises:
    UserError: see `complete` and `align_jax.config.build`.
  """
  return build(TrainConfig, complete(values))


def complete(values: Mapping[str, Any]) -> dict[str, Any]:
  """Fills in the fields of `model` and `data` that a config leaves to `model.init`.

  Args:
    values: a training config as plain values.

  Raises:
    UserError: a field that is stated and is another in a Hugging Face folder.
  """
  model = dict(values.get('model') or {})
  init = model.get('init') or ''
  out = {**values, 'model': model}
  if not isinstance(init, str) or not init:
    return out
  data = dict(values.get('data') or {})
  answers = isinstance(model.get('decoder'), Mapping)
  for origin in find_origins(init):
    if origin.imported is None:
      found = _run_model(origin.folder)
      if answers and isinstance(model.get('image_lora'), Mapping):
        # another scale would be another track
        adapters = {'image_lora': found.get('image_lora') or found.get('lora') or {}}
        _fill(model, adapters, '', str(origin.folder), strict=True)
      plain = {k: v for k, v in found.items() if k not in ('lora', 'projection')}
      _fill(model, _tower(plain) if answers else plain, '', '', strict=False)
    else:
      where = str(origin.folder)
      if answers and 'text' in origin.imported.model:
        raise UserError(
          f'config.model.init: {where} is a {origin.imported.architecture.name}; name the folder '
          'of a LLaVA, or of a vision model alone'
        )
      _fill(model, origin.imported.model, '', where, strict=True)
      for name, value in origin.imported.data.items():
        if data.get(name) in (None, ''):
          data[name] = value
      if {'text', 'decoder'} & origin.imported.model.keys() and not data.get('tokenizer'):
        raise UserError(
          f'config.data.tokenizer: empty, and {where} has no tokenizer; name the folder of the one '
          'that this model was trained with'
        )
  # what is still open takes its default
  return {**out, 'model': _stated(model), 'data': _stated(data)}


def _fill(
  fields: dict[str, Any], found: Mapping[str, Any], path: str, where: str, *, strict: bool
) -> None:
  for name, value in found.items():
    given = fields.get(name)
    if isinstance(value, Mapping):
      inner = dict(given) if isinstance(given, Mapping) else {}
      _fill(inner, value, f'{path}{name}.', where, strict=strict)
      fields[name] = inner
    elif given is None:
      fields[name] = value
    elif strict and f'{path}{name}' not in _FREE and not _same(given, value):
      raise UserError(
        f'config.model.{path}{name}: {given!r}, but {value!r} in {where}; leave it out (None) to '
        'take what the folder has'
      )


def _stated(fields: Mapping[str, Any]) -> dict[str, Any]:
  return {
    name: _stated(value) if isinstance(value, Mapping) else value
    for name, value in fields.items()
    if value is not None
  }


def _same(given: Any, value: Any) -> bool:
  if isinstance(value, tuple | list):
    return tuple(given) == tuple(value)
  return given == value


def _run_model(folder: AnyPath) -> dict[str, Any]:
  """The model of a run."""
  try:
    model = json.loads(read_bytes(folder / 'config.json'))['model']
  except (FileNotFoundError, KeyError, ValueError):
    return {}  # said where the weights are read
  return {name: value for name, value in model.items() if name != 'init'}


def _tower(model: Mapping[str, Any]) -> Mapping[str, Any]:
  """What a model that answers takes of another: all of its own kind, else the image tower."""
  return model if 'decoder' in model else {k: v for k, v in model.items() if k == 'image'}


def tokenizer_run(origins: Sequence[Origin], *, answers: bool) -> AnyPath | None:
  """The run folder whose tokenizer a model starts with: the first of its own kind."""
  runs = [origin.folder for origin in origins if origin.imported is None]
  return next((run for run in runs if not answers or 'decoder' in _run_model(run)), None)


def check_adapters(
  objective: Objective, skeleton: Skeleton, given: Mapping[str, Any] | None
) -> None:
  """Refuses a generated track that is to be used as it is, and is not there.

  Raises:
    UserError: an objective with the route `modality` and locked adapters, which nobody gives.
  """
  locked = {'image_lora', 'lora'} & set(getattr(objective, 'lock', ()))
  if not locked or getattr(objective, 'route', '') != 'modality':
    return
  names = [n for n in skeleton.shapes if n.startswith('image/') and 'lora' in n.split('/')]
  missing = [name for name in names if given is None or name not in given]
  if missing:
    raise UserError(
      f'config.objective.lock: {locked.pop()}, but config.model.init has no adapters of generated '
      f'images (such as {missing[0]}); name a run of configs/gmail.py, or let them learn'
    )


def initial_params(
  skeleton: Skeleton, origins: Sequence[Origin], shardings: Mapping[str, NamedSharding]
) -> Params | None:
  """Weights from elsewhere for this model; what is not there (adapters, say) starts fresh.

  A generated projection that is not there starts as a copy of the image projection, so that both
  tracks agree at first.

  Returns: parameters by name; None where the config names no origin.
  """
  if not origins:
    return None
  found: Params = {}
  for origin in origins:
    found |= (
      load_params(origin.folder, averaged=True, shapes=skeleton.shapes, shardings=shardings)
      if origin.imported is None
      else load_folder(origin.imported, skeleton.shapes, shardings)
    )
  folder = ', '.join(str(origin.folder) for origin in origins)
  out = {}
  for name, shape in skeleton.shapes.items():
    value = found.get(name)
    if name == 'image/position' and value is not None:
      value = fit_positions(value, shape.shape[0])
    if value is None and name.startswith('generated_projection'):
      value = found.get(name.replace('generated_projection', 'image_projection', 1))
      value = None if value is None else jnp.copy(value)
    if value is None:
      continue
    if value.shape != shape.shape:
      raise UserError(
        f'config.model: {name} has shape {shape.shape} here but {value.shape} in {folder}; '
        'use the model of that run'
      )
    out[name] = value
  if not out:
    raise UserError(f'config.model.init: {folder} shares no parameter with this model')
  return out
