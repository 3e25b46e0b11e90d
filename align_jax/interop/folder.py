"""A Hugging Face folder: found, understood, its weights read into our parameters."""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from align_jax.data.tokenizer import load_tokenizer
from align_jax.errors import UserError, did_you_mean
from align_jax.interop.architecture import Architecture, Fields
from align_jax.interop.autoencoder import AUTOENCODER_KL, PREFIX, load_autoencoder
from align_jax.interop.bert import BERT
from align_jax.interop.clip import CLIP, CLIP_VISION
from align_jax.interop.dinov2 import DINOV2
from align_jax.interop.llava import LLAVA
from align_jax.interop.open_clip import OPEN_CLIP
from align_jax.interop.processor import read_processor
from align_jax.interop.rules import Rule, import_layer, layers, name_at, prefixed, tensor_shapes
from align_jax.interop.siglip import SIGLIP, SIGLIP_VISION
from align_jax.interop.tensors import Tensors
from align_jax.models.flat import Params
from align_jax.models.vit import fit_positions

# `model_type` of a config.json
ARCHITECTURES: Mapping[str, Architecture] = {
  'clip': CLIP,
  'clip_vision_model': CLIP_VISION,
  'siglip': SIGLIP,
  'siglip_vision_model': SIGLIP_VISION,
  'bert': BERT,
  'dinov2': DINOV2,
  'llava': LLAVA,
}
_OPEN_CLIP_CONFIG = 'open_clip_config.json'
_HUB_ID = re.compile(r'[\w.-]+/[\w.-]+')
_WANTED = ('*.json', '*.safetensors', '*.txt', '*.model')
_POSITIONS = 'image/position'
_REMEMBERED = 512 * 2**20  # bytes of tensors kept while their parameter is read


@dataclasses.dataclass(frozen=True)
class Imported:
  """What a folder decides.

  Attributes:
    folder, architecture: where, and which.
    model: fields of `config.model`, of one tower or both.
    data: fields of `config.data`.
  """

  folder: Path
  architecture: Architecture
  model: Fields
  data: dict[str, Any]


def find_folder(name: str) -> Path:
  """A local folder, else the files of a model on the Hugging Face hub, downloaded once.

  Raises:
    UserError: neither.
  """
  folder = Path(name).expanduser()
  if folder.is_dir():
    return folder
  if not _HUB_ID.fullmatch(name):
    raise UserError(f'config.model.init: hf:{name}: no such folder')
  import huggingface_hub  # here: local folders do without

  try:
    return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(_WANTED)))
  except Exception as error:  # of many kinds: no network, no such model, no right to it
    raise UserError(
      f'config.model.init: hf:{name}: no such folder, and the hub did not give it '
      f'({type(error).__name__}); download it elsewhere and name the folder'
    ) from error


def read_folder(folder: Path) -> Imported:
  """Understands a folder; no weights are read.

  Raises:
    UserError: an architecture or a setting of it that is not supported.
  """
  architecture, config = _architecture(folder)
  model = {
    k: dict(v) if isinstance(v, dict) else v for k, v in architecture.read(folder, config).items()
  }
  image, data = read_processor(folder)
  if 'image' in model:
    model['image'] |= image
    if _drops_edge(model['image']):
      model['image']['drop_edge'] = True
  else:
    data = {}
  if 'text' in model:
    data |= _text_data(folder, model['text'])
  elif 'decoder' in model and (folder / 'tokenizer_config.json').is_file():
    data |= {'tokenizer': str(folder)}
  return Imported(folder, architecture, model, data)


