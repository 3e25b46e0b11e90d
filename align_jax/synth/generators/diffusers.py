"""Any text-to-image pipeline of `diffusers` from a local folder, alone or with upscalers behind it.

PyTorch comes in here and nowhere else, when a pipeline is loaded (extra `diffusers`). Folders are
read with `use_safetensors`, from the disk alone, and no code in them is ever run.

No watermark is put into the images, neither DeepFloyd-IF's visible nor Stable Diffusion XL's hidden
one: a model that trains on them would learn it. Provenance is in the record instead. The safety
checker of a pipeline that has one runs if asked for, on the last stage; an image that it flags is
none.
"""

import dataclasses
import hashlib
import importlib
import importlib.metadata
import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from align_jax.errors import UserError, require

Dtype = Literal['float32', 'float16', 'bfloat16']

INDEX = 'model_index.json'
_READ = ('.json', '.safetensors', '.txt', '.model')  # what loading may look at
_BLOCK = 1 << 24
_FLAGS = ('nsfw_content_detected', 'nsfw_detected', 'watermark_detected')


@dataclasses.dataclass(frozen=True)
class DiffusersConfig:
  """A pipeline, and how it draws.

  Attributes:
    folder: of the pipeline, as `save_pretrained` writes it, weights as safetensors.
    upscalers: folders of the pipelines that follow in turn, each on the images of the one before:
      DeepFloyd-IF's super-resolution, Stable Diffusion's ×4.
    steps, guidance: of the first pipeline. Guidance 1 is none.
    upscaler_steps, upscaler_guidance: of the others.
    upscaler_noise: noise on the image before it is upscaled, as the pipelines count it; None: the
      pipeline's own.
    size: of the first pipeline's images, pixels; 0: its own.
    negative_prompt: what not to draw; '' for nothing.
    dtype: of weights and computation.
    device: of PyTorch, such as `cuda:1`; '': a GPU if there is one.
    batch_size: images at a time.
    safety_checker: load and run the pipeline's, if it has one; a flagged image is none.
  """

  folder: str
  upscalers: tuple[str, ...] = ()
  steps: int = 50
  guidance: float = 7.5
  upscaler_steps: int = 50
  upscaler_guidance: float = 4.0
  upscaler_noise: int | None = None
  size: int = 0
  negative_prompt: str = ''
  dtype: Dtype = 'float32'
  device: str = ''
  batch_size: int = 4
  safety_checker: bool = False

  def check(self, where: str) -> None:
    """Raises a UserError, `where.field: …`, for a value out of range."""
    require(bool(self.folder), f'{where}.folder', 'empty; name the folder of a pipeline')
    for name in ('steps', 'upscaler_steps', 'batch_size'):
      value = getattr(self, name)
      require(value >= 1, f'{where}.{name}', f'{value} must be at least 1')
    for name in ('guidance', 'upscaler_guidance'):
      value = getattr(self, name)
      require(0 <= value < float('inf'), f'{where}.{name}', f'{value} must be 0 or more')
    require(self.size >= 0, f'{where}.size', f'{self.size} must be 0 (its own) or more')


