"""Source specs: `scheme:path?key=value&key=value`, the one way to name data anywhere."""

import dataclasses
import re
import urllib.parse
from collections.abc import Iterable, Mapping

from align_jax.errors import UserError, did_you_mean

# understood by every scheme; `emoji` has a `split` of its own
GENERIC_OPTIONS = ('split', 'shuffle', 'limit', 'modality')

# '?' is also a wildcard of globs: options begin at the first '?' that a `key=` follows.
_OPTIONS = re.compile(r'\?(?=[A-Za-z_]\w*=)')


@dataclasses.dataclass(frozen=True)
class ParsedSpec:
  """A spec taken apart.

  Attributes:
    scheme: what stands before the first colon.
    path: folder, glob or name, as written.
    options: key to value, percent-decoded.
    text: the whole spec, as written.
  """

  scheme: str
  path: str
  options: Mapping[str, str]
  text: str

  def check(self, own: Iterable[str] = (), generic: bool = True) -> None:
    """Raises a UserError for an option that is neither in `own` nor a generic one."""
    known = [*own, *(GENERIC_OPTIONS if generic else ())]
    for key in self.options:
      if key not in known:
        raise UserError(f"{self.text}: unknown option '{key}'{did_you_mean(key, known)}")


def parse_spec(text: str) -> ParsedSpec:
  """Takes a spec apart.

  In a value, `&` is written `%26` and `%` is written `%25`; everything else stands for itself.

  Raises:
    UserError: no scheme, an option without `=`, or an option given twice.
  """
  scheme, colon, rest = text.strip().partition(':')
  if not colon or not re.fullmatch(r'[a-z]+', scheme):
    raise UserError(
      f'data spec {text!r}: no scheme; write scheme:path, for instance folder:{text or "DIR"}'
    )
  path, _, query = _split_once(rest)
  options: dict[str, str] = {}
  for item in query.split('&') if query else ():
    key, equals, value = item.partition('=')
    if not equals or not key:
      raise UserError(f'data spec {text!r}: option {item!r} has no value; write key=value')
    if key in options:
      raise UserError(f"data spec {text!r}: option '{key}' is given twice; keep one")
    options[key] = urllib.parse.unquote(value)
  return ParsedSpec(scheme=scheme, path=path, options=options, text=text.strip())


def with_options(text: str, **options: object) -> str:
  """Returns the spec with options set or replaced; `None` takes one away."""
  parsed = parse_spec(text)
  merged: dict[str, object] = {**parsed.options, **options}
  query = '&'.join(f'{k}={_quote(str(v))}' for k, v in merged.items() if v is not None)
  return f'{parsed.scheme}:{parsed.path}' + (f'?{query}' if query else '')


def _split_once(rest: str) -> tuple[str, str, str]:
  match = _OPTIONS.search(rest)
  return (rest, '', '') if match is None else (rest[: match.start()], '?', rest[match.end() :])


def _quote(value: str) -> str:
  return value.replace('%', '%25').replace('&', '%26')
