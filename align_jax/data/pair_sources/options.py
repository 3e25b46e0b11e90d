"""Options of a spec as values."""

from collections.abc import Collection, Sequence

from align_jax.data.sources.spec import ParsedSpec
from align_jax.errors import UserError, did_you_mean


def choice_option(spec: ParsedSpec, name: str, choices: Sequence[str]) -> str:
  """Returns one of the choices, the first by default; raises a UserError for anything else."""
  value = spec.options.get(name, choices[0])
  if value not in choices:
    raise UserError(f"{spec.text}: {name}='{value}'{did_you_mean(value, choices)}")
  return value


def whole_option(
  spec: ParsedSpec, name: str, default: int, least: int, most: int | None = None
) -> int:
  """Returns a whole number; raises a UserError for one outside `[least, most]` or no number."""
  text = spec.options.get(name)
  if text is None:
    return default
  if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
    to = 'on' if most is None else f'to {most}'
    raise UserError(f'{spec.text}: {name}={text} is no whole number from {least} {to}')
  return int(text)


def names_option(
  spec: ParsedSpec, name: str, known: Collection[str], default: Sequence[str]
) -> tuple[str, ...]:
  """Returns names written with commas between, in the order of `known`.

  Raises:
    UserError: an unknown name, or none.
  """
  text = spec.options.get(name, '')
  chosen = [part.strip() for part in text.split(',')] if text else list(default)
  for part in chosen:
    if part not in known:
      raise UserError(f"{spec.text}: unknown {name} '{part}'{did_you_mean(part, known)}")
  return tuple(part for part in known if part in chosen)
