"""Runs all benchmarks at their default sizes, one after another, each in a process of its own.

python -m benchmarks --all [--output=FILE.jsonl]
python -m benchmarks train_step checkpoint
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from align_jax.files import write_file
from benchmarks.common import say

PROGRAMS = (
  'train_step',
  'input_pipeline',
  'checkpoint',
  'contrastive_loss',
  'import_weights',
  'flow_sampler',
  'similarity',
  'filtration',
  'annotation',
  'mining',
  'embedding',
)


def main(arguments: list[str] | None = None) -> int:
  """Returns the exit status: 1 if a benchmark failed. What was measured is printed all the same."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('programs', nargs='*', choices=[*PROGRAMS, []], help='which to run')
  parser.add_argument('--all', action='store_true', help='run all of them')
  parser.add_argument('--output', default='', help='file to write the lines to as well')
  given = parser.parse_args(arguments)
  programs = PROGRAMS if given.all else tuple(given.programs)
  if not programs:
    parser.error(f'name some of {", ".join(PROGRAMS)}, or --all')
  lines, failed = [], []
  for program in programs:
    say(f'== {program}')
    command = [sys.executable, '-m', f'benchmarks.{program}']
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
      failed.append(program)
      continue
    line = done.stdout.strip().splitlines()[-1]
    json.loads(line)
    print(line, flush=True)
    lines.append(line)
    if given.output:
      # after every one: a later failure must not lose it
      write_file(Path(given.output), ''.join(f'{x}\n' for x in lines))
  if failed:
    say(f'failed: {", ".join(failed)}')
  return 1 if failed else 0


if __name__ == '__main__':
  sys.exit(main())
