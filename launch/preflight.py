"""Asks the TPU compiler, with no TPU, whether a config's step fits a slice and how fast it can be.

  python -m launch.preflight --config=configs/clip.py --topology=v5e:16x16 [--config.…] \
    [--json=FILE] [--search]
  python -m launch.preflight --config=configs/dit_xl.py --topology=v5e:4x4 --program=sampler \
    [--sampler_images=16] [--sampler_steps=50] [--sampler_guidance=4] [--sampler_method=euler]
  python -m launch.preflight --topology=v5e:16x16 --program=mining [--mining_queries=10000000] \
    [--mining_candidates=10000000] [--mining_dim=256] [--mining_depth=90] [--mining_recall=0]

Compiles the very step that training would run, and prints one page: whether it fits, the bytes of
each part, FLOPs, collectives, the roofline, the largest buffers. Needs libtpu. With
`--program=sampler` it is the program by which a trained flow draws a batch of images, on the
config's mesh. With `--program=mining` it is the search for hard negatives, which takes no config.
"""

import json
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from align_jax import cli
from align_jax.errors import UserError
from align_jax.files import write_file
from align_jax.synth.sampler import Method, Solver
from align_jax.train.config import TrainConfig
from align_jax.train.init import make_config
from launch.analysis import look
from launch.chips import Topology, parse_topology
from launch.compiler import prepare
from launch.preflight_mining import Search, look_at_mining, whole
from launch.preflight_sampler import look_at_sampler, rate
from launch.report import page, ranking, to_json
from launch.search import advice, search

_CONFIG = cli.define_config(required=False)
_TOPOLOGY = flags.DEFINE_string(
  'topology', None, 'Chips to compile for: v5e:16x16, v5p:4x4x4, ….', required=True
)
_JSON = flags.DEFINE_string('json', None, 'File to write the figures to.')
_SEARCH = flags.DEFINE_bool('search', False, 'Try meshes, micro-batches and rematerialisation.')
_SEARCH_LIMIT = flags.DEFINE_integer(
  'search_limit', 24, 'Compiles of --search at most.', lower_bound=1
)
_PROGRAM = flags.DEFINE_enum('program', 'train', ['train', 'sampler', 'mining'], 'What to compile.')
_IMAGES = flags.DEFINE_integer(
  'sampler_images', 16, 'Images that each device draws at a time.', lower_bound=1
)
_STEPS = flags.DEFINE_integer('sampler_steps', 50, 'Steps of the solver.', lower_bound=1)
_GUIDANCE = flags.DEFINE_float('sampler_guidance', 4.0, 'Guidance; 1 is none.', lower_bound=0)
_METHOD = flags.DEFINE_enum('sampler_method', 'euler', ['euler', 'heun'], 'Of the solver.')
_QUERIES = flags.DEFINE_integer('mining_queries', 10_000_000, 'Embeddings.', lower_bound=1)
_CANDIDATES = flags.DEFINE_integer('mining_candidates', 10_000_000, 'Embeddings.', lower_bound=1)
_DIM = flags.DEFINE_integer('mining_dim', 256, 'Of the embeddings.', lower_bound=1)
_DEPTH = flags.DEFINE_integer(
  'mining_depth', 90, 'Nearest candidates of each query: 2 k mult of saha.', lower_bound=1
)
_RECALL = flags.DEFINE_float('mining_recall', 0.0, '0: exact.', lower_bound=0, upper_bound=0.999)


def main() -> None:
  """Compiles, prints the page, searches where asked to, writes the JSON."""
  topology = parse_topology(_TOPOLOGY.value)
  if _PROGRAM.value == 'mining':
    _main_mining(topology)
    return
  if _CONFIG.value is None:
    raise UserError('--config: none; name an experiment, such as --config=configs/clip.py')
  config = make_config(_CONFIG.value.to_dict())
  prepare()
  name = _config_name()
  say(f'compiling for {topology.name}')
  if _PROGRAM.value == 'sampler':
    _main_sampler(config, topology, name)
    return
  report = look(config, topology)
  tries = advice(config, report)
  print(page(report, name, tries))
  found = None
  if _SEARCH.value:
    if topology.chip is None:
      raise UserError('--search: ranks by projected time, and this chip has no figures here')
    found = search(
      config,
      report.devices,
      lambda c: look(c, topology, stand_in=False),
      limit=_SEARCH_LIMIT.value,
      say=say,
    )
    print('\n' + ranking(found))
  if _JSON.value:
    values = to_json(report, name, tries, found)
    write_file(Path(_JSON.value), json.dumps(values, indent=2) + '\n')


def _main_sampler(config: TrainConfig, topology: Topology, name: str) -> None:
  """The same for the sampler, which there is nothing to search for."""
  if _SEARCH.value:
    raise UserError('--search: looks for settings of training; leave it out, or --program=sampler')
  method: Method = 'heun' if _METHOD.value == 'heun' else 'euler'
  solver = Solver(_STEPS.value, _GUIDANCE.value, method)
  report = look_at_sampler(config, topology, solver, _IMAGES.value)
  name = f'{name}, sampler ({solver.steps} steps, guidance {solver.guidance:g}, {solver.method})'
  print(page(report, name, ()))
  print(rate(report, _IMAGES.value))
  if _JSON.value:
    values = to_json(report, name, ()) | {'images_per_device': _IMAGES.value}
    write_file(Path(_JSON.value), json.dumps(values, indent=2) + '\n')


def _main_mining(topology: Topology) -> None:
  """The same for the search for hard negatives."""
  if _SEARCH.value or _CONFIG.value is not None:
    flag = '--search' if _SEARCH.value else '--config'
    raise UserError(f'{flag}: of no use with --program=mining, which --mining_… describe')
  search = Search(_QUERIES.value, _CANDIDATES.value, _DIM.value, _DEPTH.value, _RECALL.value)
  prepare()
  say(f'compiling for {topology.name}')
  report, layout = look_at_mining(search, topology)
  name = f'mining: the {search.depth} nearest of {search.candidates:,}'
  print(page(report, name, ()))
  print(whole(report, search, layout))
  if _JSON.value:
    values = to_json(report, name, ()) | {'calls': layout.calls, 'queries': search.queries}
    write_file(Path(_JSON.value), json.dumps(values, indent=2) + '\n')


def _config_name() -> str:
  """The config file as it was given."""
  return config_flags.get_config_filename(flags.FLAGS['config'])


def say(text: str) -> None:
  """Progress, beside the page on standard output."""
  print(text, file=sys.stderr, flush=True)


if __name__ == '__main__':
  cli.run(main)
