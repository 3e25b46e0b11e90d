"""Any source into ArrayRecord shards: in parallel, resumable, with a manifest.

  python -m align_jax.data.convert --from='webdataset:DIR/*.tar' --to=arrayrecord:OUT --shards=64

Shards hold contiguous ranges, so that the order of the source stays. Killed at any moment, the
same command goes on: finished shards whose checksums agree are kept.
"""

import collections
import contextlib
import dataclasses
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing import connection
from typing import Any, cast

from absl import flags
from tqdm import tqdm

from align_jax import cli, storage
from align_jax.data import shards as shards_lib
from align_jax.data.images import ImageError, decode_image
from align_jax.data.sources import Source, open_source, parse_spec
from align_jax.errors import UserError
from align_jax.files import write_file

QUARANTINE = 'quarantine.jsonl'
_REPORT_EVERY = 32  # records between two messages of a worker


@dataclasses.dataclass(frozen=True)
class Task:
  """One shard to write: records `start` to `stop` of the source."""

  index: int
  start: int
  stop: int


def convert(
  spec: str,
  to: str,
  shards: int,
  *,
  licence: str = '',
  workers: int = 2,
  progress: bool = True,
) -> shards_lib.Manifest:
  """Writes a source into shards. Every image is decoded once, those that fail are left out.

  Args:
    spec: the source.
    to: `arrayrecord:DIR`, on a disk or in a bucket; a folder of its own.
    shards: number of files; shard i holds the i-th of as many contiguous ranges.
    licence: of the data; by default what the source says.
    workers: processes; with 1 the work is done in this one.
    progress: shows rate and time left on standard error.

  Returns: the manifest. `DIR/quarantine.jsonl` lists the records left out, if any.

  Raises:
    UserError: bad arguments, a folder in use, a full disk (finished shards stay), or a source of
      which no record can be read.
  """
  directory = _target(to)
  if workers < 1:
    raise UserError(f'--workers={workers}: at least 1')
  source = open_source(spec)
  if not 1 <= shards <= len(source):
    raise UserError(f'--shards={shards}: {spec} has {len(source)} records; choose 1 to as many')
  manifest = _start(directory, spec, shards, len(source), licence or source.licence)
  done = {shard.file for shard in manifest.shards}
  tasks = [
    t for t in _tasks(len(source), shards) if shards_lib.shard_name(t.index, shards) not in done
  ]
  bar = tqdm(
    total=len(source),
    initial=len(source) - sum(t.stop - t.start for t in tasks),
    unit=' records',
    desc='convert',
    mininterval=0.5,
    disable=not progress,
  )
  try:
    with bar, contextlib.closing(_run(source, directory, shards, tasks, workers)) as messages:
      for kind, value in messages:
        if kind == 'seen':
          bar.update(value)
        else:
          manifest = _record(directory, manifest, *value)
  finally:
    shards_lib.remove_temporaries(directory)
  if not manifest.total:
    raise UserError(f'{spec}: no record can be read; the reasons are in {directory}/{QUARANTINE}')
  manifest = dataclasses.replace(manifest, complete=True)
  shards_lib.save_manifest(directory, manifest)
  return manifest


def _target(to: str) -> str:
  parsed = parse_spec(to)
  if (
    parsed.scheme != 'arrayrecord'
    or parsed.options
    or not parsed.path
    or set('*?[') & set(parsed.path)
  ):
    raise UserError(f'--to={to}: write --to=arrayrecord:DIR, without wildcards or options')
  return str(storage.open_path(parsed.path))


def _start(
  directory: str, spec: str, shards: int, records: int, licence: str
) -> shards_lib.Manifest:
  """Returns the manifest to go on from, with the shards that are intact."""
  manifest = shards_lib.load_manifest(directory)
  if manifest is None:
    shards_lib.check_target(directory, None, spec)
    manifest = shards_lib.Manifest(
      spec=spec, licence=licence, shard_count=shards, source_records=records
    )
  was = (manifest.spec, manifest.shard_count, manifest.source_records)
  if was != (spec, shards, records):
    raise UserError(
      f'{directory}: holds {was[0]} in {was[1]} shards of {was[2]} records, not {spec} in '
      f'{shards} of {records}; choose an empty folder'
    )
  kept = tuple(s for s in manifest.shards if shards_lib.is_intact(directory, s))
  manifest = dataclasses.replace(
    manifest,
    licence=licence or manifest.licence,
    complete=False,
    shards=kept,
    versions=shards_lib.versions(),
  )
  # before the first shard: a rerun then knows a shard without an entry for its own
  shards_lib.save_manifest(directory, manifest)
  shards_lib.remove_temporaries(directory)
  return manifest


