"""Finds hard negatives for training: clusters of pairs that a run takes for each other, as a plan.

  python -m align_jax.mine --checkpoint=runs/clip --data='emoji:scenes?split=train' \\
    --output=runs/clip/mined [--k=15] [--strategy=saha_mutual] [--report]

Writes OUTPUT/plan.jsonl.gz, which training follows, and OUTPUT/report.txt; with --report also
OUTPUT/report.html, pictures of clusters and of what was left out, with the reason. See
docs/mining.md.
"""

import os
import sys
import time
from pathlib import PurePath
from typing import Literal, cast

import jax
import numpy as np
from absl import flags

from align_jax import cli
from align_jax.data.embed_prompt import Level
from align_jax.data.fingerprint import fingerprint
from align_jax.data.pair_sources import open_pairs
from align_jax.errors import UserError
from align_jax.files import write_file
from align_jax.mining.hardness import false_negative_rate
from align_jax.mining.plan import make_plan, save_plan
from align_jax.mining.report import text_report
from align_jax.mining.saha_mutual import MutualConfig
from align_jax.mining.strategy import (
  STRATEGIES,
  Found,
  MiningConfig,
  check_labelled_tasks,
  check_strategy,
)
from align_jax.mining_page import PageConfig, mining_page
from align_jax.mining_run import check, embed_pairs, mine_pairs
from align_jax.open_embedder import open_embedder
from align_jax.parallel.distributed import DistributedConfig, find_cluster
from align_jax.parallel.mesh import MeshConfig, make_mesh
from align_jax.storage import AnyPath, open_path
from align_jax.tower_embedder import LEVELS

PLAN, TEXT, PAGE = 'plan.jsonl.gz', 'report.txt', 'report.html'
_DEFAULT = MiningConfig()
_CHECKPOINT = flags.DEFINE_string(
  'checkpoint', None, 'Run folder of training, or hf: and the folder of a model.', required=True
)
_DATA = flags.DEFINE_string('data', None, 'Spec of pairs, see docs/mining.md.', required=True)
_OUTPUT = flags.DEFINE_string('output', None, 'Folder for the plan and the report.', required=True)
_OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Replace the plan that is there.')
_REPORT = flags.DEFINE_bool('report', False, f'Write {PAGE} as well: clusters as pictures.')
_SHOWN = flags.DEFINE_integer('shown', 8, 'Clusters on that page.', lower_bound=1)
_STEP = flags.DEFINE_integer('step', None, 'Which checkpoint; default: the newest.')
_LEVEL = flags.DEFINE_enum(
  'level', None, LEVELS, "Prompt of a multimodal model; default: that of the run's training."
)
_K = flags.DEFINE_integer('k', 15, 'Hard negatives of a pair: clusters are of k + 1.')
_STRATEGY = flags.DEFINE_string(
  'strategy', 'saha_mutual', f'One of {", ".join(STRATEGIES)}; see docs/mining.md.'
)
_SEED = flags.DEFINE_integer('seed', 0, 'Of what is drawn by lot.')
_MULT = flags.DEFINE_integer('mult', _DEFAULT.mult, 'saha, saha_mutual: look at 2 k mult nearest.')
_SKIP = flags.DEFINE_integer('skip', _DEFAULT.skip, 'skip, b3: leave so many first ranks out.')
_KEEP = flags.DEFINE_integer('keep', _DEFAULT.keep, 'b3: so many ranks after them are hard.')
_MARGIN = flags.DEFINE_float('margin', _DEFAULT.margin, 'margin: weaker than the positive by this.')
_PERCENTAGE = flags.DEFINE_float(
  'percentage', _DEFAULT.percentage, 'percentage: weaker than this share of the positive.'
)
_ALIKE = flags.DEFINE_float(
  'alike', _DEFAULT.mutual.alike, 'saha_mutual: hidden matches are of this share most like a query.'
)
_MISSED = flags.DEFINE_float(
  'missed', _DEFAULT.mutual.missed, 'saha_mutual: share of the hidden matches that may be missed.'
)
_SWAPS = flags.DEFINE_integer(
  'swaps', _DEFAULT.mutual.swaps, 'saha_mutual: rounds of swaps between clusters, at most.'
)
_LABELS = flags.DEFINE_bool('labels', False, "Strategies that rank leave out a pair's own label.")
_CLASSES = flags.DEFINE_list(
  'labelled_tasks', [], 'saha: tasks where another class is no hidden match.'
)
_PER_TASK = flags.DEFINE_bool('per_task', True, "Negatives are of the pair's own task.")
_RECALL = flags.DEFINE_float('recall', 0.0, 'Of an approximate search; 0: the exact one.')
_DEPTH = flags.DEFINE_integer(
  'depth', 0, 'Nearest candidates that are looked at; 0: what the strategy needs.'
)
_BAD = flags.DEFINE_enum(
  'bad', 'error', ['error', 'skip'], 'What cannot be mined: an error, or left out and counted.'
)


