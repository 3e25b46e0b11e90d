"""The training loop: one for every method."""

import collections
import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from align_jax.config import build
from align_jax.data.pipeline import local_batch
from align_jax.errors import Preempted, UserError
from align_jax.files import write_file
from align_jax.models.flat import Params, Skeleton, count
from align_jax.models.vit import fit_positions
from align_jax.parallel.mesh import put_batch
from align_jax.train import preemption
from align_jax.train.checkpoints import Checkpoints, load_params
from align_jax.train.config import TrainConfig
from align_jax.train.inputs import is_under_way, make_iterator, open_inputs
from align_jax.train.metrics import MetricWriter, Progress
from align_jax.train.objective import Objective
from align_jax.train.plan import plan
from align_jax.train.state import create_state, param_shardings

# Metrics are read back this many steps late, so that the host never waits for the newest step.
_LATE = 2


def train(
  config: TrainConfig,
  objective: Objective,
  workdir: Path,
  *,
  label: str = 'train',
  evaluate: Callable[[Params], Mapping[str, float]] | None = None,
) -> Params:
  """Trains, or goes on where an earlier call with the same folder was cut off.

  Args:
    config: the experiment.
    objective: the method, built from `config.objective`.
    workdir: the run folder: config.json, tokenizer/, checkpoints/, metrics.jsonl, tensorboard/.
    label: begins the progress line.
    evaluate: parameters -> named numbers, called every `config.eval.every` steps.

  Returns: the final parameters by name (moving averages where they are kept).

  Raises:
    UserError: anything wrong with config, data or folder; a loss that is not finite.
    Preempted: told to stop by SIGTERM, after saving.
  """
  # 1. Check everything that can be wrong while it costs nothing.
  planned = plan(config, objective)
  local_batch(config.batch_size, jax.process_count())
  check_resume(config, workdir)
  init = init_folder(config.model.get('init', ''))

  # 2. Open and check the data.
  inputs = open_inputs(config, workdir, objective, planned.model, init=init)

  # 3. Create the state in its shards, from given weights where there are some; then restore.
  shardings = param_shardings(planned.skeleton, planned.mesh, config.mesh.rules)
  state = create_state(
    planned.skeleton,
    objective,
    planned.optimizer,
    key=jax.random.key(config.seed),
    mesh=planned.mesh,
    rules=config.mesh.rules,
    ema=config.optimizer.ema > 0,
    given=initial_params(planned.skeleton, init, shardings) if init else None,
  )
  write_run_config(config, workdir)
  checkpoints = Checkpoints(workdir, keep=config.checkpoint.keep)
  batches = make_iterator(inputs, config, workdir)
  restored = checkpoints.restore(state)
  if restored is not None:
    state, position = restored
    batches.set_state(position)
  start = int(state.step)

  # 4. Train.
  first = jax.process_index() == 0
  writer = MetricWriter(workdir, resume_step=start) if first else None
  progress = Progress(label, config.steps, start, config.batch_size, quiet=not first)
  late = _LateMetrics()

  def report(until: int) -> None:
    for done, values in late.read(until):
      if done % config.log_every == 0 or done == config.steps:
        speed = progress.show(done, values['loss'])
        if writer is not None:
          writer.write(done, {**values, 'examples_per_s': speed})

  try:
    begins = f'goes on after step {start}' if start else 'begins'
    shares = f'{count(planned.learn):,} of {count(planned.skeleton.shapes):,} parameters learn'
    progress.say(f'{begins}; {shares}')
    with preemption.watch() as asked:
      for step in range(start + 1, config.steps + 1):
        batch = next(batches)
        ids = batch.pop('ids')
        arrays = put_batch(batch, planned.mesh)
        with jax.transfer_guard('disallow'):  # nothing else may travel between host and device
          state, metrics = planned.step(state, arrays)
        late.add(step, ids, metrics)
        report(step - _LATE)
        last, told = step == config.steps, asked(step)
        # evaluated before it is saved: a kill in between repeats the step, and the evaluation. Told
        # to stop, saving comes first: the time that is left may not do for both
        if evaluate is not None and (_due(step, config.eval.every) or last) and not told:
          values = evaluate(on_host(state.averaged_params))
          if writer is not None:
            writer.write(step, values)
        if _due(step, config.checkpoint.every) or last or told:
          report(step)  # a state with a loss that is not finite is never saved
          # saved before the next batch is drawn: the position is that of this step
          checkpoints.save(state, whole_position(batches.get_state()))
        if told and not last:
          raise Preempted(f'{label}: told to stop; saved after step {step}, goes on from there')
    return state.averaged_params
  finally:
    if writer is not None:
      writer.close()
    checkpoints.close()


