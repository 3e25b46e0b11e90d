"""The methods. Each file spells one out; this table names them for `config.objective.name`."""

from collections.abc import Mapping
from typing import Any

from align_jax.config import build
from align_jax.errors import UserError, did_you_mean
from align_jax.objectives.caption import Caption
from align_jax.objectives.contrastive import Contrastive
from align_jax.objectives.cvae import ConditionalVae
from align_jax.objectives.flow import Flow
from align_jax.objectives.gmail import Gmail
from align_jax.objectives.saha import Saha
from align_jax.train.objective import Objective

OBJECTIVES: Mapping[str, type] = {
  'contrastive': Contrastive,
  'gmail': Gmail,
  'flow': Flow,
  'cvae': ConditionalVae,
  'caption': Caption,
  'saha': Saha,
}


def make_objective(config: Mapping[str, Any]) -> Objective:
  """Builds the objective that `config['name']` names from the other fields of `config`."""
  settings = dict(config)
  name = settings.pop('name', None)
  if name not in OBJECTIVES:
    raise UserError(
      f'config.objective.name: {name!r} is unknown{did_you_mean(str(name), OBJECTIVES)}'
    )
  return build(OBJECTIVES[name], settings, 'config.objective')
