"""The launchers' dry runs, against what their tools document; mistakes."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from align_jax.errors import RESTART_EXIT_CODE, UserError
from launch import gke, local, slurm, tpu_slices, tpu_vm
from tests.launch.dry import COMMAND, GKE, PLACE, SLURM, XPK, dry_run

ROOT = Path(__file__).parent.parent.parent

# The flags that each command documents, as far as a training run may want them.
# gcloud: `gcloud compute tpus ... --help`, Google Cloud SDK 528. kubectl: `kubectl ... --help`.
# xpk: github.com/AI-Hypercomputer/xpk src/xpk/parser/{workload,common}.py.
GCLOUD_WIDE = {'project', 'quiet', 'format'}
CREATE = {'zone', 'accelerator-type', 'type', 'topology', 'spot', 'async', 'network', 'subnetwork'}
CREATE |= {'internal-ips', 'labels', 'metadata', 'metadata-from-file', 'tags', 'service-account'}
DOCUMENTED = {
  'gcloud compute tpus tpu-vm create': CREATE | {'version'} | GCLOUD_WIDE,
  'gcloud compute tpus tpu-vm describe': {'zone'} | GCLOUD_WIDE,
  'gcloud compute tpus tpu-vm delete': {'zone', 'async'} | GCLOUD_WIDE,
  'gcloud compute tpus tpu-vm ssh': {'zone', 'worker', 'command', 'internal-ip'} | GCLOUD_WIDE,
  'gcloud compute tpus tpu-vm scp': {'zone', 'worker', 'recurse', 'compress'} | GCLOUD_WIDE,
  'gcloud compute tpus queued-resources create': CREATE
  | {'runtime-version', 'node-id', 'valid-until-duration'}
  | GCLOUD_WIDE,
  'gcloud compute tpus queued-resources describe': {'zone'} | GCLOUD_WIDE,
  'gcloud compute tpus queued-resources delete': {'zone', 'async', 'force'} | GCLOUD_WIDE,
  'git archive': {'format', 'output'},
  'mkdir': set(),
  'kubectl apply': {'filename', 'namespace'},
  'kubectl logs': {'selector', 'follow', 'prefix', 'tail', 'max-log-requests', 'namespace'},
  'kubectl get': {'selector', 'output', 'namespace'},
  'kubectl delete': {'namespace'},
  'xpk workload create': {
    *('cluster', 'workload', 'tpu-type', 'num-slices', 'docker-image', 'command', 'zone'),
    *('project', 'max-restarts', 'termination-grace-period-seconds'),
  },
  'sbatch': set(),
}
# slurm.schedmd.com/sbatch.html and srun.html
SBATCH = {'job-name', 'nodes', 'ntasks-per-node', 'gpus-per-node', 'cpus-per-task', 'mem', 'time'}
SBATCH |= {'partition', 'account', 'qos', 'output', 'open-mode', 'signal', 'requeue'}
SRUN = {'label', 'gpu-bind', 'cpus-per-task', 'kill-on-bad-exit', 'wait'}

DRY_RUNS = [
  (tpu_vm, ['create', *PLACE, '--topology=v4:2x2x4', '--extra=--network=n', '--project=p'], []),
  (tpu_vm, ['queue', *PLACE, '--topology=v5p:4x4x4', '--spot', '--valid_for=6h'], []),
  (tpu_vm, ['run', *PLACE], COMMAND),
  (tpu_vm, ['run', *PLACE, '--skip_install', '--restarts=2'], COMMAND),
  (tpu_vm, ['logs', *PLACE, '--worker=all', '--lines=5'], []),
  (tpu_vm, ['stop', *PLACE], []),
  (tpu_vm, ['status', *PLACE], []),
  (tpu_vm, ['status', *PLACE, '--queued'], []),
  (tpu_vm, ['delete', *PLACE], []),
  (tpu_vm, ['delete', *PLACE, '--queued'], []),
  (gke, ['run', *GKE, '--claim=runs', '--spot', '--queue=q', '--slices=2'], COMMAND),
  (gke, ['xpk', *XPK, '--zone=z', '--project=p', '--slices=2'], COMMAND),
  (gke, ['logs', '--name=clip', '--worker=all'], []),
  (gke, ['logs', '--name=clip'], []),
  (gke, ['status', '--name=clip'], []),
  (gke, ['delete', '--name=clip'], []),
  (slurm, [*SLURM, '--partition=gpu', '--account=a', '--qos=q', '--memory=0'], COMMAND),
]


@pytest.mark.parametrize(('module', 'flags', 'command'), DRY_RUNS)
def test_every_flag_is_documented(capsys, module, flags, command):
  for arguments, _ in dry_run(capsys, module, flags, command):
    name = max((n for n in DOCUMENTED if ' '.join(arguments).startswith(n)), key=len, default='')
    assert name, arguments
    given = {a[2:].split('=')[0] for a in arguments if a.startswith('--')}
    assert given <= DOCUMENTED[name], (name, given - DOCUMENTED[name])


def test_the_flags_a_launcher_has_are_all_tried():
  tried = {(m, f.split('=')[0]) for m, flags, _ in DRY_RUNS for f in flags if f.startswith('--')}
  for module in (tpu_vm, gke, slurm):
    parser = module._parser()
    for action in ['', 'create', 'queue', 'run', 'xpk', 'logs', 'stop', 'status', 'delete']:
      known = {f for f in parser._flags([action]) if f not in ('--help', '--dry_run')}
      known -= {'--namespace', '--mount', '--setup', '--cpus_per_gpu', '--grace_seconds'}
      known -= {'--restarts', '--image', '--lines'}
      assert known <= {f for m, f in tried if m is module}, (module.__name__, action)


def test_queue_asks_for_the_slice(capsys):
  flags = ['queue', *PLACE, '--topology=v5e:4x4', '--spot', '--valid_for=6h']
  ((arguments, _),) = dry_run(capsys, tpu_vm, flags)
  assert arguments == [
    *('gcloud', 'compute', 'tpus', 'queued-resources', 'create', 'clip', '--zone=us-west4-a'),
    *('--node-id=clip', '--accelerator-type=v5litepod-16'),
    *('--runtime-version=v2-alpha-tpuv5-lite', '--spot', '--valid-until-duration=6h'),
  ]


@pytest.mark.parametrize(
  ('name', 'chips', 'hosts', 'per_host', 'accelerator', 'label'),
  [
    ('v5e:1x1', 1, 1, 1, 'v5litepod-1', 'tpu-v5-lite-podslice'),
    ('v5e:2x4', 8, 1, 8, 'v5litepod-8', 'tpu-v5-lite-podslice'),
    ('v5e:16x16', 256, 64, 4, 'v5litepod-256', 'tpu-v5-lite-podslice'),
    ('v6e:4x4', 16, 4, 4, 'v6e-16', 'tpu-v6e-slice'),
    ('v4:2x2x1', 4, 1, 4, 'v4-8', 'tpu-v4-podslice'),
    ('v5p:4x4x8', 128, 32, 4, 'v5p-256', 'tpu-v5p-slice'),
  ],
)
def test_slices(name, chips, hosts, per_host, accelerator, label):
  # cloud.google.com/tpu/docs/v5e, v6e, v4, v5p: shapes, chips, machines
  found = tpu_slices.parse_slice(name)
  assert (found.chips, found.hosts, found.chips_per_host) == (chips, hosts, per_host)
  assert (found.accelerator_type, found.generation.gke) == (accelerator, label)


def test_jobset(capsys):
  flags = [*GKE, '--claim=runs', '--spot', '--queue=q', '--slices=2', '--grace_seconds=40']
  ((arguments, text),) = dry_run(capsys, gke, ['run', *flags], COMMAND)
  assert arguments == ['kubectl', 'apply', '--filename=-']
  found = yaml.safe_load(text)
  assert (found['apiVersion'], found['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')
  assert found['metadata']['labels'] == {'kueue.x-k8s.io/queue-name': 'q'}
  assert found['spec']['failurePolicy']['maxRestarts'] == 20
  (job,) = found['spec']['replicatedJobs']
  assert job['replicas'] == 2
  spec = job['template']['spec']
  assert spec['parallelism'] == spec['completions'] == 4
  assert spec['backoffLimit'] == 0
  (rule,) = spec['podFailurePolicy']['rules']
  pod = spec['template']['spec']
  (container,) = pod['containers']
  assert rule['onExitCodes']['containerName'] == container['name']
  # bad input is final, a preemption and a death (128 and more) are not
  assert rule['onExitCodes']['operator'] == 'In'
  assert 2 in rule['onExitCodes']['values']
  assert RESTART_EXIT_CODE not in rule['onExitCodes']['values']
  assert max(rule['onExitCodes']['values']) < 128
  assert pod['restartPolicy'] == 'Never'
  assert pod['terminationGracePeriodSeconds'] == 40
  assert pod['nodeSelector'] == {
    'cloud.google.com/gke-tpu-accelerator': 'tpu-v5-lite-podslice',
    'cloud.google.com/gke-tpu-topology': '4x4',
    'cloud.google.com/gke-spot': 'true',
  }
  assert container['resources']['limits'] == {'google.com/tpu': 4}
  assert container['command'] == COMMAND
  assert pod['volumes'][0]['persistentVolumeClaim'] == {'claimName': 'runs'}
  assert container['volumeMounts'] == [{'name': 'runs', 'mountPath': '/runs'}]


def test_slurm_script(capsys):
  flags = [*SLURM, '--memory=0', '--setup=source env', '--setup=ulimit -n 4096']
  ((_, text),) = dry_run(capsys, slurm, flags, COMMAND)
  lines = text.splitlines()
  assert lines[0] == '#!/bin/bash'
  options = [line.removeprefix('#SBATCH --') for line in lines if line.startswith('#SBATCH')]
  assert {o.split('=')[0] for o in options} <= SBATCH
  assert {'ntasks-per-node=8', 'gpus-per-node=8', 'nodes=2', 'requeue', 'mem=0'} <= set(options)
  assert 'signal=TERM@300' in options
  assert not any(o.startswith('partition') for o in options)
  # the options end at the first line that is none
  assert lines.index('source env') > max(i for i, x in enumerate(lines) if x.startswith('#SBATCH'))
  (run,) = [shlex.split(line.partition('||')[0]) for line in lines if line.startswith('srun')]
  at = run.index('python')
  assert {a[2:].split('=')[0] for a in run[1:at]} <= SRUN
  assert run[at:] == COMMAND
  subprocess.run(['bash', '-n'], input=text, text=True, check=True)


@pytest.mark.parametrize(
  ('module', 'argv', 'message'),
  [
    (tpu_vm, ['run', *PLACE], '--: no command'),
    (tpu_vm, ['logs', *PLACE, '--', 'x'], '--: only `run` takes a command'),
    (tpu_vm, ['create', *PLACE], 'the following arguments are required: --topology'),
    (tpu_vm, ['create', *PLACE, '--topology=v9:4x4'], "--topology: 'v9' is no TPU; known: v4"),
    (tpu_vm, ['create', *PLACE, '--topology=v5e:4x5'], '--topology: v5e does not come as 4x5'),
    (tpu_vm, ['create', *PLACE, '--topology=v4:4x4'], "--topology: 'v4:4x4' is no shape of v4"),
    (tpu_vm, ['create', *PLACE, '--topology=v4:1x2x1'], '--topology: v4:1x2x1 is no whole number'),
    (
      tpu_vm,
      ['create', *PLACE, '--toplogy=x'],
      '--toplogy: unknown flag; did you mean',
    ),
    (tpu_vm, ['start', *PLACE], "argument ACTION: invalid choice: 'start'"),
    (gke, ['run', *GKE[1:], '--name=Clip', '--', 'x'], "--name: 'Clip' must be small letters"),
    (gke, ['run', *GKE, '--slices=0', '--', 'x'], '--slices: must be 1 or more'),
    (gke, ['run', *GKE], '--: no command'),
    (slurm, [*SLURM, '--time=1 day', '--', 'x'], "--time: '1 day'"),
    (slurm, [*SLURM, '--grace_seconds=0', '--', 'x'], '--grace_seconds: must be 1 to 65535'),
    (slurm, SLURM, '--: no command'),
    (local, ['--processes=0', '--', 'x'], '--processes: must be 1 or more'),
    (local, ['--processes=2'], '--: no command'),
    (local, ['--processes=2', '--', 'no-such-program'], "--: 'no-such-program' is no program"),
    (local, ['--procesess=2', '--', 'x'], "--procesess: unknown flag; did you mean '--processes'"),
  ],
)
def test_mistakes_name_the_flag(module, argv, message):
  with pytest.raises(UserError, match=f'^{re.escape(message)}'):
    module.main(argv)


@pytest.mark.parametrize(
  ('module', 'argv', 'tool'),
  [
    (tpu_vm, ['status', *PLACE], 'gcloud'),
    (gke, ['status', '--name=clip'], 'kubectl'),
    (gke, ['xpk', *XPK, '--', 'x'], 'xpk'),
    (slurm, [*SLURM, '--', 'x'], 'sbatch'),
  ],
)
def test_a_missing_tool_is_named(module, argv, tool, monkeypatch, tmp_path):
  monkeypatch.setenv('PATH', str(tmp_path))
  with pytest.raises(UserError, match=f'^{tool}: not found; .*--dry_run'):
    module.main(argv)


def test_commands_run_in_order_up_to_the_first_failure(tmp_path, monkeypatch, capfd):
  for name, code in (('git', 0), ('gcloud', 3), ('mkdir', 0)):
    (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@"\nexit {code}\n')
    (tmp_path / name).chmod(0o755)
  monkeypatch.setenv('PATH', f'{tmp_path}')
  assert tpu_vm.main(['run', *PLACE, '--', *COMMAND]) == 3
  out, err = capfd.readouterr()
  assert [line.split()[0] for line in out.splitlines()] == ['mkdir', 'git', 'gcloud']
  assert err.startswith('failed with exit code 3: gcloud compute tpus tpu-vm scp')


def test_a_real_process_ends_with_code_2_and_one_line():
  done = subprocess.run(
    [sys.executable, '-m', 'launch.slurm', '--name=x', '--nodse=2', '--', 'x'],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == 2
  assert done.stderr == "error: --nodse: unknown flag; did you mean '--nodes'?\n"


def test_the_commands_of_the_document_exist(capsys):
  text = (ROOT / 'docs' / 'launching.md').read_text()
  blocks = '\n'.join(re.findall(r'```sh\n(.*?)```', text, re.DOTALL)).replace('\\\n', ' ')
  modules = {'local': local, 'tpu_vm': tpu_vm, 'gke': gke, 'slurm': slurm}
  used = set()
  for line in blocks.splitlines():
    words = shlex.split(line, comments=True)
    if len(words) < 3 or not words[2].startswith('launch.'):
      continue
    name = words[2].removeprefix('launch.')
    used.add(name)
    ours = words[3 : words.index('--')] if '--' in words else words[3:]
    assert modules[name].main([*ours, '--dry_run', *words[3 + len(ours) :]]) == 0, line
  assert used == set(modules)
