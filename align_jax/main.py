"""Trains one experiment.

  python -m align_jax.main --config=configs/clip.py --workdir=runs/clip [--config.steps=500]

Running the same command again goes on where the last one stopped.
"""

from collections.abc import Callable
from pathlib import Path

from absl import flags

from align_jax import cli
from align_jax.config import build
from align_jax.data.sources import open_source
from align_jax.data.tokenizer import load_tokenizer
from align_jax.encoder import make_encoder
from align_jax.evaluation.tasks import EvalData, evaluate
from align_jax.models.flat import Params
from align_jax.objectives import make_objective
from align_jax.train.config import TrainConfig
from align_jax.train.loop import train

_CONFIG = cli.define_config()
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Run folder: checkpoints, metrics, tokenizer.', required=True
)


def main() -> None:
  """Reads the config, trains, evaluates on the way where the config says so."""
  config = build(TrainConfig, _CONFIG.value.to_dict())
  workdir = Path(_WORKDIR.value)
  objective = make_objective(config.objective)
  train(config, objective, workdir, evaluate=_evaluator(config, workdir))


def _evaluator(config: TrainConfig, workdir: Path) -> Callable[[Params], dict[str, float]] | None:
  """`config.eval` as a function of the parameters, or None."""
  if not config.eval.every:
    return None
  data = EvalData(
    test=open_source(config.eval.data),
    generated=open_source(config.eval.generated) if config.eval.generated else None,
    limit=config.eval.limit,
  )

  def run(params: Params) -> dict[str, float]:
    encoder = make_encoder(config, params, load_tokenizer(workdir / 'tokenizer'))
    return evaluate(encoder, data, config.eval.tasks)

  return run


if __name__ == '__main__':
  cli.run(main)