def main() -> None:
  """Embeds, mines, writes the plan and the report."""
  output, settings = _output(), _settings()
  source = open_pairs(_DATA.value)
  check(source, _K.value, _STRATEGY.value, settings)
  if find_cluster(DistributedConfig(), os.environ) is not None:
    raise UserError('mine: works in one process, with all its devices; start it on one host alone')
  mesh = make_mesh(MeshConfig()) if len(jax.devices()) > 1 else None
  run = _CHECKPOINT.value
  embed = open_embedder(run, cast(Level, _LEVEL.value or ''), step=_STEP.value, mesh=mesh)
  times = {'start': time.monotonic()}
  embedded = embed_pairs(embed, source, bad=settings.bad, progress=True)
  times['embedding'] = time.monotonic()
  found: list[Found] = []
  mined = mine_pairs(
    embedded,
    _K.value,
    _STRATEGY.value,
    settings,
    labelled_tasks=_CLASSES.value,
    mesh=mesh,
    seed=_SEED.value,
    progress=True,
    found=found.append if _REPORT.value else lambda found: None,
  )
  times['mining'] = time.monotonic()
  false_negatives = false_negative_rate(mined.clusters, embedded.labels)
  text = text_report(mined, false_negatives, embedded.skipped)
  print(text, end='')
  if _REPORT.value:
    ends = list(times.values())
    seconds = dict(zip(list(times)[1:], np.diff(ends).tolist(), strict=True))
    name = PurePath(run.removeprefix('hf:')).name
    page = PageConfig(f'Hard negatives by {name}', sys.orig_argv, _SHOWN.value, _SEED.value)
    write_file(output / PAGE, mining_page(mined, found, embedded, source, page, seconds))
    print(f'report: {output / PAGE}')
  write_file(output / TEXT, text)
  # last: where there is a plan, its reports are whole
  save_plan(output / PLAN, make_plan(mined, embedded.ids, _DATA.value, fingerprint(source)))
  print(f'plan: {output / PLAN}')


def _output() -> AnyPath:
  """The folder to write into."""
  folder = open_path(_OUTPUT.value)
  if folder.exists() and not folder.is_dir():
    raise UserError(f'--output={folder}: a file; name a folder')
  if (folder / PLAN).exists() and not _OVERWRITE.value:
    raise UserError(
      f'--output={folder}: holds a plan, which a training may follow; choose another folder, or '
      'replace it with --overwrite'
    )
  return folder


def _settings() -> MiningConfig:
  try:
    settings = MiningConfig(
      mult=_MULT.value,
      skip=_SKIP.value,
      keep=_KEEP.value,
      margin=_MARGIN.value,
      percentage=_PERCENTAGE.value,
      different_labels=_LABELS.value,
      mutual=MutualConfig(_ALIKE.value, _MISSED.value, _SWAPS.value),
      per_task=_PER_TASK.value,
      recall=_RECALL.value,
      depth=_DEPTH.value,
      bad=cast(Literal['error', 'skip'], _BAD.value),
    )
    check_strategy(_STRATEGY.value, _K.value, settings)
    if _CLASSES.value:
      check_labelled_tasks(_STRATEGY.value, settings)
  except UserError as error:
    raise UserError(str(error).replace('config.', '--')) from error
  return settings


if __name__ == '__main__':
  cli.run(main)
