"""The one error type that a person is meant to read, and what is no error at all."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator


class UserError(ValueError):
  """Bad input: one line that names the file, field or flag, and the mend.

  Command entries catch it, print the line and exit with code 2 (see `cli.run`). Anything else that
  is raised is a defect of ours and keeps its traceback.
  """


# What a process ends with after it was told to stop and has saved: run the same command again.
# Below 128, which shells and srun use for deaths by signal; not 1 (a Python traceback) nor 2 (bad
# input), which no restart mends; outside sysexits' 64-78. And XPK restarts a workload on 42 without
# being asked to (its --restart-on-exit-codes adds to 42 and 127-255).
RESTART_EXIT_CODE = 42


class Preempted(Exception):
  """The run was told to stop and has saved; `cli.run` ends with `RESTART_EXIT_CODE`."""


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


@contextlib.contextmanager
def needs_extra(extra: str) -> Iterator[None]:
  """Turns the lack of a package within into a UserError that names the extra with it."""
  try:
    yield
  except ModuleNotFoundError as error:
    if (error.name or '').startswith('align_jax'):
      raise
    raise UserError(f'{error.name} is not installed; pip install "align_jax[{extra}]"') from error
