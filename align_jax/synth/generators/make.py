"""Generators from config values, and a check of what they give back."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from align_jax.config import build
from align_jax.errors import UserError, did_you_mean
from align_jax.synth.generators.cvae import CvaeGeneratorConfig, make_cvae_generator
from align_jax.synth.generators.diffusers import DiffusersConfig, DiffusersGenerator
from align_jax.synth.generators.external import ExternalConfig, ExternalImages
from align_jax.synth.generators.flow import FlowGeneratorConfig, make_flow_generator
from align_jax.synth.rows import Generator

# kind -> what its values are read into
KINDS: Mapping[str, type] = {
  'flow': FlowGeneratorConfig,
  'cvae': CvaeGeneratorConfig,
  'diffusers': DiffusersConfig,
  'external': ExternalConfig,
}
_BLANK = 1.0  # standard deviation of the pixels, 0 to 255; below it there is nothing to see


@dataclasses.dataclass(frozen=True)
class Checked:
  """What a batch of images came out as.

  Attributes:
    images: how many were asked for.
    missing: are None: not finite, or flagged.
    blank: one colour all over.
  """

  images: int
  missing: int
  blank: int


def build_config(values: Mapping[str, Any], where: str) -> Any:
  """Reads a generator's values, before anything is loaded.

  Args:
    values: `kind` and the fields of its config, see `KINDS`.
    where: dotted path of `values` in the config.

  Raises:
    UserError: an unknown kind; a field that is unknown, missing, of a wrong type or out of range.
  """
  kind = str(values.get('kind'))
  if kind not in KINDS:
    raise UserError(f'{where}.kind: {kind!r} is unknown{did_you_mean(kind, KINDS)}')
  config: Any = build(KINDS[kind], {k: v for k, v in values.items() if k != 'kind'}, where)
  config.check(where)
  return config


def make_generator(
  values: Mapping[str, Any], *, run: str = '', where: str = 'config.generators[0]'
) -> Generator:
  """Loads a generator that draws what it is asked for.

  Args:
    values: `kind` and the fields of its config, see `KINDS`.
    run: of `flow` and `cvae`, the training run.
    where: dotted path of `values` in the config, for messages.

  Raises:
    UserError: what `build_config` and the generators raise; a kind that does not draw.
  """
  config = build_config(values, where)
  kind = values['kind']
  if kind == 'diffusers':
    return DiffusersGenerator(config, where)
  if kind == 'external':
    raise UserError(f'{where}.kind: external images are given, not drawn; see make_external')
  if not run:
    raise UserError(f'{where}.kind: {kind} draws with a trained model; name its run')
  if kind == 'flow':
    return make_flow_generator(config, run, where)
  return make_cvae_generator(config, run, where)


def make_external(
  values: Mapping[str, Any], *, name: str, where: str = 'config.generators[0]'
) -> ExternalImages:
  """Opens images that are there already, from the same values with `kind: external`.

  Raises:
    UserError: see `build_config` and `ExternalImages`.
  """
  config = build_config(values, where)
  if values['kind'] != 'external':
    raise UserError(f'{where}.kind: {values["kind"]!r} draws its images; see make_generator')
  return ExternalImages(config, name, where)


def check_images(
  name: str, images: Sequence[UInt8[np.ndarray, '...'] | Any | None], count: int
) -> Checked:
  """Looks at what a generator gave back.

  Args:
    name: of the generator.
    images: as `Generator.generate` returns them.
    count: how many were asked for.

  Returns: how many are missing or blank; these are for the caller to leave out.

  Raises:
    UserError: another number of images, or one that is no uint8 `[height, width, 3]`.
  """
  if len(images) != count:
    raise UserError(f'generator {name!r}: {len(images)} images for {count} prompts')
  missing = blank = 0
  for image in images:
    if image is None:
      missing += 1
      continue
    if not isinstance(image, np.ndarray):
      raise UserError(f'generator {name!r}: gave a {type(image).__name__}; an array is wanted')
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or not image.size:
      raise UserError(
        f'generator {name!r}: gave {image.dtype} {image.shape}; uint8 [height, width, 3] is wanted'
      )
    blank += float(image.std()) < _BLANK
  return Checked(count, missing, blank)
