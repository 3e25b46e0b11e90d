"""Trains on TPU slices of a GKE cluster, as a JobSet of our own or through XPK.

  python -m launch.gke run --name=clip --topology=v5e:4x4 --image=IMAGE --claim=runs -- \\
    python -m align_jax.main --config=configs/clip.py --workdir=/runs/clip
  python -m launch.gke logs --name=clip
  python -m launch.gke delete --name=clip

`run` applies a JobSet with kubectl; `xpk` creates an XPK workload; --dry_run shows the manifest.
GKE gives each pod the names of the others (TPU_WORKER_HOSTNAMES, MEGASCALE_*), which JAX reads.
"""

import argparse
import re
import shlex
from collections.abc import Sequence
from typing import Any

import yaml

from align_jax.errors import UserError, require
from launch.commands import (
  Command,
  Parser,
  add_dry_run,
  entry,
  need_command,
  perform,
  split_command,
)
from launch.tpu_slices import TpuSlice, parse_slice

_CONTAINER = 'train'
# A traceback and bad input (see align_jax.cli): running again would only repeat them.
_FINAL = [1, 2]
_JOBSET_LABEL = 'jobset.sigs.k8s.io/jobset-name'
_WORKER_LABEL = 'batch.kubernetes.io/job-completion-index'


def main(argv: Sequence[str]) -> int:
  """Carries out one action; returns the exit code."""
  ours, command = split_command(argv)
  args = _parser().parse(ours)
  if command and args.action not in ('run', 'xpk'):
    raise UserError(f'--: only `run` and `xpk` take a command, {args.action} does not')
  # names of Kubernetes objects; JobSet appends -slice-0-0 and a hash for the pods
  if not re.fullmatch(r'[a-z]([-a-z0-9]{0,38}[a-z0-9])?', args.name):
    raise UserError(
      f'--name: {args.name!r} must be small letters, digits and -, 40 at most, a letter first'
    )
  return perform(_commands(args, command), args.dry_run)


def _commands(args: argparse.Namespace, command: Sequence[str]) -> list[Command]:
  if args.action in ('run', 'xpk'):
    command = need_command(command, f'launch.gke {args.action}')
    for flag in ('slices', 'grace_seconds'):
      require(getattr(args, flag) >= 1, f'--{flag}', 'must be 1 or more')
    require(args.restarts >= 0, '--restarts', 'must be 0 or more')
    tpu = parse_slice(args.topology)
  if args.action == 'run':
    manifest = yaml.safe_dump(jobset(args, tpu, command), sort_keys=False, width=1000)
    return [Command(('kubectl', 'apply', '--filename=-'), stdin=manifest)]
  if args.action == 'xpk':
    return [_xpk(args, tpu, command)]
  space = (f'--namespace={args.namespace}',)
  pods = f'{_JOBSET_LABEL}={args.name}'
  if args.action == 'logs':
    if args.worker != 'all':
      pods += f',{_WORKER_LABEL}={args.worker}'
    flags = ('--follow', '--prefix', f'--tail={args.lines}', '--max-log-requests=1000')
    return [Command(('kubectl', 'logs', f'--selector={pods}', *flags, *space))]
  if args.action == 'status':
    return [
      Command(('kubectl', 'get', 'jobset', args.name, *space)),
      Command(('kubectl', 'get', 'pods', f'--selector={pods}', '--output=wide', *space)),
    ]
  return [Command(('kubectl', 'delete', 'jobset', args.name, *space))]


def _parser() -> Parser:
  parser = Parser(prog='launch.gke', description=__doc__)
  actions = parser.add_subparsers(dest='action', required=True, metavar='ACTION')

  def add(name: str, text: str) -> argparse.ArgumentParser:
    action = actions.add_parser(name, help=text, description=text)
    action.add_argument('--name', required=True, help='of the JobSet or workload')
    add_dry_run(action)
    return action

  for name, text in (
    ('run', 'applies a JobSet that runs the command behind --'),
    ('xpk', 'creates an XPK workload that runs the command behind --'),
  ):
    action = add(name, text)
    action.add_argument('--topology', required=True, help='such as v5e:4x4')
    action.add_argument('--slices', type=int, default=1)
    action.add_argument('--image', required=True, help='container image with this package')
    action.add_argument(
      '--restarts', type=int, default=20, help='so often it runs again after a preemption or death'
    )
    action.add_argument(
      '--grace_seconds', type=int, default=120, help='between SIGTERM and the kill, where GKE can'
    )
    if name == 'run':
      action.add_argument('--namespace', default='default')
      action.add_argument('--claim', default='', help='volume claim that all pods can write to')
      action.add_argument('--mount', default='/runs', help='where the claim is mounted')
      action.add_argument('--spot', action='store_true', help='on spot nodes')
      action.add_argument('--queue', default='', help='Kueue LocalQueue')
    else:
      action.add_argument('--cluster', required=True)
      action.add_argument('--zone', default='')
      action.add_argument('--project', default='')
  for name, text in (
    ('logs', 'follows the output of `run`'),
    ('status', 'shows the JobSet and its pods'),
    ('delete', 'stops and deletes the JobSet'),
  ):
    action = add(name, text)
    action.add_argument('--namespace', default='default')
    if name == 'logs':
      action.add_argument('--worker', default='0', help='a host of each slice, or all')
      action.add_argument('--lines', type=int, default=100, help='that were written before')
  return parser


