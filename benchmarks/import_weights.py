"""Memory and time of reading a CLIP folder into sharded parameters, beside transformers' reading.

  python -m benchmarks.import_weights [--model=L/14] [--devices=8] [--rounds=3] [--folder=DIR]

Writes a randomly initialised CLIP of that size as a Hugging Face folder and reads it, in processes
of their own: ours as training does, into shards over simulated devices (`initial_params`, then
`create_state` with AdamW's moments), the peer by `CLIPModel.from_pretrained`.

`beyond` is the most memory the process held, less what it held before and less the arrays that stay
(here the devices' memory is the host's as well): what reading costs a host. It is to stay below the
largest tensor of the folder and 1 GiB.
"""

import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from align_jax.errors import UserError, did_you_mean
from align_jax.interop.tensors import Tensors
from align_jax.models.variants import VARIANTS
from align_jax.objectives import make_objective
from align_jax.train.init import find_origins, initial_params, make_config
from align_jax.train.plan import plan
from align_jax.train.state import create_state, param_shardings
from benchmarks import common

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Options:
  """What is measured.

  Attributes:
    model: size of both towers, and the patch.
    devices: simulated; every parameter is split over all of them (`fsdp`).
    rounds: turns of each side.
    folder: where to write; '' is a temporary folder.
    side: `ours` or `peer` reads `folder` in this process; '' writes one and starts both.
  """

  model: str = 'L/14'
  devices: int = 8
  rounds: int = 3
  folder: str = ''
  side: str = ''


def write_model(options: Options, folder: Path) -> None:
  """Saves a random CLIP.

  Raises:
    UserError: an unknown size.
  """
  from transformers import CLIPConfig, CLIPModel

  name, _, patch = options.model.partition('/')
  if name not in VARIANTS or not patch.isdigit():
    raise UserError(f'--model: {options.model!r}{did_you_mean(name, VARIANTS)}; a size is L/14')
  size = VARIANTS[name]
  tower = {
    'hidden_size': size.width,
    'intermediate_size': size.mlp_dim,
    'num_attention_heads': size.heads,
    'num_hidden_layers': size.depth,
    'projection_dim': size.width,
  }
  config = CLIPConfig(
    text_config=tower, vision_config={**tower, 'patch_size': int(patch)}, projection_dim=size.width
  )
  CLIPModel(config).save_pretrained(folder)


def _status(field: str) -> int:
  """Bytes of a field of /proc/self/status, of this process."""
  for line in Path('/proc/self/status').read_text().splitlines():
    if line.startswith(f'{field}:'):
      return 1024 * int(line.split()[1])
  raise UserError(f'/proc/self/status has no {field}: this is measured on Linux alone')


def _watched(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
  """Runs `work`. Returns its result; its seconds and how far the memory rose meanwhile, GiB."""
  before = _status('VmRSS')
  Path('/proc/self/clear_refs').write_text('5')  # forgets the peak so far
  start = time.perf_counter()
  out = work()
  return out, {
    'seconds': time.perf_counter() - start,
    'rise_gib': (_status('VmHWM') - before) / _GIB,
  }


def _gib(tree: Any) -> float:
  return sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) / _GIB


def read_ours(options: Options) -> dict[str, Any]:
  """Reads the folder as training does, in this process."""
  jax.config.update('jax_num_cpu_devices', options.devices)
  config = make_config(
    {
      'seed': 0,
      'steps': 1,
      'batch_size': options.devices,
      'objective': {'name': 'contrastive'},
      'model': {'init': f'hf:{options.folder}'},
      'data': {'tokenizer': options.folder},
      'mesh': {'data': 1, 'fsdp': options.devices},
      'optimizer': {'lr': 1e-5},
    }
  )
  objective = make_objective(config.objective)
  planned = plan(config, objective)
  origins = find_origins(f'hf:{options.folder}')
  shardings = param_shardings(planned.skeleton, planned.mesh, config.mesh.rules)

  def read() -> Any:
    return jax.block_until_ready(initial_params(planned.skeleton, origins, shardings))

  def create() -> Any:
    return jax.block_until_ready(
      create_state(
        planned.skeleton,
        objective,
        planned.optimizer,
        key=jax.random.key(config.seed),
        mesh=planned.mesh,
        rules=config.mesh.rules,
        ema=False,
        given=params,
      )
    )

  params, reading = _watched(read)
  held = _gib(params)
  state, creating = _watched(create)
  return {
    'parameters_gib': held,
    'state_gib': _gib(state),
    'read_seconds': reading['seconds'],
    'read_beyond_gib': reading['rise_gib'] - held,
    'create_seconds': creating['seconds'],
    'create_beyond_gib': creating['rise_gib'] - (_gib(state) - held),
  }


def read_peer(options: Options) -> dict[str, Any]:
  """Reads the folder with transformers, in this process."""
  from transformers import CLIPModel

  def read() -> Any:
    model = CLIPModel.from_pretrained(options.folder)
    for parameter in model.parameters():
      parameter.sum()  # until then it is a mapped file that nobody has read
    return model

  model, reading = _watched(read)
  held = sum(p.numel() * p.element_size() for p in model.parameters()) / _GIB
  return {
    'parameters_gib': held,
    'read_seconds': reading['seconds'],
    'read_beyond_gib': reading['rise_gib'] - held,
  }


def _in_turns(options: Options, folder: Path) -> dict[str, list[dict[str, Any]]]:
  out: dict[str, list[dict[str, Any]]] = {'ours': [], 'peer': []}
  for turn in range(options.rounds):
    for side, lines in out.items():
      command = [sys.executable, '-m', 'benchmarks.import_weights', f'--side={side}']
      command += [f'--folder={folder}', f'--devices={options.devices}']
      done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
      lines.append(json.loads(done.stdout.strip().splitlines()[-1]))
      common.say(f'round {turn + 1} of {options.rounds}, {side}: {lines[-1]}')
  return out


def run(options: Options) -> dict[str, Any]:
  """Measures both sides in turns."""
  for package in ('torch', 'transformers'):
    common.need(package)
  if options.side:
    return {'ours': read_ours, 'peer': read_peer}[options.side](options)
  folder = Path(tempfile.mkdtemp(dir=options.folder or None))
  try:
    write_model(options, folder)
    tensors = Tensors(folder)
    largest = max(tensors.read(name).nbytes for name in tensors.names) / _GIB
    rounds = _in_turns(options, folder)
  finally:
    shutil.rmtree(folder, ignore_errors=True)
  figures = {
    side: {name: common.spread([line[name] for line in lines]) for name in lines[0]}
    for side, lines in rounds.items()
  }
  beyond = max(line[f'{what}_beyond_gib'] for line in rounds['ours'] for what in ('read', 'create'))
  return {
    'benchmark': 'import_weights',
    **common.machine(),
    'model': f'CLIP {options.model}',
    'devices': options.devices,
    'largest_tensor_gib': common.rounded(largest),
    **figures,
    'beyond_gib': common.rounded(beyond),
    'target_gib': common.rounded(largest + 1),
    'met': beyond <= largest + 1,
    'ratio': common.ratios(
      {side: [line['read_seconds'] for line in lines] for side, lines in rounds.items()}, target=1.0
    ),
  }


if __name__ == '__main__':
  common.command(Options, run, __doc__.splitlines()[0])
