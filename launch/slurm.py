"""Submits a run on the GPUs of a SLURM cluster: one process a GPU, requeued until it is done.

  python -m launch.slurm --name=clip --nodes=2 --gpus_per_node=8 --time=24:00:00 \\
    --setup='source .venv/bin/activate' -- \\
    python -m align_jax.main --config=configs/clip.py --workdir=runs/clip

Output goes to NAME-JOB.log in the folder it is submitted from. `squeue --me` shows the job,
`scancel JOB` ends it.
"""

import argparse
import re
import shlex
from collections.abc import Sequence

from align_jax.errors import RESTART_EXIT_CODE, UserError, require
from launch.commands import (
  Command,
  Parser,
  add_dry_run,
  entry,
  need_command,
  perform,
  split_command,
)


def main(argv: Sequence[str]) -> int:
  """Submits the job; returns sbatch's exit code."""
  ours, command = split_command(argv)
  args = _parser().parse(ours)
  command = need_command(command, 'launch.slurm')
  for flag in ('nodes', 'gpus_per_node', 'cpus_per_gpu'):
    require(getattr(args, flag) >= 1, f'--{flag}', 'must be 1 or more')
  require(args.restarts >= 0, '--restarts', 'must be 0 or more')
  # sbatch --signal: sig_time must be an integer between 0 and 65535
  require(0 < args.grace_seconds <= 65535, '--grace_seconds', 'must be 1 to 65535')
  for flag in ('name', 'time', 'partition', 'account', 'qos', 'memory'):
    # sbatch reads #SBATCH lines itself, without a shell that would take quotes away
    if not re.fullmatch(r'[\w.:+,-]*', getattr(args, flag)):
      raise UserError(f'--{flag}: {getattr(args, flag)!r}; use letters, digits and .:+,_-')
  return perform([Command(('sbatch',), stdin=script(args, command))], args.dry_run)


def _parser() -> Parser:
  parser = Parser(prog='launch.slurm', description=__doc__)
  parser.add_argument('--name', required=True, help='of the job')
  parser.add_argument('--nodes', type=int, default=1)
  parser.add_argument('--gpus_per_node', type=int, required=True, help='all GPUs of a node')
  parser.add_argument('--cpus_per_gpu', type=int, default=8)
  parser.add_argument('--memory', default='', help='per node, such as 200G; 0: all of it')
  parser.add_argument('--time', required=True, help='limit, such as 24:00:00')
  parser.add_argument('--partition', default='')
  parser.add_argument('--account', default='')
  parser.add_argument('--qos', default='')
  parser.add_argument(
    '--setup', action='append', default=[], help='a line of bash before the run; may be repeated'
  )
  parser.add_argument(
    '--grace_seconds', type=int, default=300, help='SIGTERM comes so long before the time limit'
  )
  parser.add_argument('--restarts', type=int, default=100, help='so often the job is requeued')
  add_dry_run(parser)
  return parser


def script(args: argparse.Namespace, command: Sequence[str]) -> str:
  """The batch script. Options: slurm.schedmd.com/sbatch.html and srun.html."""
  options = {
    'job-name': args.name,
    'nodes': args.nodes,
    # one process a GPU is what JAX's own SLURM support expects: process i of a node takes GPU i
    # and must see all of them, so no --gpus-per-task (github.com/jax-ml/jax/issues/28194)
    'ntasks-per-node': args.gpus_per_node,
    'gpus-per-node': args.gpus_per_node,
    'cpus-per-task': args.cpus_per_gpu,
    'mem': args.memory,
    'time': args.time,
    'partition': args.partition,
    'account': args.account,
    'qos': args.qos,
    'output': '%x-%j.log',
    'open-mode': 'append',  # a requeued job goes on in the same file
    # to the processes, not (B:) to this script: a SIGTERM that it passed on to srun would make srun
    # kill them at once ("forcing job termination")
    'signal': f'TERM@{args.grace_seconds}',
  }
  lines = [f'#SBATCH --{name}={value}' for name, value in options.items() if value != '']
  run = shlex.join(command)
  return '\n'.join(
    [
      '#!/bin/bash',
      *lines,
      '#SBATCH --requeue',
      '',
      *args.setup,
      "stopped=''",
      "trap 'stopped=1' TERM  # only scancel, the time limit and SLURM's own requeue signal this",
      'code=0',
      # a process that ends first must not have the others killed while they save; JAX ends them
      # when one dies, and --wait is the bound behind that
      f'srun --label --gpu-bind=none --cpus-per-task={args.cpus_per_gpu} --kill-on-bad-exit=0 '
      f'--wait=600 {run} || code=$?',
      'echo "launch: ended with exit code $code at $(date -u +%FT%TZ)"',
      f'if {{ [ "$code" -eq {RESTART_EXIT_CODE} ] || [ "$code" -ge 128 ]; }} && [ -z "$stopped" ] '
      f'&& [ "${{SLURM_RESTART_COUNT:-0}}" -lt {args.restarts} ]; then',
      '  scontrol requeue "$SLURM_JOB_ID"',
      '  exit 0',
      'fi',
      'exit "$code"',
      '',
    ]
  )


if __name__ == '__main__':
  entry(main)
