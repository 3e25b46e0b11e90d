"""What a piece of a study found, beside what it was asked: a JSON file that the next call reads."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from align_jax.errors import UserError
from align_jax.files import write_file


def kept(
  path: Path,
  asked: Mapping[str, Any],
  make: Callable[[], Any],
  *,
  anew: bool = False,
) -> Any:
  """Returns what an earlier call found, or makes it.

  Args:
    path: JSON file.
    asked: everything that the answer depends on.
    make: returns what JSON can hold.
    anew: make it again where something else was asked. Otherwise that is refused: later pieces
      stand on it.

  Raises:
    UserError: something else was asked, and it is not made anew.
  """
  asked = json.loads(json.dumps(asked))
  if path.exists():
    before = json.loads(path.read_text())
    if before['asked'] == asked:
      return before['found']
    if not anew:
      both = sorted({*asked, *before['asked']})
      name = next(n for n in both if asked.get(n) != before['asked'].get(n))
      raise UserError(
        f'{path}: was made with {name}={before["asked"].get(name)!r}, and is asked for with '
        f'{asked.get(name)!r}; use another --workdir, or the same config to go on'
      )
  found = make()
  write_file(path, json.dumps({'asked': asked, 'found': found}, indent=1) + '\n')
  return found


def read_kept(path: Path) -> Any:
  """Returns what was found, whatever was asked."""
  return json.loads(path.read_text())['found']
