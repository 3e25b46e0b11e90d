"""The sets of generated images that a study compares, made by the data engine."""

import json
from pathlib import Path

from align_jax.config import build
from align_jax.errors import UserError
from align_jax.study.config import StudyConfig, fill
from align_jax.study.specs import Specs, model_folder, set_folder
from align_jax.synth.config import SynthConfig
from align_jax.synth.engine import synthesize


def make_set(config: StudyConfig, specs: Specs, workdir: Path, name: str) -> None:
  """Makes a set, unless that is done.

  Raises:
    UserError: what the engine raises; or an arm is to see more images than were kept: arms would be
      compared on unlike numbers of them.
  """
  kept = synthesize(set_config(config, specs, workdir, name), set_folder(workdir, name)).kept()
  for arm in config.arms:
    if arm.generated > kept and f'{{set:{name}}}' in json.dumps(arm.stages, default=dict):
      raise UserError(
        f'config.arms ({arm.name}): {arm.generated:,} generated images, but the set {name} keeps '
        f'{kept:,} of {config.sets[name]["images"]["count"]:,}; raise config.sets.{name}.images.'
        'count, or lower generated'
      )


def set_config(config: StudyConfig, specs: Specs, workdir: Path, name: str) -> SynthConfig:
  """The engine's config of a set, with names filled in.

  Raises:
    UserError: a field that is wrong, or a name that is unknown.
  """
  names = {f'model:{k}': str(model_folder(workdir, k)) for k in config.models}
  names |= {k: v for k, v in specs.names(1, 1, '').items() if k in ('real', 'extra', 'test')}
  where = f'config.sets.{name}'
  return build(SynthConfig, fill(config.sets[name], names, where), where)
