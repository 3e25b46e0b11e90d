"""Mining: the nearest candidates beside FAISS, clusters beside the published loop in Python.

  python -m benchmarks.mining [--candidates=200000] [--queries=200000] [--dim=256] [--k=90] \
    [--pairs=50000,100000,200000,400000] [--loop_pairs=400000]

- `search`: the k nearest candidates of each query by inner product. FAISS searches an
  `IndexFlatIP`; both sides use all cores. `same` is the share of found candidates that are equal,
  `largest_difference` that of the products in any place: where two candidates are equally near but
  for float32's rounding, either may come first. `rss_bytes` is what the process grew by while the
  queries were searched for, `block_bytes` what one block of products takes.
- `clusters`: seconds from the pool of nearest candidates to SaHa's clusters, by number of pairs,
  and those of the published loop (arXiv 2508.00955): the same sets, dictionaries and tensors in
  Python. `numpy` is that loop with its products in NumPy, several at once. `growth` is the exponent
  p of seconds ~ pairs^p, fitted to all sizes. `same` is the share of equal clusters. `b3` and
  `saha_mutual` are timed on the same pools. `cpu_seconds` is what all threads of the process did:
  on a machine that others use it says more than `seconds`, which are of the clock; `cpu_growth` is
  its exponent. `loop_pairs` bounds the sizes that both loops are run at.

`--queries` takes a slice of the queries; `--queries=0` or `--pairs=` leaves that part out.
"""

import dataclasses
import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from align_jax.errors import UserError
from align_jax.mining.graph import even_out, metis_parts, mutual, ranked_pairs
from align_jax.mining.nearest import COLUMNS, ROWS, layout, nearest
from align_jax.mining.pairs import Pairs
from align_jax.mining.saha import saha
from align_jax.mining.saha_mutual import saha_mutual
from benchmarks import common
from benchmarks.contrastive_loss import timed

_GROUP = 4000  # pairs among which the pool of the clustering part is searched


@dataclasses.dataclass(frozen=True)
class Options:
  """What is measured.

  Attributes:
    queries, candidates, dim, k: of the search.
    rows, columns: of a block.
    rounds: of each side of the search, in turns.
    pairs: cases of the clustering part; '' for none.
    loop_pairs: the most that the published loop is run with.
    negatives, mult: of a cluster.
    strategies: besides saha, that are timed.
  """

  queries: int = 200_000
  candidates: int = 200_000
  dim: int = 256
  k: int = 90
  rows: int = ROWS
  columns: int = COLUMNS
  rounds: int = 3
  pairs: str = '50000,100000,200000,400000'
  loop_pairs: int = 400_000
  negatives: int = 15
  mult: int = 3
  strategies: str = 'b3,saha_mutual'


def unit(x: np.ndarray) -> np.ndarray:
  return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def seconds_of(work: Callable[[], Any]) -> float:
  start = time.perf_counter()
  work()
  return time.perf_counter() - start


def search(options: Options) -> dict[str, Any]:
  """Times both searches, and compares what they find."""
  common.need('faiss-cpu')
  import faiss

  faiss.omp_set_num_threads(common.cores())
  rng = np.random.default_rng(0)
  candidates = unit(rng.standard_normal((options.candidates, options.dim), np.float32))
  queries = unit(rng.standard_normal((options.queries, options.dim), np.float32))
  index = faiss.IndexFlatIP(options.dim)
  index.add(candidates)
  found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
  block = {'rows': options.rows, 'columns': options.columns}

  def ours() -> None:
    found['ours'] = nearest(queries, candidates, options.k, **block)

  def peer() -> None:
    found['peer'] = index.search(queries, options.k)

  few = queries[: min(len(queries), 4 * options.rows)]
  nearest(few, candidates, options.k, **block)
  index.search(few, options.k)
  common.say('search, once to compile')
  _, _, grown = timed(lambda: float(_measured(ours)), 1)
  taken = common.in_turns(
    {'ours': lambda: seconds_of(ours), 'peer': lambda: seconds_of(peer)}, options.rounds
  )
  (value, at), (wanted, index_at) = found['ours'], found['peer']
  rows = slice(0, min(len(queries), 4096))
  shape = layout(options.queries, options.candidates, None, options.rows, options.columns)
  return {
    'seconds': {side: common.spread(values) for side, values in taken.items()},
    'ratio': common.ratios(taken, target=1.0),
    'same': common.rounded(float((at == index_at).mean())),
    'same_sets': common.rounded(
      float(np.mean([np.isin(a, b).mean() for a, b in zip(at[rows], index_at[rows], strict=True)]))
    ),
    'largest_difference': common.rounded(float(np.abs(value - wanted).max())),
    'rss_bytes': grown,
    'embeddings_bytes': 4 * options.dim * (options.candidates + options.queries),
    'block_bytes': 4 * options.rows * shape.columns,
    'all_products_bytes': 4 * options.queries * options.candidates,
  }


