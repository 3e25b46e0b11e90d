"""What the launchers share: flags, commands that are shown or run, scripts that run again."""

import argparse
import dataclasses
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from align_jax.errors import RESTART_EXIT_CODE, UserError, did_you_mean

# Where a tool comes from, for the message when it is missing.
_TOOLS = {
  'gcloud': 'install the Google Cloud CLI and run `gcloud init`',
  'kubectl': 'run `gcloud components install kubectl`, then `gcloud container clusters '
  'get-credentials CLUSTER`',
  'xpk': 'run `pip install xpk`',
  'sbatch': 'run this on a login node of the SLURM cluster',
}


@dataclasses.dataclass(frozen=True)
class Command:
  """A program with its arguments, and what it reads from standard input."""

  args: tuple[str, ...]
  stdin: str = ''

  def shown(self) -> str:
    """The command as a shell takes it, one flag a line."""
    text = ''
    for i, arg in enumerate(self.args):
      between = '' if i == 0 else ' \\\n  ' if arg.startswith('--') else ' '
      text += between + shlex.quote(arg)
    return f'{text} {heredoc(self.stdin)}' if self.stdin else text


class Parser(argparse.ArgumentParser):
  """Flags with underscores, in the form --name=value; a mistake is a `UserError`."""

  def __init__(self, **settings: Any) -> None:
    super().__init__(
      allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings
    )

  def error(self, message: str) -> NoReturn:
    """Raises instead of printing the usage: one line says more."""
    raise UserError(message)

  def parse(self, argv: Sequence[str]) -> argparse.Namespace:
    """Parses all arguments; an unknown flag is named with the nearest known one."""
    known = self._flags(argv)
    for name in (arg.split('=')[0] for arg in argv if arg.startswith('--') and known):
      if name not in known:
        raise UserError(f'{name}: unknown flag{did_you_mean(name, known)}')
    return self.parse_args(argv)

  def _flags(self, argv: Sequence[str]) -> list[str]:
    """The flags of this parser, or those of the action that `argv` names; [] if it names none."""
    for action in self._actions:
      if isinstance(action, argparse._SubParsersAction):
        chosen = next((action.choices[a] for a in argv if a in action.choices), None)
        return chosen._flags(argv) if isinstance(chosen, Parser) else []
    return [name for action in self._actions for name in action.option_strings if name[:2] == '--']


def heredoc(text: str) -> str:
  """`text` as a shell reads it literally on standard input, behind a command."""
  end = 'END'
  while end in text.splitlines():
    end += '_'
  return f"<<'{end}'\n{text.rstrip()}\n{end}"


def split_command(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """Splits at the first `--` into our own flags and the command to run."""
  argv = list(argv)
  if '--' not in argv:
    return argv, []
  at = argv.index('--')
  return argv[:at], argv[at + 1 :]


def need_command(command: Sequence[str], launcher: str) -> list[str]:
  """Returns the command behind `--`, or says how it is written."""
  if not command:
    raise UserError(
      f'--: no command; write it last: python -m {launcher} ... -- python -m align_jax.main ...'
    )
  return list(command)


def add_dry_run(parser: argparse.ArgumentParser) -> None:
  """Adds the flag that every launcher has."""
  parser.add_argument('--dry_run', action='store_true', help='print what would be run, run nothing')


def perform(commands: Sequence[Command], dry_run: bool) -> int:
  """Shows the commands, or runs them in order up to the first that fails; returns its exit code."""
  if dry_run:
    print('\n\n'.join(command.shown() for command in commands))
    return 0
  for tool in {command.args[0] for command in commands}:
    if shutil.which(tool) is None:
      mend = _TOOLS.get(tool, 'install it')
      raise UserError(f'{tool}: not found; {mend}, or add --dry_run to see what would be run')
  for command in commands:
    # standard input stays the person's own where a command takes none: gcloud asks questions
    given = command.stdin or None
    code = subprocess.run(command.args, input=given, text=True, check=False).returncode
    if code:
      print(f'failed with exit code {code}: {shlex.join(command.args)[:200]}', file=sys.stderr)
      return code
  return 0


def entry(main: Callable[[Sequence[str]], int]) -> None:
  """Runs a launcher's `main` with the command line; bad input ends with one line and code 2."""
  try:
    sys.exit(main(sys.argv[1:]))
  except UserError as error:
    print(f'error: {" ".join(str(error).split())}', file=sys.stderr, flush=True)
    sys.exit(2)
  except KeyboardInterrupt:
    sys.exit(130)


def restart_script(command: Sequence[str], restarts: int, *, pause: int = 10) -> str:
  """A bash script that runs `command`, again after a preemption or when a process died.

  Exit code RESTART_EXIT_CODE means saved and told to stop; 128 and more means killed by a signal:
  this process, or JAX ended it because another one died. All others are final. SIGTERM to the
  script goes on to the command and is final too.
  """
  return f"""\
stopped=0
child=
left={restarts}
stop() {{
  stopped=1
  again=1
  if [ -n "$child" ]; then kill -TERM "$child" 2>/dev/null; fi
}}
trap stop TERM
while :; do
  {shlex.join(command)} &
  child=$!
  again=1
  while [ "$again" -eq 1 ]; do  # a signal ends wait before the command has ended
    again=0
    wait "$child"
    code=$?
  done
  child=
  echo "launch: ended with exit code $code at $(date -u +%FT%TZ)"
  if [ "$code" -ne {RESTART_EXIT_CODE} ] && [ "$code" -lt 128 ]; then exit "$code"; fi
  if [ "$left" -le 0 ]; then exit "$code"; fi
  if [ "$stopped" -eq 0 ]; then sleep {pause}; fi
  if [ "$stopped" -eq 1 ]; then exit "$code"; fi
  left=$((left - 1))
  echo "launch: runs it again, $left restarts left"
done
"""
