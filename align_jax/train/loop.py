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

from align_jax.config import build
from align_jax.data.pipeline import local_batch
from align_jax.errors import UserError
from align_jax.files import write_file
from align_jax.models.flat import Params, Skeleton, count
from align_jax.models.vit import fit_positions
from align_jax.parallel.mesh import check_batch, make_mesh, put_batch
from align_jax.train.checkpoints import Checkpoints, load_params
from align_jax.train.config import TrainConfig
from align_jax.train.inputs import is_under_way, make_iterator, open_inputs
from align_jax.train.metrics import MetricWriter, Progress
from align_jax.train.objective import Objective
from align_jax.train.optimizer import make_optimizer
from align_jax.train.state import create_state, make_train_step

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
  """
  # 1. Check everything that can be wrong while it costs nothing.
  mesh = make_mesh(config.mesh)
  check_batch(config.batch_size, mesh)
  local_batch(config.batch_size, jax.process_count())
  if config.optimizer.accumulate > 1 and objective.batch_coupled:
    raise UserError(
      'config.optimizer.accumulate: this loss couples the examples of a batch, accumulating its '
      'gradients would silently lose negatives; set accumulate=1 and choose the batch you need'
    )
  check_resume(config, workdir)
  init = init_folder(config.model.get('init', ''))
  model_config: Any = build(objective.ModelConfig, config.model_fields, 'config.model')

  # 2. Open the data and describe the model.
  inputs = open_inputs(config, workdir, objective, model_config, init=init)
  skeleton = Skeleton(lambda rngs: objective.create_model(model_config, rngs))
  learn = {n: s for n, s in skeleton.shapes.items() if objective.trainable(n)}
  if not learn:
    raise UserError('config.objective: no parameter of this model learns under these settings')
  optimizer = make_optimizer(config.optimizer, config.steps, learn)

  # 3. Create the state in its shards, from given weights where there are some; then restore.
  given = initial_params(skeleton, init) if init else None
  state = create_state(
    skeleton,
    objective,
    optimizer,
    key=jax.random.key(config.seed),
    mesh=mesh,
    rules=config.mesh.rules,
    ema=config.optimizer.ema > 0,
    given=given,
  )
  write_run_config(config, workdir)
  checkpoints = Checkpoints(workdir, keep=config.checkpoint.keep)
  batches = make_iterator(inputs, config, workdir)
  restored = checkpoints.restore(state)
  if restored is not None:
    state, position = restored
    batches.set_state(position)
  start = int(state.step)
  step_fn = make_train_step(skeleton, objective, optimizer, ema=config.optimizer.ema)

  # 4. Train.
  writer = MetricWriter(workdir, resume_step=start)
  progress = Progress(label, config.steps, start, config.batch_size)
  late = _LateMetrics()

  def report(until: int) -> None:
    for done, values in late.read(until):
      if done % config.log_every == 0 or done == config.steps:
        speed = progress.show(done, values['loss'])
        writer.write(done, {**values, 'examples_per_s': speed})

  try:
    begins = f'goes on after step {start}' if start else 'begins'
    shares = f'{count(learn):,} of {count(skeleton.shapes):,} parameters learn'
    print(f'{label}: {begins}; {shares}', flush=True)
    for step in range(start + 1, config.steps + 1):
      batch = next(batches)
      ids = batch.pop('ids')
      arrays = put_batch(batch, mesh)
      with jax.transfer_guard('disallow'):  # nothing else may travel between host and device
        state, metrics = step_fn(state, arrays)
      late.add(step, ids, metrics)
      report(step - _LATE)
      last = step == config.steps
      # evaluated before it is saved: a kill in between repeats the step, and the evaluation
      if evaluate is not None and (_due(step, config.eval.every) or last):
        writer.write(step, evaluate(state.averaged_params))
      if _due(step, config.checkpoint.every) or last:
        report(step)  # a state with a loss that is not finite is never saved
        # saved before the next batch is drawn: the position is that of this step
        checkpoints.save(state, batches.get_state())
    return state.averaged_params
  finally:
    writer.close()
    checkpoints.close()


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


def initial_params(skeleton: Skeleton, folder: Path) -> Params:
  """Weights of another run for this model; what that run lacks (adapters, say) starts fresh.

  A generated projection the run does not have starts as a copy of its image projection, so that
  both tracks agree at first.
  """
  found = load_params(folder, averaged=True)
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
  """Records the config in the run folder."""
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
