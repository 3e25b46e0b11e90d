"""From loose fields (a JSON line, a row, a feature dict) to the fields of a record."""

import json
import re
from collections.abc import Mapping
from typing import Any

from align_jax.data.sources.spec import ParsedSpec
from align_jax.errors import UserError, did_you_mean
from align_jax.modality import MODALITIES, Modality

DEFAULT_TEMPLATE = 'a photo of a {}'
# what `metadata` understands; each is optional
FIELDS = (
  'caption', 'captions', 'label', 'labels', 'modality', 'pair_id', 'generator_id', 'prompt',
  'source_id', 'truth',
)  # fmt: skip
_TEXTS = ('pair_id', 'generator_id', 'prompt', 'source_id')


def template_option(spec: ParsedSpec) -> str | None:
  """Returns the `template` option, None when it is not given.

  Raises:
    UserError: a template that is not empty and has no `{}`.
  """
  template = spec.options.get('template')
  if template and '{}' not in template:
    raise UserError(f"{spec.text}: template {template!r} has no {{}}; write 'a photo of a {{}}'")
  return template


def label_caption(label: str, template: str | None) -> tuple[str, ...]:
  """Returns the caption that a class name gives, if any.

  Without a template the default is used, except for a label that is a bare number: an index into
  names that we do not have would make a caption that misleads.
  """
  if template is None:
    template = '' if label.isdigit() else DEFAULT_TEMPLATE
  name = re.sub(r'[_\s]+', ' ', label).strip()
  return (template.replace('{}', name),) if template else ()


def metadata(fields: Mapping[str, Any], where: str, template: str | None) -> dict[str, Any]:
  """Returns keyword arguments of `Record`, all but `id` and `image`.

  Args:
    fields: values under the names of `FIELDS`; others are ignored, None counts as absent.
    where: names the place, for messages.
    template: makes a caption of the first label when there is no caption (`label_caption`).

  Raises:
    UserError: a field of a wrong type, or an unknown modality.
  """
  given = {k: v for k, v in fields.items() if k in FIELDS and v is not None}
  out: dict[str, Any] = {}
  captions = [
    *texts(given.get('caption', ()), f'{where}: caption'),
    *texts(given.get('captions', ()), f'{where}: captions'),
  ]
  labels = [
    *texts(given.get('label', ()), f'{where}: label'),
    *texts(given.get('labels', ()), f'{where}: labels'),
  ]
  out['labels'] = tuple(dict.fromkeys(labels))
  out['captions'] = tuple(dict.fromkeys(c.strip() for c in captions if c.strip()))
  if not out['captions'] and out['labels']:
    out['captions'] = label_caption(out['labels'][0], template)
  if 'modality' in given:
    out['modality'] = modality(given['modality'], where)
  for name in _TEXTS:
    if name in given:
      if not isinstance(given[name], str | int) or isinstance(given[name], bool):
        raise UserError(f'{where}: {name} must be a text, got {given[name]!r}')
      out[name] = check_text(str(given[name]), f'{where}: {name}')
  if 'truth' in given:
    if not isinstance(given['truth'], Mapping):
      raise UserError(f'{where}: truth must be an object, got {given["truth"]!r}')
    out['truth'] = given['truth']
  return out


def modality(value: Any, where: str) -> Modality:
  """Returns `value` if it is a modality; raises a UserError otherwise."""
  if value not in MODALITIES:
    raise UserError(f'{where}: modality {value!r}{did_you_mean(str(value), MODALITIES)}')
  return value


def texts(value: Any, where: str) -> list[str]:
  """Flattens a text, a number or nested lists of them into a list of texts.

  Raises:
    UserError: anything else in there.
  """
  if isinstance(value, bytes):
    try:
      return [value.decode()]
    except UnicodeDecodeError as error:
      raise UserError(f'{where}: not UTF-8; save the text as UTF-8') from error
  if isinstance(value, str):
    return [check_text(value, where)]
  if isinstance(value, int) and not isinstance(value, bool):
    return [str(value)]
  if isinstance(value, list | tuple):
    return [t for item in value for t in texts(item, where)]
  raise UserError(f'{where}: expected a text or a list of texts, got {value!r}')


def check_text(value: str, where: str) -> str:
  """Returns the text; raises a UserError for one that is no Unicode (a Latin-1 file name, say)."""
  try:
    value.encode()
  except UnicodeEncodeError as error:
    raise UserError(f'{where}: {value!r} is not UTF-8; rename or rewrite it') from error
  return value


def parse_object(text: str | bytes, where: str) -> dict[str, Any]:
  """Parses one JSON object.

  Raises:
    UserError: no JSON, or JSON that is no object.
  """
  try:
    value = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise UserError(f'{where}: not JSON ({error}); write one object, {{"key": ...}}') from error
  if not isinstance(value, dict):
    raise UserError(f'{where}: expected a JSON object, got {type(value).__name__}')
  return value
