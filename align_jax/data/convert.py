"""Any source into ArrayRecord shards: in parallel, resumable, with a manifest.

  python -m align_jax.data.convert --from='webdataset:DIR/*.tar' --to=arrayrecord:OUT --shards=64

Shards hold contiguous ranges, so that the order of the source stays. Killed at any moment, the
same command goes on: finished shards whose checksums agree are kept.
"""

import collections
import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Callable, Generator, Sequence
from typing import Any

from absl import flags
from tqdm import tqdm

from align_jax import cli, storage
from align_jax.data import shards as shards_lib
from align_jax.data.images import ImageError, decode_image
from align_jax.data.sources import Source, open_source, parse_spec
from align_jax.data.work import LOCAL, Progress, WorkConfig, run_tasks
from align_jax.errors import UserError
from align_jax.files import write_file

QUARANTINE = 'quarantine.jsonl'
WORK = 'work'  # within the folder of shards: what Beam's workers say, until it is entered
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
  runner: str = LOCAL,
  beam_options: Sequence[str] = (),
  progress: bool = True,
) -> shards_lib.Manifest:
  """Writes a source into shards. Every image is decoded once, those that fail are left out.

  Args:
    spec: the source.
    to: `arrayrecord:DIR`, on a disk or in a bucket; a folder of its own.
    shards: number of files; shard i holds the i-th of as many contiguous ranges.
    licence: of the data; by default what the source says.
    workers, runner, beam_options: where the work is done, see `work.WorkConfig`.
    progress: shows rate and time left on standard error.

  Returns: the manifest. `DIR/quarantine.jsonl` lists the records left out, if any.

  Raises:
    UserError: bad arguments, a folder in use, a full disk (finished shards stay), or a source of
      which no record can be read.
  """
  directory = _target(to)
  work = WorkConfig(workers, runner, tuple(beam_options))
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
    function = functools.partial(_write_shard, source, directory, shards)
    scratch = os.path.join(directory, WORK)
    with bar, contextlib.closing(run_tasks(function, tasks, work, scratch=scratch)) as messages:
      for message in messages:
        if isinstance(message, Progress):
          bar.update(message.count)
        else:
          entry, left_out = message.result
          manifest = _record(directory, manifest, shards_lib.Shard(**entry), left_out)
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


def _write_shard(
  source: Source, directory: str, shards: int, task: Task
) -> Generator[int, None, tuple[dict[str, Any], list[dict[str, Any]]]]:
  """Writes one shard; returns its entry of the manifest and the records left out."""
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
        yield unreported
        unreported = 0
    skipped = collections.Counter(entry['reason'] for entry in left_out)
    return dataclasses.asdict(writer.commit(skipped)), left_out


def _define_flags() -> Callable[[], dict[str, Any]]:
  """Defines the flags; returns the function that reads them."""
  holders: dict[str, flags.FlagHolder] = {
    'spec': flags.DEFINE_string(
      'from', None, 'Spec of the source, see docs/data.md.', required=True
    ),
    'to': flags.DEFINE_string('to', None, 'arrayrecord:DIR; DIR may be gs://…', required=True),
    'shards': flags.DEFINE_integer('shards', None, 'Number of files.', required=True),
    'licence': flags.DEFINE_string('licence', '', "Licence of the data; default: the source's."),
  }
  holders |= cli.define_work()
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