def _measured(work: Callable[[], None]) -> float:
  work()
  return 0.0


def make_pairs(count: int, options: Options) -> tuple[Pairs, np.ndarray, np.ndarray]:
  """Pairs in groups, and the nearest candidates of each query in its group.

  The groups are far apart, so a search among all would find the same; it takes hours at this size.
  """
  rng = np.random.default_rng(0)
  depth = 2 * options.negatives * options.mult
  queries = np.empty((count, options.dim), np.float32)
  candidates = np.empty_like(queries)
  values, pool = np.empty((count, depth), np.float32), np.empty((count, depth), np.int32)
  for start in range(0, count, _GROUP):
    part = slice(start, min(start + _GROUP, count))
    size = part.stop - start
    centre = 4 * rng.standard_normal(options.dim)
    meaning = centre + rng.standard_normal((max(1, size // 3), options.dim))
    meaning = meaning[rng.integers(0, len(meaning), size)]
    queries[part] = unit(meaning + 0.3 * rng.standard_normal(meaning.shape))
    candidates[part] = unit(meaning + 0.6 * rng.standard_normal(meaning.shape))
    values[part], found = nearest(queries[part], candidates[part], depth)
    pool[part] = np.where(found >= 0, found + start, -1)
  # the order of the data says nothing of the groups
  order = rng.permutation(count)
  rank = np.empty(count, np.int32)
  rank[order] = np.arange(count)
  number = np.arange(count, dtype=np.int32)
  pairs = Pairs(queries[order], candidates[order], number, number)
  pool = np.where(pool >= 0, rank[pool], -1).astype(np.int32)
  return pairs, values[order], pool[order]


def published_loop(
  pairs: Pairs, pool: np.ndarray, k: int, mult: int, kind: str = 'torch'
) -> list[list[int]]:
  """SaHa's greedy clusters with the operations that it was published with, one query at a time.

  Args:
    pairs, pool, k, mult: see `saha`.
    kind: `torch`: a tensor for each owner, as published; `numpy`: rows taken together.
  """
  hold, products = tensors(pairs.queries) if kind == 'torch' else rows(pairs.queries)
  owners: dict[int, set[int]] = {}
  for q, c in zip(pairs.query.tolist(), pairs.candidate.tolist(), strict=True):
    owners.setdefault(c, set()).add(q)
  last = {int(q): i for i, q in enumerate(pairs.query)}
  used: set[int] = set()
  out: list[list[int]] = []
  for phase, cap in enumerate((k * mult, 2 * k * mult)):
    taken: set[int] = set() if phase else used
    for number, (q, own) in enumerate(
      zip(pairs.query.tolist(), pairs.candidate.tolist(), strict=True)
    ):
      if q in used:
        continue
      found: list[int] = []
      held: list[Any] = []
      for c in pool[q].tolist():
        if c < 0 or c == own:
          continue
        free = list(owners[c].difference(taken))
        if not free:
          continue
        best = 0
        if len(free) > 1:
          best = int(np.argmax(products(q, [hold(o) for o in free])))
        found.append(free[best])
        held.append(hold(free[best]))
        if len(found) >= cap:
          break
      if not found:
        continue
      used.add(q)
      scored = zip(products(q, held), found, strict=True)
      kept = [o for _, o in sorted(scored, key=lambda item: item[0])][:k]
      out.append([number, *(last[o] for o in kept)])
      used.update(kept)
      if phase:
        taken.update(kept)
  return out


def tensors(x: np.ndarray) -> tuple[Callable[[int], Any], Callable[[int, list[Any]], list[float]]]:
  """How an owner is held, and the products of a query with several."""
  import torch

  def products(q: int, held: list[Any]) -> list[float]:
    return (torch.tensor(x[q]).unsqueeze(0) @ torch.cat(held).T)[0].tolist()

  return lambda o: torch.tensor(x[o]).unsqueeze(0), products


def rows(x: np.ndarray) -> tuple[Callable[[int], Any], Callable[[int, list[Any]], list[float]]]:
  """The same in NumPy, where several rows are taken at once."""
  return lambda o: o, lambda q, held: (x[held] @ x[q]).tolist()


def cut(pairs: Pairs, values: np.ndarray, pool: np.ndarray, size: int) -> np.ndarray:
  """B3's clusters: the published 30 ranks left out, 100 kept, of those that are in the pool."""
  edges = mutual(len(pairs), *ranked_pairs(pairs, values, pool, 30, 100))
  return even_out(metis_parts(len(pairs), edges, size), edges, size)[0]


def clusters(options: Options) -> dict[str, Any]:
  """Times the clustering of every case."""
  k, mult = options.negatives, options.mult
  wanted = [name for name in options.strategies.split(',') if name]
  for name in set(wanted) - {'b3', 'saha_mutual'}:
    raise UserError(f'--strategies: {name!r} is neither b3 nor saha_mutual')
  out: dict[str, Any] = {}
  spent: dict[str, list[tuple[int, float, float]]] = {}
  common.need('torch')
  few, _, near = make_pairs(100, options)
  published_loop(few, near, k, mult)  # imports
  counts = [int(count) for count in options.pairs.split(',') if count]
  for count in counts:
    common.say(f'clusters of {count} pairs: the pool')
    pairs, values, pool = make_pairs(count, options)
    found: dict[str, Any] = {}

    def ours(pairs: Pairs = pairs, pool: np.ndarray = pool, found: dict = found) -> None:
      found['ours'] = saha(pairs, pool, k, mult)[0]

    def peer(pairs: Pairs = pairs, pool: np.ndarray = pool, found: dict = found) -> None:
      found['peer'] = published_loop(pairs, pool, k, mult)

    def fast(pairs: Pairs = pairs, pool: np.ndarray = pool) -> None:
      published_loop(pairs, pool, k, mult, 'numpy')

    ours()  # compiles
    gc.collect()
    works: dict[str, Callable[[], Any]] = {
      'ours': ours,
      'peer': peer,
      'numpy': fast,
      'b3': lambda p=pairs, v=values, i=pool: cut(p, v, i, k + 1),
      'saha_mutual': lambda p=pairs, v=values, i=pool: saha_mutual(p, v, i, k),
    }
    loops = ['peer', 'numpy'] if count <= options.loop_pairs else []
    case: dict[str, Any] = {'seconds': {}, 'cpu_seconds': {}}
    for name in ['ours', *loops, *wanted]:
      busy = time.process_time()
      clock = seconds_of(works[name])
      busy = time.process_time() - busy
      common.say(f'clusters of {count} pairs: {name} {clock:.3f} s, {busy:.3f} s of CPU time')
      case['seconds'][name], case['cpu_seconds'][name] = map(common.rounded, (clock, busy))
      spent.setdefault(name, []).append((count, clock, busy))
    if loops:
      members = [[i for i in row if i >= 0] for row in found['ours'].tolist()]
      equal = sum(a == b for a, b in zip(members, found['peer'], strict=False))
      case['ratio'] = common.rounded(case['seconds']['peer'] / case['seconds']['ours'])
      case['same'] = common.rounded(equal / max(len(members), len(found['peer'])))
    out[str(count)] = case
  for name, column in (('growth', 1), ('cpu_growth', 2)):
    out[name] = {
      side: exponent([row[0] for row in rows], [row[column] for row in rows])
      for side, rows in spent.items()
      if len(rows) > 1
    }
  return out


def exponent(counts: Sequence[float], seconds: Sequence[float]) -> float:
  """The p of seconds ~ counts^p, by least squares of the logarithms."""
  return common.rounded(float(np.polyfit(np.log(counts), np.log(seconds), 1)[0]))


def run(options: Options) -> dict[str, Any]:
  """Measures both parts."""
  line: dict[str, Any] = {
    'benchmark': 'mining',
    **common.machine(),
    'faiss': common.version('faiss-cpu'),
    'pymetis': common.version('pymetis'),
    **{k: v for k, v in dataclasses.asdict(options).items() if k not in ('pairs', 'strategies')},
  }
  if options.queries:
    line['search'] = search(options)
  if options.pairs:
    line['clusters'] = clusters(options)
  return line


if __name__ == '__main__':
  common.command(Options, run, __doc__.splitlines()[0])
