"""From a config's plain values to frozen dataclasses, with every mistake named."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from align_jax.errors import UserError, did_you_mean

T = TypeVar('T')


def build(cls: type[T], values: Any, where: str = 'config') -> T:
  """Builds the dataclass `cls` from a mapping, recursively.

  Args:
    cls: a dataclass; fields that are dataclasses themselves take a nested mapping.
    values: field name to value, for instance `ConfigDict.to_dict()`.
    where: dotted path of `values` within the config, for messages.

  Raises:
    UserError: an unknown field (with the nearest name), a missing field or a value of a wrong type.
  """
  if not isinstance(values, Mapping):
    raise UserError(f'{where}: expected a group of fields, got {values!r}')
  hints = typing.get_type_hints(cls)
  fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
  for name in values:
    if name not in fields:
      raise UserError(f'{where}.{name}: unknown field{did_you_mean(name, fields)}')
  out = {}
  for name, field in fields.items():
    if name in values:
      out[name] = _convert(hints[name], values[name], f'{where}.{name}')
    elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
      raise UserError(f'{where}.{name}: missing; set it in the config')
  return cls(**out)


def _convert(hint: Any, value: Any, where: str) -> Any:
  """Returns `value` as the type `hint`, or raises a UserError that names `where`."""
  origin = typing.get_origin(hint)
  if origin in (typing.Union, types.UnionType):
    options = typing.get_args(hint)
    if value is None and type(None) in options:
      return None
    errors = []
    for option in options:
      if option is type(None):
        continue
      try:
        return _convert(option, value, where)
      except UserError as error:
        errors.append(error)
    raise errors[0]
  if dataclasses.is_dataclass(hint):
    return build(typing.cast(type, hint), value, where)
  if origin is typing.Literal:
    options = typing.get_args(hint)
    if value not in options:
      raise UserError(f'{where}: {value!r} is not one of {", ".join(map(repr, options))}')
    return value
  if origin is tuple:
    if isinstance(value, str) or not hasattr(value, '__iter__'):
      raise UserError(f'{where}: expected a list, got {value!r}')
    args = typing.get_args(hint)
    items = list(value)
    if len(args) == 2 and args[1] is Ellipsis:
      kinds = [args[0]] * len(items)
    elif len(args) == len(items):
      kinds = list(args)
    else:
      raise UserError(f'{where}: expected {len(args)} values, got {len(items)}')
    return tuple(
      _convert(k, v, f'{where}[{i}]') for i, (k, v) in enumerate(zip(kinds, items, strict=True))
    )
  if origin in (dict, Mapping):
    if not isinstance(value, Mapping):
      raise UserError(f'{where}: expected a group of fields, got {value!r}')
    args = typing.get_args(hint)
    return {k: _convert(args[1], v, f'{where}.{k}') if args else v for k, v in value.items()}
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if hint is Any:
    return value
  if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
    raise UserError(f'{where}: expected {hint.__name__}, got {value!r}')
  return value