def load_folder(
  imported: Imported,
  shapes: Mapping[str, Any],
  shardings: Mapping[str, NamedSharding] | None = None,
) -> Params:
  """Reads the weights, tensor by tensor, each straight into the shards that need it.

  Args:
    imported: of `read_folder`.
    shapes: of our parameters by name, at least of all that the folder holds; the positions of
      images may be of another resolution.
    shardings: of them; None: NumPy arrays.

  Raises:
    UserError: a tensor that is missing, of another shape, or that nothing here corresponds to.
  """
  if imported.architecture is AUTOENCODER_KL:
    return load_autoencoder(imported.folder, shapes, PREFIX, shardings)
  tensors = Tensors(imported.folder, imported.architecture.aliases)
  patch = imported.model['image']['patch'] if 'image' in imported.model else 1
  rules = table(imported, tensors)
  sizes = {name: tuple(shape.shape) for name, shape in shapes.items()}
  own = dict(sizes)
  positions = next((r for r in rules if r.ours == (_POSITIONS,)), None)
  if positions is not None and positions.theirs[0] in tensors.names:
    # as long as it is there; resized below
    length = tensors.shape(positions.theirs[0])[positions.lead]
    own[_POSITIONS] = (length, sizes[_POSITIONS][1])
  _check(imported, rules, tensors, own, patch)
  out: Params = {}
  for rule in rules:
    # every device asks for its part of every layer
    size = 4 * math.prod(tensors.shape(name_at(rule.theirs[0], 0)))
    read = functools.lru_cache(max(1, _REMEMBERED // max(1, size)))(tensors.read)
    for at, name in enumerate(rule.ours):
      array = _Array(rule, at, own, read)
      sharding = (shardings or {}).get(name)
      if name == _POSITIONS:
        value = np.asarray(fit_positions(array.whole(), sizes[name][0]))
        out[name] = value if sharding is None else jax.device_put(value, sharding)
      elif sharding is None:
        out[name] = array.whole()
      else:
        out[name] = jax.make_array_from_callback(own[name], sharding, array.part)
  return out


def table(imported: Imported, tensors: Tensors) -> list[Rule]:
  """The rules of a folder, with the prefix that its names have."""
  rules = list(imported.architecture.rules(imported.model))
  for prefix in imported.architecture.prefixes:
    named = prefixed(rules, prefix)
    if named[0].theirs[0] in tensors.names:
      return named
  return prefixed(rules, imported.architecture.prefixes[-1])


@dataclasses.dataclass(frozen=True)
class _Array:
  """The parameter `rule.ours[at]`, all layers, read when a part of it is asked for."""

  rule: Rule
  at: int
  shapes: Mapping[str, tuple[int, ...]]
  read: Callable[[str], np.ndarray]

  def whole(self) -> np.ndarray:
    return self.part(tuple(slice(None) for _ in self.shapes[self.rule.ours[self.at]]))

  def part(self, index: tuple[slice, ...] | None) -> np.ndarray:
    """The values at an index, as `jax.make_array_from_callback` asks for them."""
    index = index or ()
    count = layers(self.rule, self.shapes)
    if count is None:
      return np.asarray(self._layer(None)[index], order='C')
    wanted = range(count)[index[0]]
    first = self._layer(wanted[0])[index[1:]]
    out = np.empty((len(wanted), *first.shape), np.float32)
    out[0] = first
    for row, layer in enumerate(wanted[1:], 1):
      out[row] = self._layer(layer)[index[1:]]
    return out

  def _layer(self, layer: int | None) -> np.ndarray:
    return import_layer(self.rule, self.shapes, self.read, layer)[self.at]


def _check(
  imported: Imported,
  rules: list[Rule],
  tensors: Tensors,
  shapes: Mapping[str, tuple[int, ...]],
  patch: int,
) -> None:
  """Compares what is there with what should be, before anything is read."""
  known = set()
  for rule in rules:
    expected = tensor_shapes(rule, shapes, patch)
    count = layers(rule, shapes)
    for layer in range(count) if count is not None else (None,):
      for name, shape in zip(rule.theirs, expected, strict=True):
        name = name_at(name, layer)
        known.add(name)
        if name not in tensors.names:
          near = did_you_mean(name, tensors.names)
          raise UserError(
            f'{imported.folder}: no tensor {name!r} of shape {shape}, which a '
            f'{imported.architecture.name} of this config.json has{near}'
          )
        if tensors.shape(name) != shape:
          raise UserError(
            f'{tensors.path(name)}: {name} has shape {tensors.shape(name)}, but config.json asks '
            f'for {shape}'
          )
  architecture = imported.architecture
  unused = (*architecture.unused, *architecture.unread(imported.model))
  extra = {n for n in tensors.names - known if not any(part in n for part in unused)}
  if extra:
    name = min(extra)
    more = f' and {len(extra) - 1} more' if len(extra) > 1 else ''
    raise UserError(
      f'{tensors.path(name)}: {name} of shape {tensors.shape(name)}{more} has no place in a '
      f'{imported.architecture.name} of this config.json'
    )


def _architecture(folder: Path) -> tuple[Architecture, Any]:
  """Finds the architecture and reads its config."""
  path = folder / 'config.json'
  given = _read_json(path) if path.is_file() else {}
  if given.get('_class_name') == AUTOENCODER_KL.name:
    return AUTOENCODER_KL, given  # of diffusers, which transformers does not read
  kind = given.get('model_type')
  other = folder / _OPEN_CLIP_CONFIG
  if kind is None and other.is_file():
    return OPEN_CLIP, _read_json(other)
  if kind is None:
    raise UserError(f'{folder}: no config.json with a model_type, nor an {_OPEN_CLIP_CONFIG}')
  if kind not in ARCHITECTURES:
    raise UserError(
      f'{path}: model_type {kind!r} is not supported{did_you_mean(kind, ARCHITECTURES)}'
    )
  import transformers  # here: it takes a second, and training from scratch does without

  try:
    # fills in what a config.json leaves to the defaults of its class
    return ARCHITECTURES[kind], transformers.AutoConfig.from_pretrained(
      str(folder), local_files_only=True, trust_remote_code=False
    )
  except Exception as error:
    raise UserError(f'{path}: transformers cannot read it ({error})') from error


def _read_json(path: Path) -> dict[str, Any]:
  try:
    found = json.loads(path.read_bytes())
  except ValueError as error:
    raise UserError(f'{path}: not JSON ({error})') from error
  if not isinstance(found, dict):
    raise UserError(f'{path}: not a group of settings')
  return found


def _drops_edge(image: Mapping[str, Any]) -> bool:
  return bool(image['image_size'] % image['patch'])


def _text_data(folder: Path, text: Fields) -> dict[str, Any]:
  """Fields of `config.data` about texts; the special tokens are those of the tokenizer, if any."""
  data: dict[str, Any] = {'length': text['length']}
  path = folder / 'sentence_bert_config.json'
  if path.is_file():
    data['length'] = min(
      text['length'], int(_read_json(path).get('max_seq_length') or text['length'])
    )
  if not (folder / 'tokenizer_config.json').is_file():
    return data
  tokenizer = load_tokenizer(folder)
  text['pad_id'] = tokenizer.pad_id
  if text['pool'] == 'eot':
    text['eot_id'] = tokenizer.eot_id
  return data | {'tokenizer': str(folder)}
