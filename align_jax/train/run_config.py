"""The config that a run folder was trained with: written, read, and held against a new one."""

import dataclasses
import json
from typing import Any

import jax

from align_jax import storage
from align_jax.config import build
from align_jax.errors import UserError
from align_jax.files import write_file
from align_jax.storage import AnyPath, read_bytes
from align_jax.train.config import TrainConfig


def write_run_config(config: TrainConfig, workdir: AnyPath) -> None:
  """Records the config in the run folder; the first process does."""
  if jax.process_index():
    return
  text = json.dumps(dataclasses.asdict(config), indent=2, default=dict)
  write_file(workdir / 'config.json', text + '\n')


def read_run_config(workdir: AnyPath) -> TrainConfig:
  """Reads the config that a run was trained with."""
  path = workdir / 'config.json'
  try:
    text = read_bytes(path)
  except FileNotFoundError:
    raise UserError(
      f'{workdir}: no config.json there; name the --workdir of a training run'
    ) from None
  return build(TrainConfig, json.loads(text), str(path))


def check_resume(config: TrainConfig, workdir: AnyPath) -> None:
  """Refuses to go on in a folder whose run had another model, objective, batch or seed."""
  if not is_under_way(workdir):
    return  # nothing was trained there yet: a mended config may start
  before = read_run_config(workdir)
  new = json.loads(json.dumps(dataclasses.asdict(config), default=dict))
  old = json.loads(json.dumps(dataclasses.asdict(before), default=dict))
  for values in (new['data'], old['data']):
    for knob in ('threads', 'max_skipped', 'max_pixels'):
      del values[knob]  # they change nothing that is learnt
  fields = ('model', 'objective', 'data', 'remine', 'optimizer', 'batch_size', 'seed', 'steps')
  for field in fields:
    path = _difference(new[field], old[field], f'config.{field}')
    if path:
      raise UserError(
        f'{path[0]}: {path[1]!r}, but the run in {workdir} has {path[2]!r}; use another --workdir, '
        'or the same config to go on'
      )


def _difference(new: Any, old: Any, where: str) -> tuple[str, Any, Any] | None:
  if isinstance(new, dict) and isinstance(old, dict):
    for key in sorted({*new, *old}):
      found = _difference(new.get(key), old.get(key), f'{where}.{key}')
      if found:
        return found
    return None
  return None if new == old else (where, new, old)


def is_under_way(workdir: AnyPath) -> bool:
  """Whether a run has left a checkpoint (or begun one) in this folder."""
  checkpoints = workdir / 'checkpoints'
  if storage.is_remote(workdir):
    return storage.is_folder(checkpoints)  # a folder in a bucket is what is in it
  return checkpoints.is_dir() and any(checkpoints.iterdir())