def on_host(params: Params) -> Params:
  """Parameters that every process can use by itself, whatever shards they are in."""
  if jax.process_count() == 1:
    return params
  return {n: multihost_utils.process_allgather(p, tiled=True) for n, p in params.items()}


def whole_position(state: dict[str, Any]) -> dict[str, Any]:
  """The data position with those of all processes filled in; all must call it."""
  if jax.process_count() == 1:
    return state
  own = np.asarray(state['positions'][jax.process_index()], np.int64)
  return {**state, 'positions': multihost_utils.process_allgather(own).tolist()}


def _due(step: int, every: int) -> bool:
  return every > 0 and step % every == 0


class _LateMetrics:
  """Metrics of the last steps, still on the device, with the record ids they came from."""

  def __init__(self) -> None:
    self._waiting: collections.deque[tuple[int, np.ndarray, dict[str, jax.Array]]]
    self._waiting = collections.deque()

  def add(self, step: int, ids: np.ndarray, metrics: dict[str, jax.Array]) -> None:
    """Keeps a step's metrics until they are read."""
    self._waiting.append((step, ids, metrics))

  def read(self, until: int) -> Iterator[tuple[int, dict[str, float]]]:
    """Yields the metrics of the steps up to `until`; raises at a loss that is not finite."""
    while self._waiting and self._waiting[0][0] <= until:
      step, ids, metrics = self._waiting.popleft()
      values = {k: float(v) for k, v in jax.device_get(metrics).items()}
      # a gradient can overflow where the loss does not, and would poison the weights
      if not math.isfinite(values['loss']) or not math.isfinite(values['grad_norm']):
        shown = ', '.join(map(str, ids[:8])) + (', …' if len(ids) > 8 else '')
        raise UserError(
          f'loss is {values["loss"]}, gradient norm {values["grad_norm"]} at step {step}, records '
          f'{shown}; nothing of this step was saved. Lower config.optimizer.lr or look at these '
          'records'
        )
      yield step, values


def init_folder(init: str) -> Path | None:
  """Reads `config.model.init`: '' or `run:DIR`."""
  if not init:
    return None
  scheme, _, path = init.partition(':')
  if scheme != 'run' or not path:
    raise UserError(f"config.model.init: {init!r} is not understood; write run:DIR, a run's folder")
  if not Path(path).is_dir():
    raise UserError(f'config.model.init: {path} is not a folder; name the --workdir of a run')
  return Path(path)


def initial_params(
  skeleton: Skeleton, folder: Path, shardings: Mapping[str, NamedSharding]
) -> Params:
  """Weights of another run for this model; what that run lacks (adapters, say) starts fresh.

  A generated projection the run does not have starts as a copy of its image projection, so that
  both tracks agree at first.
  """
  found = load_params(folder, averaged=True, shapes=skeleton.shapes, shardings=shardings)
  out = {}
  for name, shape in skeleton.shapes.items():
    value = found.get(name)
    if name == 'image/position' and value is not None:
      value = fit_positions(value, shape.shape[0])
    if value is None and name.startswith('generated_projection'):
      value = found.get(name.replace('generated_projection', 'image_projection', 1))
    if value is None:
      continue
    if value.shape != shape.shape:
      raise UserError(
        f'config.model: {name} has shape {shape.shape} here but {value.shape} in {folder}; '
        'use the model of that run'
      )
    out[name] = value
  if not out:
    raise UserError(f'config.model.init: {folder} shares no parameter with this model')
  return out


def write_run_config(config: TrainConfig, workdir: Path) -> None:
  """Records the config in the run folder; the first process does."""
  if jax.process_index():
    return
  text = json.dumps(dataclasses.asdict(config), indent=2, default=dict)
  write_file(workdir / 'config.json', text + '\n')


def read_run_config(workdir: Path) -> TrainConfig:
  """Reads the config that a run was trained with."""
  path = workdir / 'config.json'
  if not path.exists():
    raise UserError(f'{workdir}: no config.json there; name the --workdir of a training run')
  return build(TrainConfig, json.loads(path.read_text()), str(path))


def check_resume(config: TrainConfig, workdir: Path) -> None:
  """Refuses to go on in a folder whose run had another model, objective, batch or seed."""
  if not is_under_way(workdir):
    return  # nothing was trained there yet: a mended config may start
  before = read_run_config(workdir)
  new = json.loads(json.dumps(dataclasses.asdict(config), default=dict))
  old = json.loads(json.dumps(dataclasses.asdict(before), default=dict))
  for values in (new['data'], old['data']):
    for knob in ('threads', 'max_skipped', 'max_pixels'):
      del values[knob]  # they change nothing that is learnt
  for field in ('model', 'objective', 'data', 'optimizer', 'batch_size', 'seed', 'steps'):
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
