"""The batch plan: which records make up each batch's clusters, as ids, in one small file.

A file of gzipped lines of JSON:

  {"format": "align_jax.batch_plan", "schema": 1, "data": …, …, "sha256": …}   what it is
  ["scene-000017", …]                                                          ids that it names
  [0, 5, 2, …]                                                                 clusters, as numbers
  …                                                                            of those ids

`sha256` is of all the rest. Images are never copied: a reader takes them from the data by id.
"""

import contextlib
import dataclasses
import gzip
import hashlib
import importlib.metadata
import json
import os
import platform
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from align_jax.errors import UserError, require
from align_jax.files import write_file
from align_jax.mining.strategy import Mined
from align_jax.storage import read_bytes

_FORMAT, _SCHEMA = 'align_jax.batch_plan', 1


@dataclasses.dataclass(frozen=True)
class BatchPlan:
  """Clusters of records.

  Attributes:
    clusters: ids of records, `size` in each.
    size: of a cluster.
    data: spec of the data that was mined.
    records: how many there were.
    ids: checksum of their ids, in any order; see `ids_checksum`.
    content: checksum of what they hold (`data.fingerprint`); '' where it was not asked for.
    strategy, settings: how they were mined.
    versions: of what mined them.
  """

  clusters: tuple[tuple[str, ...], ...]
  size: int
  data: str
  records: int
  ids: str
  content: str
  strategy: str
  settings: Mapping[str, Any]
  versions: Mapping[str, str]

  def __post_init__(self) -> None:
    wrong = [i for i, row in enumerate(self.clusters) if len(row) != self.size]
    if wrong:
      raise UserError(
        f'plan: cluster {wrong[0]} is of {len(self.clusters[wrong[0]])} records, not {self.size}'
      )


def make_plan(mined: Mined, ids: Sequence[str], data: str, content: str = '') -> BatchPlan:
  """Names the clusters' pairs.

  Args:
    mined: what mining found.
    ids: of the pairs that were given to it.
    data: spec of the data.
    content: checksum of what they hold, '' where there is none.
  """
  _check_ids(ids)
  names = np.asarray(ids, object)[mined.clusters]
  return BatchPlan(
    clusters=tuple(map(tuple, names.tolist())),
    size=mined.clusters.shape[1],
    data=data,
    records=len(ids),
    ids=ids_checksum(ids),
    content=content,
    strategy=mined.strategy,
    settings=json.loads(json.dumps(mined.settings)),
    versions=_versions(),
  )


def ids_checksum(ids: Sequence[str]) -> str:
  """Returns the checksum of a set of ids, equal for any order."""
  return hashlib.sha256(json.dumps(sorted(ids)).encode()).hexdigest()


def save_plan(path: str | os.PathLike[str], plan: BatchPlan) -> None:
  """Writes a plan aside, then renames it.

  Raises:
    UserError: a full or read-only disk, a store that does not answer; an older plan stays.
  """
  head, body = _encode(plan)
  line = json.dumps({**head, 'sha256': _sha256(head, body)}).encode()
  data = gzip.compress(line + b'\n' + body, mtime=0)  # no time in it: equal plans, equal files
  write_file(os.fspath(path), data)


def load_plan(path: str | os.PathLike[str]) -> BatchPlan:
  """Reads a plan.

  Raises:
    UserError: there is none, it is damaged, or of a later schema.
  """
  try:
    data = read_bytes(path)
  except FileNotFoundError as error:
    raise UserError(f'{path}: no such plan; make one with python -m align_jax.mine') from error
  except IsADirectoryError as error:
    raise UserError(f'{path}: a folder; name the plan in it') from error
  mend = 'mine again, or copy it again from where it was made'
  try:
    first, _, body = gzip.decompress(data).partition(b'\n')
    head = json.loads(first)
    known, sha256 = head['format'] == _FORMAT, head.pop('sha256', '')
  except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
    raise UserError(f'{path}: damaged, or no batch plan ({error}); {mend}') from error
  if not known:
    raise UserError(f'{path}: a {head["format"]}, no batch plan')
  if head['schema'] != _SCHEMA:
    raise UserError(
      f'{path}: a plan of schema {head["schema"]}, this reads {_SCHEMA}; use the align_jax that '
      'made it, or mine again'
    )
  if _sha256(head, body) != sha256:
    raise UserError(f'{path}: damaged, its checksum does not fit; {mend}')
  lines = body.decode().rstrip('\n').split('\n')
  names = json.loads(lines[0])
  fields = {f.name for f in dataclasses.fields(BatchPlan)} - {'clusters'}
  clusters = tuple(tuple(names[i] for i in json.loads(line)) for line in lines[1:])
  try:
    return BatchPlan(clusters=clusters, **{name: head[name] for name in fields})
  except KeyError as error:
    raise UserError(f'{path}: damaged, it says nothing of {error}; {mend}') from error


def check_plan(plan: BatchPlan, ids: Sequence[str], content: str = '') -> None:
  """Refuses a plan whose data are others now.

  Args:
    plan: the plan.
    ids: of the records that are there now.
    content: checksum of what they hold, where both sides have one.

  Raises:
    UserError: records have gone, come or changed; says which.
  """
  _check_ids(ids)
  now = set(ids)
  mend = 'mine again, or use the data that were mined'
  gone = sorted({name for row in plan.clusters for name in row} - now)
  if gone:
    raise UserError(
      f'plan of {plan.data}: {len(gone)} of its records are not there now, first {gone[0]!r}; '
      f'{mend}'
    )
  if plan.content and plan.content == content:
    return  # the same records; the plan may be of some of them
  if ids_checksum(ids) != plan.ids:
    many = len(ids) - plan.records
    what = f'{abs(many)} {"more" if many > 0 else "fewer"}' if many else 'as many, but others'
    raise UserError(
      f'plan of {plan.data}: mined from {plan.records} records, there are {len(ids)} now ({what}); '
      f'{mend}'
    )
  if plan.content and content and plan.content != content:
    raise UserError(
      f'plan of {plan.data}: the records have the same ids, but hold something else now (checksum '
      f'{content[:12]}…, was {plan.content[:12]}…); {mend}'
    )


def plan_checksum(plan: BatchPlan) -> str:
  """Returns what tells a plan from any other one: a run that goes on asks for the same."""
  return _sha256(*_encode(plan))


def _encode(plan: BatchPlan) -> tuple[dict[str, Any], bytes]:
  """The first line, but for the checksum, and the rest."""
  names = sorted({name for row in plan.clusters for name in row})
  number = {name: i for i, name in enumerate(names)}
  rows = [json.dumps(names)]  # of any name a line, and bytes
  rows += [json.dumps([number[name] for name in row]) for row in plan.clusters]
  fields = [f.name for f in dataclasses.fields(plan) if f.name != 'clusters']
  head = {'format': _FORMAT, 'schema': _SCHEMA, **{name: getattr(plan, name) for name in fields}}
  return head, ('\n'.join(rows) + '\n').encode()


def _sha256(head: Mapping[str, Any], body: bytes) -> str:
  return hashlib.sha256(json.dumps(head, sort_keys=True).encode() + b'\n' + body).hexdigest()


def _check_ids(ids: Sequence[str]) -> None:
  require(len(set(ids)) == len(ids), 'plan', 'ids of records that are there more than once')


def _versions() -> dict[str, str]:
  out = {'python': platform.python_version(), 'jax': jax.__version__, 'numpy': np.__version__}
  with contextlib.suppress(importlib.metadata.PackageNotFoundError):
    out['align_jax'] = importlib.metadata.version('align_jax')
  return out
