"""The training loop: one for every method."""

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from align_jax.data.pipeline import local_batch
from align_jax.errors import Preempted
from align_jax.models.flat import Params, count
from align_jax.parallel.mesh import put_batch
from align_jax.storage import AnyPath
from align_jax.train import preemption
from align_jax.train.checkpoints import Checkpoints
from align_jax.train.config import TrainConfig
from align_jax.train.init import check_adapters, find_origins, initial_params, tokenizer_run
from align_jax.train.inputs import make_iterator, open_inputs
from align_jax.train.journal import Journal, Observe
from align_jax.train.objective import Objective
from align_jax.train.plan import plan
from align_jax.train.profiling import Profiler
from align_jax.train.remine import Mine, Remining
from align_jax.train.run_config import check_resume, write_run_config
from align_jax.train.state import create_state, param_shardings

# Metrics are read back this many steps late, so that the host never waits for the newest step.
_LATE = 2
_KEPT = 'kept_s'  # beside the data position in a checkpoint: seconds its steps took


def train(
  config: TrainConfig,
  objective: Objective,
  workdir: AnyPath,
  *,
  label: str = 'train',
  evaluate: Callable[[Params], Mapping[str, float]] | None = None,
  mine: Mine | None = None,
  observe: Observe = Observe(),
) -> Params:
  """Trains, or goes on where an earlier call with the same folder was cut off.

  Args:
    config: the experiment.
    objective: the method, built from `config.objective`.
    workdir: the run folder: config.json, tokenizer/, checkpoints/, metrics.jsonl, starts.json,
      tensorboard/, snapshots.jsonl if sources are followed, plans/ if it mines.
    label: begins the progress line.
    evaluate: parameters -> named numbers, called every `config.eval.every` steps.
    mine: parameters -> batch plan, called every `config.remine.every` steps.
    observe: a trace of some steps, further places for the numbers.

  Returns: the final parameters by name (moving averages where they are kept).

  Raises:
    UserError: anything wrong with config, data or folder; a loss that is not finite.
    Preempted: told to stop by SIGTERM, after saving.
  """
  began = time.time()
  # 1. Check everything that can be wrong while it costs nothing.
  planned = plan(config, objective)
  local_batch(config.batch_size, jax.process_count())
  check_resume(config, workdir)
  origins = find_origins(config.model.get('init', ''))

  # 2. Open and check the data.
  run = tokenizer_run(origins, answers=config.answers)
  inputs = open_inputs(config, workdir, objective, planned.model, init=run)

  # 3. Create the state in its shards, from given weights where there are some; then restore.
  shardings = param_shardings(planned.skeleton, planned.mesh, config.mesh.rules)
  given = initial_params(planned.skeleton, origins, shardings)
  check_adapters(objective, planned.skeleton, given)
  state = create_state(
    planned.skeleton,
    objective,
    planned.optimizer,
    key=jax.random.key(config.seed),
    mesh=planned.mesh,
    rules=config.mesh.rules,
    ema=config.optimizer.ema > 0,
    given=given,
  )
  del given  # what was not given up is not held any longer
  remining = Remining(config.remine, workdir, mine, planned=bool(config.data.plan))
  write_run_config(config, workdir)
  with contextlib.ExitStack() as closing:
    checkpoints = Checkpoints(workdir, keep=config.checkpoint.keep)
    closing.callback(checkpoints.close)
    kept = 0.0
    restored = checkpoints.restore(state)
    if restored is not None:
      state, position = restored
      kept = float(position.get(_KEPT, 0.0))
    start = int(state.step)
    closing.callback(remining.close)
    mined = remining.begin(start, state.averaged_params)
    seen = inputs.snapshots.at(start)
    changed = mined is not None or seen != inputs.snapshots.at(0)
    parts = inputs.open_parts(seen, mined) if changed else inputs.parts
    batches = make_iterator(inputs, config, workdir, parts)
    if restored is not None:
      batches.set_state(position)
    journal = Journal(
      config, planned, workdir, label=label, start=start, began=began, kept=kept, observe=observe
    )
    closing.callback(journal.close)
    timer = journal.timer
    profiler = Profiler(journal.folder, observe.profile, start, timer)
    closing.callback(profiler.close)

    def judge(step: int) -> None:
      assert evaluate is not None
      with timer.part('eval'):
        values = evaluate(on_host(state.averaged_params))
      journal.report(step)
      journal.write(step, values)

    # 4. Train.
    begins = f'goes on after step {start}' if start else 'begins'
    shares = f'{count(planned.learn):,} of {count(planned.skeleton.shapes):,} parameters learn'
    journal.say(f'{begins}; {shares}')
    with preemption.watch() as asked:
      # told to stop after a step, an earlier process saved it and had no time left to evaluate it
      owed = evaluate is not None and start > 0 and _judged(start, config)
      if owed and not _first_says(journal.has_evaluation(start)):
        judge(start)
      for step in range(start + 1, config.steps + 1):
        if inputs.snapshots.is_look(step) and jax.process_count() > 1:
          journal.report(step - 1)  # before they talk, the step under way ends, well or not
        profiler.before(step, state)
        with profiler.step(step):
          with timer.part('data', step):
            grown = inputs.snapshots.before(step)
            mined = remining.before(step, state.averaged_params)
            if grown is not None or mined is not None:
              batches.go_on_with(inputs.open_parts(inputs.snapshots.at(step), remining.plan))
            if grown is not None:
              journal.say(f'from step {step} on {inputs.snapshots.describe(step)}')
            if mined is not None:
              journal.say(f'from step {step} on {len(mined.clusters):,} clusters mined anew')
            batch = next(batches)
          ids = batch.pop('ids')
          with timer.part('transfer', step):
            arrays = put_batch(batch, planned.mesh)
          compiles = timer.part('compile') if step == start + 1 else contextlib.nullcontext()
          # nothing else may travel between host and device
          with compiles, jax.transfer_guard('disallow'):
            state, metrics = planned.step(state, arrays)
        profiler.after(step, state)
        journal.add(step, ids, metrics)
        journal.report(step - _LATE)
        last, told = step == config.steps, asked(step)
        # evaluated before it is saved: a kill in between repeats the step, and the evaluation. Told
        # to stop, saving comes first: the time that is left may not do for both
        if evaluate is not None and _judged(step, config) and not told:
          journal.settle(step)
          judge(step)
        if _due(step, config.checkpoint.every) or last or told:
          journal.report(step)  # a state with a loss that is not finite is never saved
          journal.sync(force=True)
          with timer.part('save'):
            remining.keep()
            # saved before the next batch is drawn: the position is that of this step
            position = whole_position(batches.get_state())
            checkpoints.save(state, {**position, _KEPT: timer.kept})
        if told and not last:
          raise Preempted(f'{label}: told to stop; saved after step {step}, goes on from there')
    return state.averaged_params


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


def _first_says(answer: bool) -> bool:
  """What the first process answers; all must call it."""
  if jax.process_count() == 1:
    return answer
  return bool(multihost_utils.broadcast_one_to_all(np.asarray(answer)))


def _due(step: int, every: int) -> bool:
  return every > 0 and step % every == 0


def _judged(step: int, config: TrainConfig) -> bool:
  return _due(step, config.eval.every) or step == config.steps
