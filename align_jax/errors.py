"""The one error type that a person is meant to read."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
  """Bad input: one line that names the file, field or flag, and the mend.

  Command entries catch it, print the line and exit with code 2 (see `cli.run`). Anything else that
  is raised is a defect of ours and keeps its traceback.
  """


def require(holds: bool, where: str, what: str) -> None:
  """Raises `UserError` `where: what` unless the condition holds."""
  if not holds:
    raise UserError(f'{where}: {what}')


def did_you_mean(name: str, known: Iterable[str]) -> str:
  """Returns `; did you mean 'x'?` for the nearest of the known names, or the list of them."""
  known = sorted(known)
  near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
  if near:
    return f"; did you mean '{near[0]}'?"
  return f'; known: {", ".join(known)}' if known else ''
