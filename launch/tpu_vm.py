"""Trains on a TPU VM slice: makes it, runs the command on all its hosts, reads logs, deletes it.

  python -m launch.tpu_vm queue --name=clip --zone=us-west4-a --topology=v5e:4x4 --spot
  python -m launch.tpu_vm run --name=clip --zone=us-west4-a --topology=v5e:4x4 -- \\
    python -m align_jax.main --config=configs/clip.py --workdir=/mnt/runs/clip
  python -m launch.tpu_vm logs --name=clip --zone=us-west4-a
  python -m launch.tpu_vm delete --name=clip --zone=us-west4-a

`run` installs the commit that is checked out (git archive HEAD) and starts the command in the
background; the hosts find each other through the slice's own metadata.
"""

import argparse
from collections.abc import Sequence

from align_jax.errors import UserError, require
from launch.commands import (
  Command,
  Parser,
  add_dry_run,
  entry,
  heredoc,
  need_command,
  perform,
  restart_script,
  split_command,
)
from launch.tpu_slices import TpuSlice, parse_slice

# Flags: `gcloud compute tpus tpu-vm ... --help` and `gcloud compute tpus queued-resources ...
# --help`, Google Cloud SDK 528, and cloud.google.com/sdk/gcloud/reference/compute/tpus.
_NODE = ('gcloud', 'compute', 'tpus', 'tpu-vm')
_QUEUE = ('gcloud', 'compute', 'tpus', 'queued-resources')
_ARCHIVE = 'build/align_jax.tar.gz'
# On the hosts, in the home folder.
_CODE = 'align_jax'
_RUN = 'align_jax_run'


def main(argv: Sequence[str]) -> int:
  """Carries out one action; returns the exit code."""
  ours, command = split_command(argv)
  args = _parser().parse(ours)
  if command and args.action != 'run':
    raise UserError(f'--: only `run` takes a command, {args.action} does not')
  return perform(_commands(args, command), args.dry_run)


def _commands(args: argparse.Namespace, command: Sequence[str]) -> list[Command]:
  if args.action == 'create':
    return [_create(args, parse_slice(args.topology))]
  if args.action == 'queue':
    return [_queue(args, parse_slice(args.topology))]
  if args.action == 'run':
    require(args.restarts >= 0, '--restarts', 'must be 0 or more')
    return _run(args, need_command(command, 'launch.tpu_vm run'))
  if args.action == 'logs':
    require(args.lines >= 0, '--lines', 'must be 0 or more')
    return [_ssh(args, f'tail --lines={args.lines} -F {_RUN}/log.txt', worker=args.worker)]
  if args.action == 'stop':
    return [_ssh(args, _STOP)]
  if args.action == 'status':
    place = _place(args)
    kind = (*_QUEUE, 'describe', args.name) if args.queued else (*_NODE, 'describe', args.name)
    return [Command((*kind, *place))]
  return [_delete(args)]


def _parser() -> Parser:
  parser = Parser(prog='launch.tpu_vm', description=__doc__)
  actions = parser.add_subparsers(dest='action', required=True, metavar='ACTION')

  def add(name: str, text: str) -> argparse.ArgumentParser:
    action = actions.add_parser(name, help=text, description=text)
    action.add_argument('--name', required=True, help='of the TPU VM (and of its request)')
    action.add_argument('--zone', required=True)
    action.add_argument('--project', default='', help="default: gcloud's own")
    add_dry_run(action)
    return action

  for name, text in (
    ('create', 'makes a TPU VM now, or fails where there is none free'),
    ('queue', 'asks for a TPU VM and gets it when one is free'),
  ):
    action = add(name, text)
    action.add_argument('--topology', required=True, help='such as v5e:4x4')
    action.add_argument('--spot', action='store_true', help='cheaper, may be taken away')
    action.add_argument('--image', default='', help='TPU software version; default: the one of JAX')
    action.add_argument(
      '--extra', action='append', default=[], help='one more flag for gcloud; may be repeated'
    )
    if name == 'queue':
      action.add_argument('--valid_for', default='', help='give up after so long, such as 6h')
  action = add('run', 'installs the code on all hosts and starts the command behind --')
  action.add_argument(
    '--restarts', type=int, default=20, help='so often it runs again after a preemption or a death'
  )
  action.add_argument('--skip_install', action='store_true', help='the code is there already')
  action = add('logs', 'follows the output')
  action.add_argument('--worker', default='0', help='a host, or all')
  action.add_argument('--lines', type=int, default=100, help='that were written before')
  add('stop', 'sends SIGTERM to the run: it saves and ends')
  action = add('status', 'describes the TPU VM')
  action.add_argument('--queued', action='store_true', help='the request of `queue` instead')
  action = add('delete', 'deletes the TPU VM')
  action.add_argument('--queued', action='store_true', help='with the request of `queue`')
  return parser


