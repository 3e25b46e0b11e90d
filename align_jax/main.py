"""Trains one experiment.

  python -m align_jax.main --config=configs/clip.py --workdir=runs/clip [--config.steps=500] \\
    [--profile_steps=10:13] [--wandb_project=NAME]

Running the same command again goes on where the last one stopped. Several processes become one run,
see docs/launching.md.
"""

from collections.abc import Callable
from typing import cast

from absl import flags

from align_jax import cli
from align_jax.answerer import make_answerer
from align_jax.data.sources import open_as
from align_jax.data.tokenizer import load_tokenizer
from align_jax.encoder import load_run, make_encoder
from align_jax.errors import UserError
from align_jax.evaluation.captions import check_tasks, evaluate_writer
from align_jax.evaluation.pair_scores import PairBenchmark, is_pair_spec
from align_jax.evaluation.tasks import EvalData, evaluate, find_task
from align_jax.miner import make_miner
from align_jax.models.flat import Params
from align_jax.objectives import make_objective
from align_jax.parallel.distributed import DistributedConfig, initialize
from align_jax.storage import AnyPath, open_path
from align_jax.tower_embedder import renewed_embedder
from align_jax.train.config import TrainConfig
from align_jax.train.init import make_config
from align_jax.train.journal import Observe
from align_jax.train.loop import train
from align_jax.train.profiling import parse_steps
from align_jax.train.tracking import MODES, Mode, TrackingConfig

_CONFIG = cli.define_config()
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Run folder: checkpoints, metrics, tokenizer.', required=True
)
_COORDINATOR = flags.DEFINE_string('coordinator', '', 'HOST:PORT of process 0, if it must be said.')
_PROCESSES = flags.DEFINE_integer('processes', None, 'Processes of this run.')
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Which of them this is, from 0.')
_HEARTBEAT = flags.DEFINE_integer(
  'heartbeat_seconds', 60, 'Silence after which one counts as dead.'
)
_START = flags.DEFINE_integer('start_seconds', 300, 'Processes wait so long for each other.')
_PROFILE = flags.DEFINE_string(
  'profile_steps', '', 'FIRST:LAST step to trace, like 10:13; see docs/observing.md.'
)
_WANDB_PROJECT = flags.DEFINE_string(
  'wandb_project', '', '[ENTITY/]PROJECT of Weights & Biases that gets the numbers too.'
)
_WANDB_MODE = flags.DEFINE_enum(
  'wandb_mode', MODES[0], list(MODES), 'offline: into the run folder, for `wandb sync`.'
)


def main() -> None:
  """Reads the config, trains, evaluates on the way where the config says so."""
  # before anything asks JAX for its devices
  initialize(
    DistributedConfig(
      _COORDINATOR.value, _PROCESSES.value, _PROCESS_ID.value, _HEARTBEAT.value, _START.value
    )
  )
  config = make_config(_CONFIG.value.to_dict())
  workdir = open_path(_WORKDIR.value)
  project = _WANDB_PROJECT.value
  observe = Observe(
    profile=parse_steps(_PROFILE.value, config.steps),
    tracking=TrackingConfig(project, cast(Mode, _WANDB_MODE.value)) if project else None,
  )
  objective = make_objective(config.objective)
  train(
    config,
    objective,
    workdir,
    evaluate=_evaluator(config, workdir),
    mine=make_miner(config, workdir),
    observe=observe,
  )


def _evaluator(
  config: TrainConfig, workdir: AnyPath
) -> Callable[[Params], dict[str, float]] | None:
  """`config.eval` as a function of the parameters, or None."""
  settings = config.eval
  if not settings.every:
    return None
  if not (config.has_towers or config.answers):
    raise UserError('config.eval.every: the generator has no such evaluation; set 0')
  if is_pair_spec(settings.data):
    benchmark = PairBenchmark(settings.data)
    embedder = renewed_embedder(config, workdir)
    return lambda params: benchmark.scores(embedder(params))
  if config.data.text == 'pairs':
    raise UserError(
      'config.eval.data: records, but this run learns to embed pairs; name mmeb:DIR, '
      'sugarcrepe:DIR or emojitasks:NAMES'
    )
  if config.answers:
    check_tasks(settings.tasks, 'config.eval.tasks')
    test = open_as('real', settings.data)
    judge = load_run(open_path(settings.judge)) if settings.judge else None
    return lambda params: evaluate_writer(
      make_answerer(config, params, workdir),
      test,
      settings.tasks,
      judge=judge,
      limit=settings.limit,
    )
  data = EvalData(
    test=open_as('real', settings.data),
    generated=open_as('generated', settings.generated) if settings.generated else None,
    partners=open_as('real', settings.partners) if settings.partners else None,
    limit=settings.limit,
    templates=settings.templates,
  )
  for task in settings.tasks:
    find_task(task).check(data)  # before training, not at the first evaluation

  def run(params: Params) -> dict[str, float]:
    encoder = make_encoder(config, params, load_tokenizer(workdir / 'tokenizer'))
    return evaluate(encoder, data, settings.tasks, inference=settings.inference)

  return run


if __name__ == '__main__':
  cli.run(main)