def _tasks(records: int, shards: int) -> list[Task]:
  ends = [records * i // shards for i in range(shards + 1)]
  return [Task(i, ends[i], ends[i + 1]) for i in range(shards)]


def _record(
  directory: str,
  manifest: shards_lib.Manifest,
  shard: shards_lib.Shard,
  left_out: list[dict[str, Any]],
) -> shards_lib.Manifest:
  """Enters a finished shard: first the records left out, then the manifest."""
  path = os.path.join(directory, QUARANTINE)
  before = ''
  with contextlib.suppress(FileNotFoundError):
    before = storage.read_bytes(path).decode()
  # lines of this shard are from a run that was killed before the manifest was written
  lines = [
    line + '\n' for line in before.split('\n') if line and json.loads(line)['shard'] != shard.file
  ]
  lines += [
    json.dumps({'shard': shard.file, **entry}, ensure_ascii=False) + '\n' for entry in left_out
  ]
  if lines or before:
    write_file(path, ''.join(lines))
  entries = sorted([*manifest.shards, shard], key=lambda s: s.file)
  manifest = dataclasses.replace(manifest, shards=tuple(entries))
  shards_lib.save_manifest(directory, manifest)
  return manifest


def _run(
  source: Source, directory: str, shards: int, tasks: Sequence[Task], workers: int
) -> Generator[tuple[str, Any], None, None]:
  """Yields `('seen', records)` and `('shard', (entry, left out))` as the work goes on."""
  workers = min(workers, len(tasks))
  if workers <= 1:
    for task in tasks:
      yield from _write_shard(source, directory, shards, task)
    return
  context = multiprocessing.get_context('spawn')  # fork and threads (JAX, pyarrow) do not mix
  processes, receivers = [], []
  try:
    for worker in range(workers):
      receiver, sender = context.Pipe(duplex=False)
      process = context.Process(
        target=_work, args=(source, directory, shards, tasks[worker::workers], sender), daemon=True
      )
      process.start()
      sender.close()  # the worker holds the other end: its death then reads as end of file
      processes.append(process)
      receivers.append(receiver)
    while receivers:
      for ready in connection.wait(receivers):
        receiver = cast(connection.Connection, ready)
        try:
          kind, value = receiver.recv()
        except EOFError:
          raise UserError(
            'convert: a worker process died (out of memory?); run the same command again with '
            'fewer --workers'
          ) from None
        if kind == 'error':
          raise UserError(value)
        if kind == 'end':
          receivers.remove(receiver)
        else:
          yield kind, value
  finally:
    for process in processes:
      process.terminate()
    for process in processes:
      process.join()


def _work(
  source: Source,
  directory: str,
  shards: int,
  tasks: Sequence[Task],
  sender: connection.Connection,
) -> None:
  """What a worker process does. When the parent dies, the next `send` raises and ends it."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it on an interrupt
  try:
    for task in tasks:
      for message in _write_shard(source, directory, shards, task):
        sender.send(message)
    sender.send(('end', None))
  except UserError as error:
    sender.send(('error', str(error)))
  except BrokenPipeError:
    sys.exit(1)


def _write_shard(
  source: Source, directory: str, shards: int, task: Task
) -> Iterator[tuple[str, Any]]:
  """Writes one shard; yields messages as `_run` does, the shard last."""
  left_out: list[dict[str, Any]] = []
  unreported = 0
  with shards_lib.ShardWriter(directory, task.index, shards) as writer:
    for position in range(task.start, task.stop):
      name, reason, detail = '', '', ''
      try:
        record = source[position]
        name = record.id
        decode_image(record.image)
      except ImageError as error:
        reason, detail = error.reason, str(error)
      except UserError as error:
        reason, detail = 'unreadable', str(error)
      if reason:
        entry = {'id': name, 'source': source.spec, 'reason': reason}
        left_out.append({**entry, 'position': position, 'detail': detail})
      else:
        writer.add(record)
      unreported += 1
      if unreported == _REPORT_EVERY or position == task.stop - 1:
        yield 'seen', unreported
        unreported = 0
    skipped = collections.Counter(entry['reason'] for entry in left_out)
    yield 'shard', (writer.commit(skipped), left_out)


def _define_flags() -> Callable[[], dict[str, Any]]:
  """Defines the flags; returns the function that reads them."""
  holders = {
    'spec': flags.DEFINE_string(
      'from', None, 'Spec of the source, see docs/data.md.', required=True
    ),
    'to': flags.DEFINE_string('to', None, 'arrayrecord:DIR; DIR may be gs://…', required=True),
    'shards': flags.DEFINE_integer('shards', None, 'Number of files.', required=True),
    'licence': flags.DEFINE_string('licence', '', "Licence of the data; default: the source's."),
    'workers': flags.DEFINE_integer('workers', 2, 'Processes.'),
  }
  return lambda: {name: holder.value for name, holder in holders.items()}


def main(read_flags: Callable[[], dict[str, Any]]) -> None:
  """Converts, then says what was written and what was left out."""
  values = read_flags()
  manifest = convert(**values)
  print(f'{values["to"]}: {manifest.total} records in {manifest.shard_count} shards')
  if manifest.skipped:
    reasons = ', '.join(f'{count} {reason}' for reason, count in sorted(manifest.skipped.items()))
    print(f'left out: {reasons}; listed in {os.path.join(_target(values["to"]), QUARANTINE)}')


if __name__ == '__main__':
  # only as a command: a library import must not add flags to the program that imports it
  _read = _define_flags()
  cli.run(lambda: main(_read))