def _place(args: argparse.Namespace) -> tuple[str, ...]:
  return (f'--zone={args.zone}', *([f'--project={args.project}'] if args.project else []))


def _shape(tpu: TpuSlice) -> tuple[str, ...]:
  if tpu.generation.shaped:
    return (f'--type={tpu.generation.cloud}', f'--topology={tpu.topology}')
  return (f'--accelerator-type={tpu.accelerator_type}',)


def _create(args: argparse.Namespace, tpu: TpuSlice) -> Command:
  image = args.image or tpu.generation.image
  spot = ['--spot'] if args.spot else []
  flags = (*_place(args), *_shape(tpu), f'--version={image}', *spot, *args.extra)
  return Command((*_NODE, 'create', args.name, *flags))


def _queue(args: argparse.Namespace, tpu: TpuSlice) -> Command:
  image = args.image or tpu.generation.image
  more = ['--spot'] if args.spot else []
  if args.valid_for:
    more.append(f'--valid-until-duration={args.valid_for}')
  node = (f'--node-id={args.name}', *_shape(tpu), f'--runtime-version={image}')
  return Command((*_QUEUE, 'create', args.name, *_place(args), *node, *more, *args.extra))


def _delete(args: argparse.Namespace) -> Command:
  # a request cannot be deleted while it holds a TPU VM, unless forced to take it along
  if args.queued:
    return Command((*_QUEUE, 'delete', args.name, *_place(args), '--force', '--quiet'))
  return Command((*_NODE, 'delete', args.name, *_place(args), '--quiet'))


def _ssh(args: argparse.Namespace, remote: str, worker: str = 'all') -> Command:
  target = (args.name, *_place(args), f'--worker={worker}')
  return Command((*_NODE, 'ssh', *target, f'--command={remote}'))


def _run(args: argparse.Namespace, command: Sequence[str]) -> list[Command]:
  install = [
    Command(('mkdir', '-p', 'build')),
    Command(('git', 'archive', '--format=tar.gz', f'--output={_ARCHIVE}', 'HEAD')),
    Command((*_NODE, 'scp', _ARCHIVE, f'{args.name}:', *_place(args), '--worker=all')),
    _ssh(args, _INSTALL),
  ]
  start = _ssh(args, start_text(command, args.restarts))
  return [start] if args.skip_install else [*install, start]


# The images bring Python 3.10: uv fetches a newer one. PIP_BREAK_SYSTEM_PACKAGES lets pip install
# for the user on images that guard the system's Python; an older pip does not know it.
_INSTALL = f"""\
set -e
mkdir -p {_CODE}
tar -xzf align_jax.tar.gz -C {_CODE}
cd {_CODE}
test -x ~/.local/bin/uv || PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
~/.local/bin/uv venv --quiet --allow-existing --python=3.11 .venv
~/.local/bin/uv pip install --quiet --python=.venv/bin/python --constraint=requirements.txt \\
  --editable='.[demo]' 'jax[tpu]'"""


def start_text(command: Sequence[str], restarts: int) -> str:
  """The remote command that starts `command` in the background, once; its output goes to a log."""
  script = (
    f'cd ~/{_CODE} || exit 1\nexport PATH="$PWD/.venv/bin:$PATH" PYTHONUNBUFFERED=1\n'
    + restart_script(command, restarts)
  )
  # nohup and setsid: the end of this ssh session is no reason to stop
  return f"""\
set -e
mkdir -p {_RUN}
if test -f {_RUN}/pid && kill -0 "$(cat {_RUN}/pid)" 2>/dev/null; then
  echo "error: a run goes on here already; stop it first" >&2
  exit 1
fi
cat > {_RUN}/run.sh {heredoc(script)}
setsid nohup bash {_RUN}/run.sh >> {_RUN}/log.txt 2>&1 < /dev/null &
echo "$!" > {_RUN}/pid"""


_STOP = f'test -f {_RUN}/pid && kill -TERM "$(cat {_RUN}/pid)"'


if __name__ == '__main__':
  entry(main)
