"""From a source of pairs and an embedder to clusters: what the command, a training and a study do.

mined, ids = mine_run(embed, open_pairs(spec), k=7, strategy='saha_mutual')
save_plan(path, make_plan(mined, ids, spec))
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int
from scipy import sparse
from scipy.sparse import csgraph
from tqdm import tqdm

from align_jax.data.images import ImageError
from align_jax.data.pair_record import Content, PairRecord, PairSource
from align_jax.errors import UserError, did_you_mean
from align_jax.evaluation.contents import ContentVectors, Embed, Role
from align_jax.mining.pairs import Pairs
from align_jax.mining.strategy import (
  Found,
  Mined,
  MiningConfig,
  check_labelled_tasks,
  check_strategy,
  mine,
)

_BATCH = 256  # contents given to the embedder at a time
_AHEAD = 64  # pairs that are read before they are needed


@dataclasses.dataclass(frozen=True)
class EmbeddedPairs:
  """The pairs of a source and their vectors; arrays go by the source's numbers.

  Attributes:
    pairs: those that cannot be read are of vectors that are not finite.
    ids: of the pairs.
    task_names, tasks: the tasks, and that of each pair.
    labels: of each pair; equal where two of one task truly match; -1 where nobody knows.
    unreadable: how many cannot be read.
    skipped: what the source has left out, by reason.
    stand_ins: the last so many queries and candidates stand for those that could not even be read.
  """

  pairs: Pairs
  ids: tuple[str, ...]
  task_names: tuple[str, ...]
  tasks: Int[np.ndarray, 'n']
  labels: Int[np.ndarray, 'n']
  unreadable: int
  skipped: Mapping[str, int]
  stand_ins: int = 0


def mine_run(
  embed: Embed,
  source: PairSource,
  k: int = 15,
  strategy: str = 'saha_mutual',
  settings: MiningConfig = MiningConfig(),
  *,
  labelled_tasks: Sequence[str] = (),
  mesh: Mesh | None = None,
  seed: int = 0,
  progress: bool = False,
) -> tuple[Mined, tuple[str, ...]]:
  """Embeds pairs and finds clusters of k + 1 that are hard for each other.

  Args:
    embed: of the model.
    source: the pairs.
    k, strategy, settings, seed: see `mining.strategy.mine`.
    labelled_tasks: names of tasks of classes, see `MiningConfig.labelled_tasks`.
    mesh: of the devices that search; None: the default device.
    progress: shows rate and time left on standard error.

  Returns: the clusters, and the ids of the pairs that they number.

  Raises:
    UserError: see `check`, `embed_pairs` and `mine_pairs`.
  """
  check(source, k, strategy, settings, labelled_tasks)
  found = embed_pairs(embed, source, bad=settings.bad, progress=progress)
  mined = mine_pairs(
    found,
    k,
    strategy,
    settings,
    labelled_tasks=labelled_tasks,
    mesh=mesh,
    seed=seed,
    progress=progress,
  )
  return mined, found.ids


def check(
  source: PairSource,
  k: int,
  strategy: str,
  settings: MiningConfig,
  labelled_tasks: Sequence[str] = (),
) -> None:
  """Says what is wrong before anything is read or embedded.

  Raises:
    UserError: an unknown strategy, a rule that cannot be, tasks of classes for a strategy other
      than `saha`, fewer pairs than a cluster needs, or two pairs of one id.
  """
  check_strategy(strategy, k, settings)
  if labelled_tasks:
    check_labelled_tasks(strategy, settings)
  if len(source) <= k:
    raise UserError(
      f'{source.spec}: {len(source)} pairs, and k={k} needs clusters of {k + 1}; mine more pairs, '
      'or with a smaller k'
    )
  ids = source.ids()
  if len(set(ids)) < len(ids):
    again = next(name for name, many in collections.Counter(ids).items() if many > 1)
    raise UserError(
      f'{source.spec}: two pairs have the id {again!r}; a plan needs ids of their own'
    )


def embed_pairs(
  embed: Embed,
  source: PairSource,
  *,
  bad: Literal['error', 'skip'] = 'error',
  progress: bool = False,
  batch_size: int = _BATCH,
  threads: int = 2,
) -> EmbeddedPairs:
  """Embeds queries and candidates, each distinct content once.

  Args:
    embed: of the model.
    source: the pairs.
    bad: `skip` keeps pairs that cannot be read or embedded, with vectors that are not finite,
      for `mine` to leave out and count.
    progress: shows rate and time left on standard error.
    batch_size: contents given to `embed` at a time.
    threads: that read pairs ahead.

  Raises:
    UserError: unless skipped, a pair or an image that cannot be read, embeddings that are not
      finite, or the same pair twice.
  """
  skip = bad == 'skip'
  careful = _Careful(embed, source.spec, skip)
  roles: tuple[Role, Role] = ('query', 'candidate')
  sides = [ContentVectors(careful, role, batch_size, source.spec, finite=False) for role in roles]
  number = np.full((2, len(source)), -1, np.int32)
  known: dict[tuple[int, int], int] = {}
  tasks: dict[str, int] = {}
  labels: dict[tuple[str, str], int] = {}
  task, label = np.zeros(len(source), np.int32), np.full(len(source), -1, np.int32)
  bar = tqdm(total=len(source), unit=' pairs', desc='embed', mininterval=0.5, disable=not progress)
  with bar:
    for i, read in enumerate(_read(source, threads)):
      bar.update()
      try:
        record = read.result()
      except UserError:
        if not skip:
          raise
        continue
      task[i] = tasks.setdefault(record.task, len(tasks))
      if record.label:
        label[i] = labels.setdefault((record.task, record.label), len(labels))
      both = (
        _row(sides[0], record.query, record.instruction),
        _row(sides[1], record.positive, record.candidate_instruction),
      )
      number[:, i] = both
      first = known.setdefault(both, i)
      if first != i and not skip:
        one, two = source.ids()[first], record.id
        raise UserError(
          f'{source.spec}: the pairs {one!r} and {two!r} are the same; leave one out, or --bad=skip'
        )
    if not known:
      raise UserError(f'{source.spec}: no pair can be read; check the data')
    queries, candidates = (side.vectors() for side in sides)
  nobody = np.full((1, queries.shape[1]), np.inf, np.float32)
  stand_ins = int((number < 0).any())
  if stand_ins:
    queries, candidates = np.concatenate([queries, nobody]), np.concatenate([candidates, nobody])
  number[0, number[0] < 0], number[1, number[1] < 0] = len(queries) - 1, len(candidates) - 1
  lost = [(x == np.inf).all(axis=1)[n] for x, n in zip((queries, candidates), number, strict=True)]
  return EmbeddedPairs(
    Pairs(queries, candidates, *number),
    tuple(source.ids()),
    tuple(tasks),
    task,
    label,
    int((lost[0] | lost[1]).sum()),
    dict(getattr(source, 'skipped', {})),
    stand_ins,
  )


def mine_pairs(
  embedded: EmbeddedPairs,
  k: int = 15,
  strategy: str = 'saha_mutual',
  settings: MiningConfig = MiningConfig(),
  *,
  labelled_tasks: Sequence[str] = (),
  mesh: Mesh | None = None,
  seed: int = 0,
  progress: bool = False,
  found: Callable[[Found], None] = lambda found: None,
) -> Mined:
  """Finds the clusters; arguments as for `mine_run`, and `found` as for `mining.strategy.mine`.

  Where nobody knows what matches, `label` rules leave out nothing but the candidate itself.

  Raises:
    UserError: an unknown task, labels that are asked for where there are none, and what `mine`
      refuses.
  """
  for name in labelled_tasks:
    if name not in embedded.task_names:
      raise UserError(f'mining: no task {name!r}{did_you_mean(name, embedded.task_names)}')
  classes = tuple(embedded.task_names.index(name) for name in labelled_tasks)
  settings = dataclasses.replace(settings, labelled_tasks=(*settings.labelled_tasks, *classes))
  pairs = embedded.pairs
  labels = _shared_labels(embedded, settings.per_task)
  total = len(np.unique(pairs.query))
  bar = tqdm(total=total, unit=' queries', desc='mine', mininterval=0.5, disable=not progress)
  with bar:
    mined = mine(
      pairs,
      k,
      strategy,
      settings,
      mesh,
      labels,
      embedded.tasks,
      embedded.ids,
      seed,
      seen=bar.update,
      found=found,
    )
  if not len(mined.clusters):
    raise UserError(
      f'mining: of {len(pairs)} pairs no {k + 1} can be found that do not match each other; mine '
      'more pairs, or with a smaller k'
    )
  counts = dict(mined.counts)
  if embedded.unreadable:
    counts['unreadable'] = embedded.unreadable
    counts['not_finite'] -= embedded.unreadable
    counts['no_owner'] -= embedded.stand_ins
    counts['no_positive'] -= embedded.stand_ins
  return dataclasses.replace(mined, counts=counts)


def _shared_labels(embedded: EmbeddedPairs, per_task: bool) -> Int[np.ndarray, 'n'] | None:
  """Labels of pairs such that those of one candidate (of a task, if they are mined apart) have one.

  Known labels that meet in a candidate become one. Where nobody knows, each candidate has its own.
  """
  known, pairs = embedded.labels >= 0, embedded.pairs
  if not known.any():
    return None
  place = pairs.candidate.astype(np.int64)
  if per_task:
    place = embedded.tasks.astype(np.int64) * len(pairs.candidates) + place
  names, place = np.unique(place, return_inverse=True)
  count = len(names) + int(embedded.labels.max()) + 1
  ends = place[known], len(names) + embedded.labels[known]
  graph = sparse.coo_array((np.ones(len(ends[0]), np.int8), ends), shape=(count, count))
  return csgraph.connected_components(graph, directed=False)[1][place].astype(np.int64)


class _Careful:
  """An embedder that says which content is bad, or gives it a vector that is not finite.

  What cannot be decoded has a vector of inf.
  """

  def __init__(self, embed: Embed, where: str, skip: bool):
    self._embed, self._where, self._skip = embed, where, skip
    self._dim = int(getattr(embed, 'dim', 0))

  def __call__(
    self, contents: Sequence[Content], role: Role, instruction: str
  ) -> Float[np.ndarray, 'n dim']:
    parts = self._parts(contents, role, instruction)
    if not self._dim:
      raise UserError(
        f'{self._where}: none of the first {len(contents)} contents can be decoded; check the data'
      )
    lost = np.full((1, self._dim), np.inf, np.float32)
    out = np.concatenate([lost if part is None else part for part in parts])
    bad = np.flatnonzero(~np.isfinite(out).all(axis=1))
    if len(bad) and not self._skip:
      raise UserError(
        f'{self._where}: {len(bad)} embeddings are not finite, first that of '
        f'{contents[bad[0]].id}; take an earlier checkpoint (--step), or leave such pairs out '
        '(--bad=skip)'
      )
    return out

  def _parts(
    self, contents: Sequence[Content], role: Role, instruction: str
  ) -> list[np.ndarray | None]:
    """Vectors of parts of the contents; None for one that cannot be decoded."""
    try:
      part = np.asarray(self._embed(contents, role, instruction), np.float32)
    except UserError as error:
      if not self._skip or not isinstance(error.__cause__, ImageError):
        raise
    else:
      self._dim = part.shape[1]
      return [part]
    if len(contents) == 1:
      return [None]
    middle = len(contents) // 2
    halves = contents[:middle], contents[middle:]
    return [part for half in halves for part in self._parts(half, role, instruction)]


def _row(vectors: ContentVectors, content: Content, instruction: str) -> int:
  name = content.id if content.modality == 'real' else f'{content.modality}:{content.id}'
  return vectors.row(name, instruction, (content,))


def _read(source: PairSource, threads: int) -> Iterator[Future[PairRecord]]:
  """Yields what reading each pair came to, in order, some of them read ahead."""
  pool = ThreadPoolExecutor(threads)
  try:
    waiting: collections.deque[Future[PairRecord]] = collections.deque()
    for i in range(len(source)):
      waiting.append(pool.submit(source.__getitem__, i))
      if len(waiting) > _AHEAD:
        yield waiting.popleft()
    yield from waiting
  finally:
    pool.shutdown(cancel_futures=True)
