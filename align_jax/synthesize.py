"""Makes generated images worth training on: categories, prompts, images, masks, filters, shards.

  python -m align_jax.synthesize --config=configs/synth_emoji.py --workdir=runs/synth \\
    [--stage=filter] [--redo=filter] [--workers=4] [--runner=DirectRunner]

Running the same command again goes on where the last one stopped. Several JAX processes share the
work, see docs/synth.md.
"""

import sys

import jax
from absl import flags

from align_jax import cli
from align_jax.config import build
from align_jax.data.work import WorkConfig
from align_jax.errors import UserError, needs_extra
from align_jax.parallel.distributed import DistributedConfig, initialize
from align_jax.storage import absolute, is_remote, open_path

_CONFIG = cli.define_config()
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the run, on a disk that all processes see.', required=True
)
_STAGE = flags.DEFINE_string('stage', '', 'Run this stage alone, over all parts.')
_REDO = flags.DEFINE_string('redo', '', 'First remove this stage and all that follow it.')
_WORK = cli.define_work()


def main() -> None:
  """Runs the engine; the first process then writes the report and says what was kept."""
  with needs_extra('synth'):
    from align_jax.synth.config import SynthConfig
    from align_jax.synth.engine import synthesize
    from align_jax.synth.summary import summary_lines, write_summary
  # the first process decides, packs and writes the page when the others have nothing left to do
  initialize(DistributedConfig(end_seconds=3600))
  workdir = open_path(_WORKDIR.value)
  if is_remote(workdir):
    raise UserError(f'--workdir={workdir}: stages need a disk; mount the bucket (docs/storage.md)')
  config = build(SynthConfig, _CONFIG.value.to_dict())
  work = WorkConfig(
    _WORK['workers'].value, _WORK['runner'].value, tuple(_WORK['beam_options'].value)
  )
  run = synthesize(config, absolute(workdir), stage=_STAGE.value, redo=_REDO.value, work=work)
  if jax.process_index():
    return
  if run.stage('generate').count_done():  # before that there is nothing to see
    write_summary(run, sys.orig_argv)
  for line in summary_lines(run):
    print(line)


if __name__ == '__main__':
  cli.run(main)