class DiffusersGenerator:
  """A pipeline for use; see `synth.rows.Generator`.

  Each image has a random generator of its own, on the CPU, so that its noise depends on its seed
  alone: not on its batch, nor on the device. Batches of another size may round another way.

  Attributes:
    generator_id, settings, batch_size: see `Generator`.
  """

  def __init__(self, config: DiffusersConfig, where: str = 'generator'):
    """Loads the pipelines.

    Args:
      config: see `DiffusersConfig`.
      where: names the generator in messages.

    Raises:
      UserError: a bad setting, packages that are missing, a folder that is no pipeline, has no
        safetensors or needs code of its own; a pipeline that does not draw from text.
    """
    config.check(where)
    self._torch, diffusers = _packages(where)
    self._config, self._where = config, where
    self.batch_size = config.batch_size
    folders = [os.path.expanduser(f) for f in (config.folder, *config.upscalers)]
    fields = [f'{where}.folder', *(f'{where}.upscalers[{i}]' for i in range(len(folders) - 1))]
    classes = [_pipeline_class(diffusers, *pair) for pair in zip(folders, fields, strict=True)]
    for number, (found, field) in enumerate(zip(classes, fields, strict=True)):
      _check_call(found, number > 0, field)
    takes = _parameters(classes[0].__call__)
    for name, parameter in (('negative_prompt', 'negative_prompt'), ('size', 'height')):
      if getattr(config, name) and parameter not in takes:
        raise UserError(f'{where}.{name}: {classes[0].__name__} takes none; leave it out')
    digests = [folder_digest(folder) for folder in folders]
    self._stages = [
      self._load(found, folder, field, upscaler=i > 0, last=i == len(folders) - 1)
      for i, (found, folder, field) in enumerate(zip(classes, folders, fields, strict=True))
    ]
    version = importlib.metadata.version('diffusers')
    self.generator_id = f'{"+".join(c.__name__ for c in classes)}@{version}:{"+".join(digests)}'
    # of the rest, nothing changes an image
    skipped = ('folder', 'upscalers', 'device', 'batch_size')
    own = {k: v for k, v in dataclasses.asdict(config).items() if k not in skipped}
    self.settings: Mapping[str, Any] = {**own, 'torch': self._torch.__version__}

  def generate(
    self, prompts: Sequence[str], seeds: Sequence[int]
  ) -> list[UInt8[np.ndarray, 'height width 3'] | None]:
    """See `synth.rows.Generator`; an image that the safety checker flags is None as well.

    Raises:
      UserError: not as many seeds as prompts, arguments that the pipeline refuses, short memory.
    """
    if len(prompts) != len(seeds):
      raise UserError(f'{self._where}: {len(prompts)} prompts, but {len(seeds)} seeds')
    out: list[np.ndarray | None] = []
    for start in range(0, len(prompts), self.batch_size):
      part = slice(start, start + self.batch_size)
      try:
        out += self._draw(list(prompts[part]), seeds[part])
      except self._torch.OutOfMemoryError as error:
        raise UserError(
          f'{self._where}.batch_size: out of memory with {self.batch_size}; lower it, or set dtype'
        ) from error
    return out

  def _draw(self, prompts: list[str], seeds: Sequence[int]) -> list[np.ndarray | None]:
    config = self._config
    generators = [self._torch.Generator('cpu').manual_seed(int(seed)) for seed in seeds]
    negative = [config.negative_prompt] * len(prompts) if config.negative_prompt else None
    first, *upscalers = self._stages
    text: dict[str, Any] = {'prompt': prompts, 'negative_prompt': negative}
    embeds = _if_embeds(first, prompts, negative) if _is_if(first) else None
    result = self._call(
      first,
      **(embeds or text),
      generator=generators,
      num_inference_steps=config.steps,
      guidance_scale=config.guidance,
      height=config.size or None,
      width=config.size or None,
      output_type='pt' if upscalers else 'np',
    )
    for number, stage in enumerate(upscalers, start=1):
      # a stage of IF gives and takes [-1, 1], others [0, 1]
      images = result.images if _is_if(self._stages[number - 1]) else 2 * result.images - 1
      image = images if _is_if(stage) else (images / 2 + 0.5).clamp(0, 1)
      if _is_if(stage) and embeds is None:
        embeds = _if_embeds(stage, prompts, negative)
      result = self._call(
        stage,
        **(embeds if _is_if(stage) and embeds is not None else text),
        image=image,
        generator=generators,
        num_inference_steps=config.upscaler_steps,
        guidance_scale=config.upscaler_guidance,
        noise_level=config.upscaler_noise,
        output_type='np' if number == len(upscalers) else 'pt',
      )
    try:
      return _pixels(result, len(prompts))
    except (AttributeError, ValueError) as error:
      raise UserError(
        f'{self._where}: {type(self._stages[-1]).__name__} gave no pictures ({_line(error)}); name '
        'a pipeline that draws images'
      ) from error

  def _call(self, stage: Any, **arguments: Any) -> Any:
    """Runs a pipeline with those arguments that are given and that it knows."""
    known = _parameters(stage.__call__)
    given = {k: v for k, v in arguments.items() if v is not None and k in known}
    if 'clean_caption' in known:
      given['clean_caption'] = False  # it depends on packages that may be there or not
    try:
      return stage(**given)
    except ValueError as error:
      raise UserError(f'{self._where}: {type(stage).__name__} refuses: {_line(error)}') from error

  def _load(self, cls: Any, folder: str, field: str, *, upscaler: bool, last: bool) -> Any:
    config, torch = self._config, self._torch
    takes = _parameters(cls.__init__)
    parts: dict[str, Any] = {}
    if 'safety_checker' in takes and not (config.safety_checker and last):
      parts |= {'safety_checker': None, 'requires_safety_checker': False}
    if cls.__name__.startswith('IF'):
      parts['watermarker'] = None
      if upscaler and self._first_is_if(config.folder):
        parts |= {'text_encoder': None, 'tokenizer': None}  # billions of weights, there already
    if 'add_watermarker' in takes:
      parts['add_watermarker'] = False
    try:
      stage = cls.from_pretrained(
        folder,
        dtype=getattr(torch, config.dtype),
        use_safetensors=True,
        local_files_only=True,
        **{k: v for k, v in parts.items() if k in takes},
      )
      device = config.device or ('cuda' if torch.cuda.is_available() else 'cpu')
      stage = stage.to(device)
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError) as error:
      raise UserError(
        f'{field}: {folder} cannot be loaded as {cls.__name__} ({_line(error)}); it must be a '
        'whole pipeline with safetensors'
      ) from error
    stage.set_progress_bar_config(disable=True)
    return stage

  def _first_is_if(self, folder: str) -> bool:
    return str(_read_index(os.path.expanduser(folder), self._where)['_class_name']).startswith('IF')


