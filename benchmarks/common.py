"""What every benchmark shares: its options, timing in turns, the machine, the line it prints."""

import argparse
import ctypes
import dataclasses
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import jax

from align_jax.cache import keep_compiled_programs
from align_jax.errors import UserError

Options = TypeVar('Options')


def command(
  options: type[Options],
  run: Callable[[Options], dict[str, Any]],
  description: str,
  arguments: Sequence[str] | None = None,
) -> None:
  """Runs a benchmark as a command: `--name=value` for each field of `options`, JSON on stdout.

  Args:
    options: a dataclass of numbers and texts, all with defaults.
    run: the benchmark; returns what is printed.
    description: of `--help`.
    arguments: the command line; None: this process's.
  """
  parser = argparse.ArgumentParser(description=description)
  for field in dataclasses.fields(options):  # type: ignore[arg-type]
    parser.add_argument(f'--{field.name}', type=type(field.default), default=field.default)
  values = vars(parser.parse_args(arguments))
  try:
    keep_compiled_programs()
    print(json.dumps(run(options(**values))), flush=True)
  except UserError as error:
    print(f'error: {error}', file=sys.stderr, flush=True)
    sys.exit(2)


def keep_memory() -> bool:
  """Lets this process keep the memory it frees: from then on no step waits for pages of it.

  A step of XLA on a CPU takes its buffers from the C library and gives them back at its end; glibc
  hands pieces so large straight to the kernel, which fills every page with zeros when it is touched
  again: an eighth of a CLIP S/16 step. Here all come from one heap that never shrinks. It serves
  both sides of a benchmark alike.

  Returns: whether the C library took it (glibc does).
  """
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (OSError, AttributeError):
    return False
  # <malloc.h>: M_MMAP_MAX = -4, M_TRIM_THRESHOLD = -1, M_ARENA_MAX = -8
  return all([mallopt(-4, 0), mallopt(-1, -1), mallopt(-8, 1)])


def say(text: str) -> None:
  """Progress, on standard error: standard output holds the result alone."""
  print(text, file=sys.stderr, flush=True)


def in_turns(
  sides: Mapping[str, Callable[[], float]], rounds: int, pause: float = 0.3
) -> dict[str, list[float]]:
  """Measures each side once a round, first one first, then the other: A B, B A, A B, ….

  A machine that other work shares is slow by turns; what is measured side by side is slow alike.

  Args:
    sides: each does its work and returns the seconds that count.
    rounds: how often.
    pause: seconds before each, in which the threads of the side before go to sleep.

  Returns: seconds of every round, by side.
  """
  out: dict[str, list[float]] = {name: [] for name in sides}
  for number in range(rounds):
    order = list(sides) if number % 2 == 0 else list(reversed(sides))
    for name in order:
      time.sleep(pause)
      out[name].append(sides[name]())
    done = ', '.join(f'{name} {seconds[-1]:.3f} s' for name, seconds in out.items())
    say(f'round {number + 1} of {rounds}: {done}')
  return out


def spread(values: Sequence[float]) -> dict[str, float]:
  """The median and the extremes."""
  middle = statistics.median(values)
  return {'median': rounded(middle), 'min': rounded(min(values)), 'max': rounded(max(values))}


def ratios(seconds: Mapping[str, Sequence[float]], target: float) -> dict[str, Any]:
  """How many times faster `ours` is than `peer`: the spread of the rounds' own ratios."""
  each = [peer / ours for ours, peer in zip(seconds['ours'], seconds['peer'], strict=True)]
  out: dict[str, Any] = spread(each)
  return {**out, 'rounds': len(each), 'target': target, 'met': out['median'] >= target}


def rounded(value: float) -> float:
  """Four significant digits: more is noise."""
  return float(f'{value:.4g}')


def machine() -> dict[str, Any]:
  """The chip, how many of them and of CPU cores, and the versions of what ran."""
  device = jax.devices()[0]
  names = ('jax', 'flax', 'torch', 'transformers', 'pillow', 'webdataset', 'open_clip_torch')
  return {
    'chip': _processor() if device.platform == 'cpu' else device.device_kind,
    'chips': 1,
    'cores': cores(),
    'python': platform.python_version(),
    'versions': {name: version(name) for name in names},
  }


def cores() -> int:
  """CPU cores this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def version(package: str) -> str | None:
  """The installed version; None: not installed."""
  try:
    return metadata.version(package)
  except metadata.PackageNotFoundError:
    return None


def need(package: str) -> None:
  """Raises a UserError where a peer's package is not installed."""
  if version(package) is None:
    raise UserError(f'benchmarks need {package}: see docs/benchmarks.md for how to install it')


def _processor() -> str:
  try:
    lines = Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    return platform.processor() or platform.machine()
  found = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
  return found[0] if found else platform.machine()
