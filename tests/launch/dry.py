"""What a launcher would run, taken from its dry run by a real shell."""

import subprocess

COMMAND = ['python', '-m', 'align_jax.main', '--config=configs/clip.py', '--workdir=/runs/clip']
AWKWARD = ['python', "it's", 'a b', '$HOME', '"q"', 'back\\slash', 'line\nEND\nline', '', '*']
PLACE = ['--name=clip', '--zone=us-west4-a']
GKE = ['--name=clip', '--topology=v5e:4x4', '--image=registry/image:1']
SLURM = ['--name=clip', '--nodes=2', '--gpus_per_node=8', '--time=24:00:00']
XPK = [*GKE, '--cluster=c']


def dry_run(capsys, module, flags, command=()):
  """What a launcher would run: (arguments, standard input) of each command."""
  assert module.main([*flags, '--dry_run', *(['--', *command] if command else [])]) == 0
  text = capsys.readouterr().out
  # a shell takes it apart; functions in place of the tools write what they are given
  tools = '\n'.join(
    f'{name}() {{ printf "%s\\0" {name} "$@"; printf "\\1"; '
    + ('cat; ' if name in ('kubectl', 'sbatch') else '')
    + 'printf "\\2"; }'
    for name in ('gcloud', 'kubectl', 'xpk', 'sbatch', 'git', 'mkdir')
  )
  done = subprocess.run(
    ['bash', '-c', f'{tools}\n{text}'],
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    check=True,
  )
  found = []
  for one in done.stdout.split('\2')[:-1]:
    arguments, _, given = one.partition('\1')
    found.append((arguments.split('\0')[:-1], given))
  assert found
  return found


def remote_commands(found):
  return [a.removeprefix('--command=') for args, _ in found for a in args if 'command=' in a]
