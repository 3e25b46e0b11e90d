"""Batch plans of a study of dual encoders: mined with the base of each seed, for arms to follow."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from align_jax.config import build
from align_jax.data.pair_sources import open_pairs
from align_jax.data.sources import open_source, with_options
from align_jax.mining.strategy import MiningConfig
from align_jax.mining_run import embed_pairs
from align_jax.study.config import Arm, StudyConfig, fill
from align_jax.study.kept import kept, read_kept
from align_jax.study.pairs import make_batch_plan
from align_jax.study.specs import Specs
from align_jax.tower_embedder import load_embedder

_FILE = 'plan.jsonl.gz'


def seen(config: StudyConfig, generated: int) -> int:
  """How many of the generated images an arm or plan sees; 0 of sets is all."""
  return generated or (config.sampling.count if config.sampling else 0)


def plan_file(workdir: Path, seed: int, name: str) -> Path:
  """Where a plan is."""
  return _folder(workdir, seed, name) / _FILE


def mine_plan(
  config: StudyConfig, specs: Specs, workdir: Path, base: Path, name: str, seed: int
) -> None:
  """Mines a plan with a base, unless that is done.

  Raises:
    UserError: it was mined otherwise.
  """
  plan, folder = config.plans[name], _folder(workdir, seed, name)
  where = f'config.plans.{name}'
  names = specs.names(seen(config, plan.generated), len(open_source(specs.real)), '')
  partners = fill(plan.partners, names, where) if plan.pairs == 'generated_to_real' else None
  spec = with_options(fill(plan.source, names, where), pairs=plan.pairs, partners=partners)
  settings = build(MiningConfig, plan.settings, f'{where}.settings')
  asked = {
    'base': str(base),
    'pairs': spec,
    'strategy': plan.strategy,
    'k': plan.k,
    'settings': dataclasses.asdict(settings),
  }

  def make() -> Mapping[str, float]:
    embedded = embed_pairs(load_embedder(base), open_pairs(spec), bad=settings.bad)
    path = plan_file(workdir, seed, name)
    return make_batch_plan(embedded, spec, plan.strategy, plan.k, settings, seed, path)

  kept(folder / 'mined.json', asked, make)


def planned(config: StudyConfig, workdir: Path, arm: Arm, seed: int) -> dict[str, float]:
  """What the plan that an arm follows is like, under the names of metrics; {} without one."""
  out: dict[str, float] = {}
  for stage in arm.stages:
    given = stage.get('data', {}).get('plan', '')
    if given.startswith('{plan:'):
      found = read_kept(_folder(workdir, seed, given[len('{plan:') : -1]) / 'mined.json')
      out |= {f'plan.{key}': value for key, value in found.items() if key != 'clusters'}
  return out


def _folder(workdir: Path, seed: int, name: str) -> Path:
  return workdir / f'seed{seed}' / 'plans' / name