def jobset(args: argparse.Namespace, tpu: TpuSlice, command: Sequence[str]) -> dict[str, Any]:
  """The JobSet: one job a slice, one pod a host; the whole set runs again when a pod is lost.

  Fields: jobset.sigs.k8s.io (jobset.x-k8s.io/v1alpha2) and cloud.google.com/kubernetes-engine/docs,
  "TPU Multislice"; XPK writes the same.
  """
  labels = {'kueue.x-k8s.io/queue-name': args.queue} if args.queue else {}
  return {
    'apiVersion': 'jobset.x-k8s.io/v1alpha2',
    'kind': 'JobSet',
    'metadata': {
      'name': args.name,
      'namespace': args.namespace,
      **({'labels': labels} if labels else {}),
      # one slice is one node pool, and takes one job
      'annotations': {
        'alpha.jobset.sigs.k8s.io/exclusive-topology': 'cloud.google.com/gke-nodepool'
      },
    },
    'spec': {
      'failurePolicy': {
        'maxRestarts': args.restarts,
        # a failure that podFailurePolicy below calls final; every other one restarts the set
        'rules': [{'action': 'FailJobSet', 'onJobFailureReasons': ['PodFailurePolicy']}],
      },
      'replicatedJobs': [
        {
          'name': 'slice',
          'replicas': args.slices,
          'template': {
            'spec': {
              'parallelism': tpu.hosts,
              'completions': tpu.hosts,
              'backoffLimit': 0,  # a pod alone cannot come back: the others wait for it in vain
              'podFailurePolicy': {
                'rules': [
                  {
                    'action': 'FailJob',
                    'onExitCodes': {
                      'containerName': _CONTAINER,
                      'operator': 'In',
                      'values': _FINAL,
                    },
                  }
                ]
              },
              'template': {'spec': _pod(args, tpu, command)},
            }
          },
        }
      ],
    },
  }


def _pod(args: argparse.Namespace, tpu: TpuSlice, command: Sequence[str]) -> dict[str, Any]:
  selector = {
    'cloud.google.com/gke-tpu-accelerator': tpu.generation.gke,
    'cloud.google.com/gke-tpu-topology': tpu.topology,
  }
  if args.spot:
    selector['cloud.google.com/gke-spot'] = 'true'
  container: dict[str, Any] = {
    'name': _CONTAINER,
    'image': args.image,
    # no shell around it: SIGTERM must reach the command itself
    'command': list(command),
    'env': [{'name': 'PYTHONUNBUFFERED', 'value': '1'}],
    'ports': [{'containerPort': 8471}, {'containerPort': 8482}],  # the TPU runtime, JAX
    'resources': {'limits': {'google.com/tpu': tpu.chips_per_host}},
  }
  pod: dict[str, Any] = {
    'restartPolicy': 'Never',  # podFailurePolicy asks for it
    'terminationGracePeriodSeconds': args.grace_seconds,
    'hostNetwork': True,
    'dnsPolicy': 'ClusterFirstWithHostNet',
    'nodeSelector': selector,
    'containers': [container],
  }
  if args.claim:
    container['volumeMounts'] = [{'name': 'runs', 'mountPath': args.mount}]
    pod['volumes'] = [{'name': 'runs', 'persistentVolumeClaim': {'claimName': args.claim}}]
  return pod


def _xpk(args: argparse.Namespace, tpu: TpuSlice, command: Sequence[str]) -> Command:
  # Flags: github.com/AI-Hypercomputer/xpk, src/xpk/parser/workload.py and common.py. XPK restarts
  # on 42 and 127-255 by itself. `exec` puts the command in place of the subshell that XPK signals.
  flags = [
    f'--cluster={args.cluster}',
    f'--workload={args.name}',
    f'--tpu-type={tpu.accelerator_type}',
    f'--num-slices={args.slices}',
    f'--docker-image={args.image}',
    f'--max-restarts={args.restarts}',
    f'--termination-grace-period-seconds={args.grace_seconds}',
    f'--command=exec {shlex.join(command)}',
  ]
  flags += [f'--zone={args.zone}'] if args.zone else []
  flags += [f'--project={args.project}'] if args.project else []
  return Command(('xpk', 'workload', 'create', *flags))


if __name__ == '__main__':
  entry(main)
