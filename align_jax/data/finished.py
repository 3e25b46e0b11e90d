"""What is finished of a folder of shards that is still written.

Taken in are the shards from the first one up to the first gap, by their numbers: then a count says
which they are, in whatever order several writers finish them.
"""

import dataclasses
import hashlib
import itertools
import json
import logging
import os
import time

from align_jax.data.shards import Manifest, Shard, load_manifest, shard_name
from align_jax.errors import UserError

_PAUSE = 2.0  # seconds between two looks at a folder that holds nothing yet

_log = logging.getLogger('align_jax.data')


@dataclasses.dataclass(frozen=True)
class Finished:
  """The shards of a folder that were finished at some moment.

  Attributes:
    shards: (file, sha256) of each, in the order of their numbers.
    records: in all of them.
    complete: whether no more will come.
  """

  shards: tuple[tuple[str, str], ...] = ()
  records: int = 0
  complete: bool = False

  @property
  def checksum(self) -> str:
    """Of the list of shards."""
    return hashlib.sha256(json.dumps(self.shards).encode()).hexdigest()


def look(directory: str, since: Finished = Finished()) -> Finished:
  """Returns what is finished now; nothing where there is no folder yet.

  Args:
    directory: of shards.
    since: what an earlier look has found.

  Raises:
    UserError: a shard of `since` is gone or another one now; a damaged manifest.
  """
  manifest = load_manifest(directory)
  entries(directory, manifest, since)
  return Finished() if manifest is None else _finished(manifest)


def wait_for_records(directory: str, seconds: float, spec: str) -> Finished:
  """Returns what is finished, once there is at least one record.

  Args:
    directory: of shards; it need not be there yet.
    seconds: to wait at most.
    spec: what names it, for messages.

  Raises:
    UserError: nothing came in that time, or all is finished and there is no record.
  """
  end = time.monotonic() + seconds
  said = False
  while not (found := look(directory)).records:
    if found.complete:
      raise UserError(f'{spec}: no records in {len(found.shards)} files; make the data again')
    left = end - time.monotonic()
    if left <= 0:
      raise UserError(
        f'{spec}: no shard was finished in {directory} within {seconds:g} s; start what writes '
        'them, or wait longer with wait=SECONDS'
      )
    if not said:
      said = True
      _log.warning('%s: no finished shard yet; waiting for one, up to %g s', spec, seconds)
    time.sleep(min(_PAUSE, left))
  return found


def entries(directory: str, manifest: Manifest | None, seen: Finished) -> list[Shard]:
  """Returns what the manifest says of the shards that were seen.

  Raises:
    UserError: one of them is not in it any more, or with another checksum.
  """
  known = {s.file: s for s in manifest.shards} if manifest is not None else {}
  for file, sha256 in seen.shards:
    path = os.path.join(directory, file)
    if file not in known:
      raise UserError(
        f'{path}: gone from the manifest, but it was taken in before; put the shards back, or '
        'start in a new --workdir'
      )
    if known[file].sha256 != sha256:
      raise UserError(
        f'{path}: another shard now (sha256 {known[file].sha256[:12]}…) than was taken in before '
        f'({sha256[:12]}…); put that one back, or start in a new --workdir'
      )
  return [known[file] for file, _ in seen.shards]


def _finished(manifest: Manifest) -> Finished:
  known = {s.file: s for s in manifest.shards}
  names = (shard_name(i, manifest.shard_count) for i in range(manifest.shard_count))
  first = [known[name] for name in itertools.takewhile(known.__contains__, names)]
  return Finished(
    shards=tuple((s.file, s.sha256) for s in first),
    records=sum(s.count for s in first),
    complete=manifest.complete and len(first) == manifest.shard_count,
  )
