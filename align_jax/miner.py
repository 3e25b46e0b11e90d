"""Mining while a run trains: `config.remine` as a function of the parameters."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from align_jax.config import build
from align_jax.data.embed_prompt import Role
from align_jax.data.fingerprint import fingerprint
from align_jax.data.pair_record import Content
from align_jax.data.pair_sources import open_pairs
from align_jax.errors import UserError
from align_jax.mining.plan import BatchPlan, make_plan
from align_jax.mining.strategy import MiningConfig
from align_jax.mining_run import check, mine_run
from align_jax.models.flat import Params
from align_jax.storage import AnyPath
from align_jax.tower_embedder import renewed_embedder
from align_jax.train.config import TrainConfig
from align_jax.train.remine import Mine, Stopped


def make_miner(config: TrainConfig, workdir: AnyPath) -> Mine | None:
  """Returns what mines for `train.loop.train`, or None where nothing is mined.

  Raises:
    UserError: settings or pairs that cannot be, see `mining_run.check`.
  """
  remine = config.remine
  if not remine.every:
    return None
  if not (config.answers or config.has_towers):
    raise UserError('config.remine.every: a generator embeds nothing to mine by; set 0')
  settings = build(MiningConfig, remine.settings, 'config.remine.settings')
  source = open_pairs(remine.data or config.data.real)
  check(source, remine.k, remine.strategy, settings, remine.labelled_tasks)
  content = fingerprint(source)
  embedder = renewed_embedder(config, workdir)

  def mine(params: Params, stop: Callable[[], bool]) -> BatchPlan:
    embed = embedder(params)

    def careful(
      contents: Sequence[Content], role: Role, instruction: str
    ) -> Float[np.ndarray, 'n dim']:
      if stop():
        raise Stopped
      return embed(contents, role, instruction)

    mined, ids = mine_run(
      careful,
      source,
      remine.k,
      remine.strategy,
      settings,
      labelled_tasks=remine.labelled_tasks,
      seed=config.seed,
    )
    return make_plan(mined, ids, source.spec, content)

  return mine
