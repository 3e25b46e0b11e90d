"""The engine: categories → prompts → generate → annotate → score → filter → shards.

Every stage is a folder of the work folder (`stage`), cut into parts. In a whole run the parts go
through all stages one after another, so that a training run may follow the shards while the later
parts are still to be drawn; with `stage` or a Beam runner, one stage after another goes over all
parts. Several JAX processes take the parts in turn; the first one decides and writes shards, in
the order of the parts, for a near-duplicate is one of an earlier image.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import multiprocessing
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from align_jax.config import build
from align_jax.data.shards import Shard
from align_jax.data.work import LOCAL, Progress, WorkConfig, run_tasks
from align_jax.errors import UserError, did_you_mean
from align_jax.synth import pack
from align_jax.synth.config import SynthConfig
from align_jax.synth.run import Run
from align_jax.synth.settings import SHARDS, STAGES, plain
from align_jax.synth.stage import remove_stage, remove_temporaries

_POLL = 0.5  # seconds between two looks at what another process writes


def synthesize(
  config: SynthConfig,
  workdir: Path,
  *,
  stage: str = '',
  redo: str = '',
  work: WorkConfig = WorkConfig(),
  progress: bool = True,
) -> Run:
  """Runs the engine, or one stage of it; what is done is not done again.

  Args:
    config: of the run.
    workdir: on a disk that all processes see.
    stage: run this one alone, over all parts; the stages before it must be complete. '': all.
    redo: first remove this stage and all that follow it. '': none.
    work: where annotation and, stage by stage, packing are done.
    progress: shows rate and time left on standard error.

  Returns: the run, for its report.

  Raises:
    UserError: what a stage raises, or an unknown stage.
  """
  for name, flag in ((stage, '--stage'), (redo, '--redo')):
    if name and name not in STAGES:
      raise UserError(f'{flag}={name}: no such stage{did_you_mean(name, STAGES)}')
  if redo and jax.process_count() > 1:
    raise UserError('--redo: removes what other processes read; run it in one process first')
  if redo:
    for name in reversed(STAGES[STAGES.index(redo) :]):
      remove_stage(workdir, name)
  run = Run(config, workdir)
  for name in STAGES:  # other settings than before show now
    stage_of = run.stage(name)
    if jax.process_count() == 1:  # of several, one would remove what another is writing
      remove_temporaries(stage_of)
  wanted = (stage,) if stage else STAGES
  run.train(wanted)
  for name in ('categories', 'prompts'):
    if name in wanted:
      _require(run, STAGES[: STAGES.index(name)])
      _run_first(run, name)
  rest = [name for name in STAGES[2:] if name in wanted]
  if rest and (stage or work.runner != LOCAL or not config.filtration.is_streaming):
    for name in rest:
      _require(run, STAGES[: STAGES.index(name)])
      _run_stage(run, name, work, progress)
  elif rest:
    _stream(run, work, progress)
  return run


def _run_first(run: Run, name: str) -> None:
  """Runs a stage of one part in the first process; the others wait for it."""
  stage = run.stage(name)
  if not jax.process_index():
    if not stage.is_done(0):
      run.make(name, 0)
  else:
    _wait(run, name, 0)


def _require(run: Run, names: Sequence[str]) -> None:
  for name in names:
    stage = run.stage(name)
    if jax.process_count() == 1 and not stage.is_complete():
      raise UserError(
        f'{stage.folder}: {stage.count_done()} of {stage.parts} parts are done; run --stage={name}'
      )


def _mine(run: Run, name: str) -> list[int]:
  """The parts of a stage that this process is to make."""
  parts = range(run.parts)
  if name in ('filter', SHARDS):  # in the order of the parts
    return list(parts) if not jax.process_index() else []
  return list(parts)[jax.process_index() :: jax.process_count()]


def _run_stage(run: Run, name: str, work: WorkConfig, progress: bool) -> None:
  """Runs one stage over all parts."""
  stage = run.stage(name)
  mine = [part for part in _mine(run, name) if not run.is_done(name, part)]
  with _bar(run, name, mine, progress) as bar:
    if name in TASKS:
      if name == SHARDS:
        run.open_shards()
      task = functools.partial(TASKS[name], run.config, str(run.workdir))
      scratch = str(run.workdir / 'work')
      left = collections.deque(range(len(mine)))
      shards: dict[int, Shard] = {}
      with contextlib.closing(run_tasks(task, mine, work, scratch=scratch)) as messages:
        for message in messages:
          if isinstance(message, Progress):
            bar.update(message.count)
          elif name == SHARDS:
            shards[message.index] = Shard(**message.result)
            while left and left[0] in shards:  # in order: a training run may follow
              pack.enter_part(str(stage.folder), shards.pop(left.popleft()))
    else:
      for part in mine:
        run.make(name, part, bar.update)
  for part in range(run.parts):  # all processes go on together
    _wait(run, name, part)


def _stream(run: Run, work: WorkConfig, progress: bool) -> None:
  """Takes part after part through all stages; annotation runs beside, in processes of its own."""
  first = not jax.process_index()
  mine = _mine(run, 'generate')
  waiting: collections.deque[tuple[int, concurrent.futures.Future[None]]] = collections.deque()
  left = collections.deque(range(run.parts))  # to decide and to pack, in order

  def finish(block: bool) -> None:
    """Scores what is annotated; decides and packs what is scored."""
    while waiting and (block or waiting[0][1].done()):
      part, future = waiting.popleft()
      _result(future)
      if not run.is_done('score', part):
        run.make('score', part)
      block = False
    while first and left and run.is_done('score', left[0]):
      part = left.popleft()
      for name in ('filter', SHARDS):
        if not run.is_done(name, part):
          run.make(name, part)
      bar.set_postfix_str(f'{run.kept():,} kept', refresh=False)

  with _bar(run, 'generate', mine, progress) as bar, _pool(work.workers) as submit:
    for part in mine:
      if run.is_done('generate', part):
        bar.update(run.part_size(part))
      else:
        run.make('generate', part, bar.update)
      if run.is_done('annotate', part):
        waiting.append((part, _finished()))
      else:
        waiting.append((part, submit(run, part)))
      finish(block=len(waiting) > 2 * work.workers)
    while waiting:
      finish(block=True)
    while first and left:  # parts of other processes
      finish(block=False)
      if left:
        time.sleep(_POLL)
  for part in range(run.parts):
    _wait(run, SHARDS, part)


@contextlib.contextmanager
def _pool(
  workers: int,
) -> Iterator[Callable[[Run, int], concurrent.futures.Future[None]]]:
  """What annotates a part: in this process with one worker, else in others."""
  if workers == 1:

    def here(run: Run, part: int) -> concurrent.futures.Future[None]:
      run.make('annotate', part)
      return _finished()

    yield here
    return
  context = multiprocessing.get_context('spawn')  # fork and threads (JAX) do not mix
  with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:

    def elsewhere(run: Run, part: int) -> concurrent.futures.Future[None]:
      return pool.submit(_annotate, run.config, str(run.workdir), part)

    try:
      yield elsewhere
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)
      raise


def _finished() -> concurrent.futures.Future[None]:
  future: concurrent.futures.Future[None] = concurrent.futures.Future()
  future.set_result(None)
  return future


def _result(future: concurrent.futures.Future[None]) -> None:
  try:
    future.result()
  except concurrent.futures.process.BrokenProcessPool as error:
    raise UserError(
      'annotate: a worker process died (out of memory?); run the same command again with fewer '
      '--workers'
    ) from error


def annotate_task(config: SynthConfig, workdir: str, part: int) -> Generator[int, None, None]:
  """Annotates one part; for `run_tasks`."""
  run = _run_here(config, workdir)
  counts: list[int] = []
  run.make('annotate', part, counts.append)
  yield sum(counts)


def pack_task(config: SynthConfig, workdir: str, part: int) -> Generator[int, None, dict[str, Any]]:
  """Writes the shard of one part; for `run_tasks`."""
  run = _run_here(config, workdir)
  entry = run.pack(part)
  yield run.part_size(part)
  return dataclasses.asdict(entry)


# what needs no accelerator, and so runs in worker processes or as a Beam pipeline
TASKS = {'annotate': annotate_task, SHARDS: pack_task}


def _annotate(config: SynthConfig, workdir: str, part: int) -> None:
  _run_here(config, workdir).make('annotate', part)


def _run_here(config: SynthConfig, workdir: str) -> Run:
  return _open_run(json.dumps(plain(config), sort_keys=True), workdir)


@functools.lru_cache(maxsize=1)
def _open_run(config: str, workdir: str) -> Run:
  """The run of a worker process, opened once: it keeps what every part needs."""
  return Run(build(SynthConfig, json.loads(config)), Path(workdir))


def _bar(run: Run, name: str, parts: Sequence[int], progress: bool) -> tqdm:
  return tqdm(
    total=sum(run.part_size(part) for part in parts),
    unit=' images',
    desc=name,
    mininterval=0.5,
    disable=not progress,
  )


def _wait(run: Run, name: str, part: int) -> None:
  while not run.is_done(name, part):
    time.sleep(_POLL)