def folder_digest(folder: str) -> str:
  """Returns a checksum of all that loading a pipeline may read: 12 hexadecimal digits."""
  digest = hashlib.blake2b(digest_size=6)
  for parent, folders, files in os.walk(folder):
    folders.sort()
    for file in sorted(files):
      if file.endswith(_READ):
        path = os.path.join(parent, file)
        digest.update(f'{os.path.relpath(path, folder)}\0'.encode())
        with open(path, 'rb') as stream:
          own = hashlib.blake2b()
          while block := stream.read(_BLOCK):
            own.update(block)
        digest.update(own.digest())
  return digest.hexdigest()


def _packages(where: str) -> tuple[Any, Any]:
  try:
    return importlib.import_module('torch'), importlib.import_module('diffusers')
  except ModuleNotFoundError as error:
    raise UserError(
      f'{where}: package {error.name} is missing; pip install align_jax[diffusers]'
    ) from error


def _read_index(folder: str, field: str) -> dict[str, Any]:
  path = os.path.join(folder, INDEX)
  try:
    with open(path, encoding='utf-8') as file:
      index = json.load(file)
  except OSError as error:
    raise UserError(
      f'{field}: no {INDEX} in {folder!r}; name a folder that save_pretrained wrote'
    ) from error
  except ValueError as error:
    raise UserError(f'{path}: not JSON ({error}); fetch it again') from error
  if not isinstance(index, dict) or not isinstance(index.get('_class_name'), str):
    raise UserError(
      f'{path}: _class_name is no name of a pipeline of diffusers; code in a folder is not run'
    )
  return index


def _pipeline_class(diffusers: Any, folder: str, field: str) -> Any:
  name = _read_index(folder, field)['_class_name']
  found = getattr(diffusers, name, None)
  if not (isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline)):
    raise UserError(f'{field}: {name!r} is no pipeline of the installed diffusers; update it')
  return found


def _check_call(cls: Any, upscaler: bool, field: str) -> None:
  """Raises a UserError unless the pipeline can be called as `_draw` does."""
  takes = _parameters(cls.__call__)
  wanted = {'prompt', 'generator', 'output_type'} | ({'image'} if upscaler else set())
  missing = sorted(wanted - takes.keys())
  # an image may have a default that the pipeline then refuses
  also = sorted({'image'} & takes.keys() - wanted)
  if missing or also:
    what = f'takes no {", ".join(missing)}' if missing else 'also wants an image'
    raise UserError(
      f'{field}: {cls.__name__} {what}; name one that '
      + ('makes an image larger' if upscaler else 'draws from text alone')
    )


def _parameters(function: Callable) -> Mapping[str, inspect.Parameter]:
  return inspect.signature(function).parameters


def _is_if(stage: Any) -> bool:
  """Whether it is one of DeepFloyd-IF, which hands on pixels in [-1, 1] and text embeddings."""
  return type(stage).__name__.startswith('IF')


def _if_embeds(stage: Any, prompts: list[str], negative: list[str] | None) -> dict[str, Any]:
  """Encodes the text once for all stages, as arguments of each."""
  positive, unconditional = stage.encode_prompt(
    prompts, do_classifier_free_guidance=True, negative_prompt=negative, clean_caption=False
  )
  return {'prompt_embeds': positive, 'negative_prompt_embeds': unconditional}


def _pixels(result: Any, count: int) -> list[np.ndarray | None]:
  """Makes uint8 images of a pipeline's output; None for those not finite or flagged.

  Raises:
    AttributeError, ValueError: the output is something else (a video, say).
  """
  images = np.asarray(result.images)
  if images.shape[:1] != (count,) or images.ndim != 4 or images.dtype.kind != 'f':
    raise ValueError(f'{images.dtype} {images.shape} for {count} prompts')
  flagged = np.zeros(count, bool)
  for name in _FLAGS:
    flags = getattr(result, name, None)
    if flags is not None:
      flagged |= np.asarray(flags, bool)
  out: list[np.ndarray | None] = []
  for image, bad in zip(images, flagged, strict=True):
    good = not bad and bool(np.isfinite(image).all())
    out.append(np.round(255 * np.clip(image, 0, 1)).astype(np.uint8) if good else None)
  return out


def _line(error: Exception) -> str:
  return ' '.join(str(error).split())[:300]
