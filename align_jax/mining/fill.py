"""Makes every cluster whole: takes out who may not be there, and fills what is missing by lot."""

import numpy as np
from jaxtyping import Bool, Int

from align_jax.errors import UserError
from align_jax.mining.pairs import Pairs

_DRAWS = 16  # for each place, before all that are left are gone over
_ROWS = 4096  # clusters of a block


def clear(
  clusters: Int[np.ndarray, 'clusters size'], pairs: Pairs
) -> tuple[Int[np.ndarray, 'clusters size'], dict[str, int]]:
  """Takes out who is in a cluster twice, or with a known match: the later one goes.

  Returns: the clusters, -1 where one has gone; and how many were there `twice` or with a
    `known_match`.
  """
  out = clusters.copy()
  counts = {'twice': 0, 'known_match': 0}
  for start in range(0, len(out), _ROWS):
    rows = out[start : start + _ROWS]
    for place in range(1, rows.shape[1]):
      one = rows[:, place]
      twice = ((rows[:, :place] == one[:, None]).any(axis=1)) & (one >= 0)
      known = _clashes(rows[:, :place], one, pairs) & ~twice
      one[twice | known] = -1
      counts['twice'] += int(twice.sum())
      counts['known_match'] += int(known.sum())
  return out, counts


def fill(
  clusters: Int[np.ndarray, 'clusters size'],
  pairs: Pairs,
  tasks: Int[np.ndarray, 'n'],
  labels: Int[np.ndarray, 'n'] | None,
  seed: int,
  *,
  drop: bool = False,
) -> tuple[Int[np.ndarray, 'whole size'], dict[str, int]]:
  """Fills empty places with pairs that are drawn by lot, of the same task where there are such.

  Nobody comes to where a match is known, nor, if there are labels, to another one of his label.

  Args:
    clusters: numbers of pairs, -1 where a place is empty; nobody twice (see `clear`).
    pairs: what is mined.
    tasks: of each pair.
    labels: of each pair, or None.
    seed: of the lot.
    drop: leave clusters out that cannot be filled.

  Returns: the clusters; how many places were `filled`, of them `filled_other_task`, and how many
    clusters were left out as `too_few`.

  Raises:
    UserError: a cluster cannot be filled, and `drop` is not set.
  """
  out = clusters.copy()
  rng = np.random.default_rng(seed)
  # the pairs of task t are by_task[ends[t]:ends[t + 1]]
  names, task = np.unique(tasks, return_inverse=True)
  by_task = np.argsort(task, kind='stable')
  ends = np.searchsorted(task[by_task], np.arange(len(names) + 1))
  other = np.zeros(len(out), np.int64)
  home = task[out.max(axis=1, initial=0)]
  # each member has its own candidate, and label: where those are too few, no search helps
  few = min(len(np.unique(x)) for x in (pairs.candidate, labels) if x is not None) < out.shape[1]
  lost = (out < 0).any(axis=1) & few
  for place in range(out.shape[1]):
    empty = np.flatnonzero((out[:, place] < 0) & ~lost)
    for _ in range(_DRAWS):
      if not len(empty):
        break
      many = ends[home[empty] + 1] - ends[home[empty]]
      drawn = by_task[ends[home[empty]] + (rng.random(len(empty)) * many).astype(np.int64)]
      fits = _fits(out[empty], drawn, pairs, labels)
      out[empty[fits], place] = drawn[fits]
      empty = empty[~fits]
    for row in empty.tolist():
      own = by_task[ends[home[row]] : ends[home[row] + 1]]
      found = _search(out[row], rng.permutation(own), pairs, labels)
      if found < 0:
        found = _search(out[row], rng.permutation(len(pairs)), pairs, labels)
        other[row] += found >= 0
      out[row, place] = found
      lost[row] = found < 0
    if lost.any() and not drop:
      row = int(lost.argmax())
      raise UserError(
        f'mining: a cluster of {out.shape[1]} pairs cannot be filled: it has '
        f'{int((out[row] >= 0).sum())}, and all others of the {len(pairs)} are known matches of '
        'them or have their labels; k must be smaller, or config.bad "skip"'
      )
  return out[~lost], {
    'filled': int((clusters[~lost] < 0).sum()),
    'filled_other_task': int(other[~lost].sum()),
    'too_few': int(lost.sum()),
  }


def _search(
  row: Int[np.ndarray, 'size'],
  among: Int[np.ndarray, 'some'],
  pairs: Pairs,
  labels: Int[np.ndarray, 'n'] | None,
) -> int:
  """The first that fits into a cluster, -1 if nobody does."""
  fits = _fits(np.broadcast_to(row, (len(among), len(row))), among, pairs, labels)
  return int(among[fits.argmax()]) if fits.any() else -1


def _fits(
  rows: Int[np.ndarray, 'e size'],
  one: Int[np.ndarray, 'e'],
  pairs: Pairs,
  labels: Int[np.ndarray, 'n'] | None,
) -> Bool[np.ndarray, 'e']:
  bad = _clashes(rows, one, pairs)
  if labels is not None:
    bad |= ((labels[rows] == labels[one][:, None]) & (rows >= 0)).any(axis=1)
  return ~bad


def _clashes(
  rows: Int[np.ndarray, 'e size'], one: Int[np.ndarray, 'e'], pairs: Pairs
) -> Bool[np.ndarray, 'e']:
  """Whether somebody in the row is the same pair or a known match."""
  there = (rows >= 0) & (one >= 0)[:, None]
  row, place = np.nonzero(there)
  bad = pairs.clash(rows[row, place], one[row])
  out = np.zeros(len(rows), bool)
  out[row[bad]] = True
  return out
