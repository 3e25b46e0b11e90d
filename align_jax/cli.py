"""What every command entry shares: flags parsed with readable errors, one line for bad input."""

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from align_jax.cache import keep_compiled_programs
from align_jax.errors import RESTART_EXIT_CODE, Preempted, UserError, did_you_mean


def _parse(argv: Sequence[str]) -> list[str]:
  """Parses flags; a mistake ends with one line and exit code 2 instead of a traceback."""
  try:
    rest = flags.FLAGS(list(argv))
    if 'config' in flags.FLAGS:
      # config_flags keeps a file it could not read to itself until a field is asked for
      read = flags.FLAGS['config'].value
      _ = read.lock if read is not None else None
    return rest
  except flags.Error as error:
    _stop(f'{error}')
  except OSError as error:
    _stop(_unread_config(error, argv))
  except (AttributeError, KeyError) as error:  # config_flags: a field the config does not have
    _stop(_unknown_field(str(error), argv))
  raise AssertionError('unreachable')


def _unread_config(error: OSError, argv: Sequence[str]) -> str:
  """Says which config file is not there, with the nearest name beside it."""
  given = re.split(r'\s--?config[=\s]', ' '.join(argv))[-1].split(' ')[0].split(':')[0]
  path = Path(given)
  if not given or path.exists():  # something that the config itself reads
    return f'--config: {error.__cause__ or error}'
  beside = [f'{p}' for p in path.parent.glob('*.py') if p.stem != '__init__']
  return f'--config: no file {given!r}{did_you_mean(given, beside)}'


def _unknown_field(message: str, argv: Sequence[str]) -> str:
  """Says which override names no field; `message` is config_flags' own, with the nearest name."""
  overrides = [a.split('=')[0].lstrip('-') for a in argv if a.lstrip('-').startswith('config.')]
  found = next((o for o in overrides if repr(o.split('.')[-1]) in message), None)
  near = re.search(r'Did you mean "([^"]+)"', message)
  hint = f"; did you mean '{near[1]}'?" if near else ''
  return f'{found or " ".join(overrides)}: unknown field{hint}'


def _stop(message: str) -> None:
  print(f'error: {" ".join(message.split())}', file=sys.stderr, flush=True)
  sys.exit(2)


def run(main: Callable[[], None]) -> None:
  """Runs a command entry: `cli.run(main)` in place of `app.run(main)`.

  A `UserError` (an interrupt, a notice to stop) ends it with one line on standard error and exit
  code 2 (130, `RESTART_EXIT_CODE`).
  """

  def guarded(argv: list[str]) -> None:
    if len(argv) > 1:
      _stop(f'unexpected argument {argv[1]!r}; every argument is a flag: --name=value')
    try:
      keep_compiled_programs()
      main()
    except UserError as error:
      _stop(str(error))
    except OSError as error:  # a full disk, a folder that may not be written, wherever it shows
      _stop(f'{error.filename or "file"}: {error.strerror or error}; mend that, then run it again')
    except Preempted as notice:
      print(notice, file=sys.stderr, flush=True)
      sys.exit(RESTART_EXIT_CODE)
    except KeyboardInterrupt:
      print('interrupted; run the same command again to go on', file=sys.stderr)
      sys.exit(130)

  logging.set_verbosity(logging.WARNING)
  app.run(guarded, flags_parser=_parse)


def define_config(*, required: bool = True) -> flags.FlagHolder:
  """Defines `--config=FILE.py` with overrides `--config.path.to=value`; fields cannot be added."""
  holder = config_flags.DEFINE_config_file(
    'config', None, 'Path of a config file in configs/, see docs/configs.md.', lock_config=True
  )
  if required:
    flags.mark_flag_as_required('config')
  return holder


def define_work() -> dict[str, flags.FlagHolder]:
  """Defines `--workers`, `--runner` and `--beam_options`, see `data.work.WorkConfig`."""
  return {
    'workers': flags.DEFINE_integer('workers', 2, 'Processes, for what needs no accelerator.'),
    'runner': flags.DEFINE_string(
      'runner', 'local', 'local: processes of this machine; or a Beam runner, see docs/data.md.'
    ),
    'beam_options': flags.DEFINE_multi_string(
      'beam_option', [], 'Option of the Beam pipeline, any number of times: --name=value.'
    ),
  }
