"""Similarity of generated to real embeddings, category by category, beside FAISS.

  python -m benchmarks.similarity [--generated=100000] [--real=20000] [--dim=256] [--nearest=10]

For every generated embedding the mean of its `nearest` largest cosines to the real ones of its
category, and the mean of all. Both sides are given the same unsorted arrays and category numbers:

- `nearest`: FAISS searches an `IndexFlatIP` of each category; with one category (a broad class) all
  cosines are computed.
- `mean`: FAISS searches an `IndexFlatIP` that holds the mean of the category's real embeddings,
  which is the quickest it can do.

Both sides use all cores and agree to float32's rounding. `rss_bytes` is what the process grew by
while the largest case ran.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from align_jax.synth.filtration.similarity import mean_similarity, nearest_similarity
from benchmarks import common
from benchmarks.contrastive_loss import timed


@dataclasses.dataclass(frozen=True)
class Options:
  """What is measured.

  Attributes:
    generated, real, dim: sizes.
    nearest: k.
    categories: cases, by how many categories there are.
    rounds: of each case, in turns.
  """

  generated: int = 100_000
  real: int = 20_000
  dim: int = 256
  nearest: int = 10
  categories: str = '1,100,1000'
  rounds: int = 5


@dataclasses.dataclass(frozen=True)
class Data:
  """Unit vectors and category numbers of both kinds."""

  x: np.ndarray
  category: np.ndarray
  real: np.ndarray
  real_category: np.ndarray


def make_data(options: Options, categories: int) -> Data:
  """Random vectors about a centre of each category, in random order."""
  rng = np.random.default_rng(0)
  centres = rng.standard_normal((categories, options.dim), np.float32)

  def some(count: int) -> tuple[np.ndarray, np.ndarray]:
    of = rng.integers(0, categories, count).astype(np.int32)
    x = centres[of] + rng.standard_normal((count, options.dim), np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True), of

  return Data(*some(options.generated), *some(options.real))


def peer(data: Data, search: Callable[[Any, np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
  """Runs FAISS on one category after another.

  Args:
    search: is given an empty index, the generated and the real embeddings of a category.
  """
  import faiss

  out = np.full(len(data.x), np.nan, np.float32)
  order = np.argsort(data.category, kind='stable')
  real_order = np.argsort(data.real_category, kind='stable')
  names = np.arange(1 + int(data.category.max()))
  tops = np.searchsorted(data.category[order], names)
  lefts = np.searchsorted(data.real_category[real_order], names)
  for rows, real in zip(np.split(order, tops[1:]), np.split(real_order, lefts[1:]), strict=True):
    if len(rows) and len(real):
      index = faiss.IndexFlatIP(data.x.shape[1])
      out[rows] = search(index, data.x[rows], data.real[real])
  return out


def peer_nearest(data: Data, k: int) -> np.ndarray:
  """Mean of the k largest cosines, by FAISS."""

  def search(index: Any, x: np.ndarray, real: np.ndarray) -> np.ndarray:
    index.add(real)
    return index.search(x, min(k, len(real)))[0].mean(axis=1)

  return peer(data, search)


def peer_mean(data: Data) -> np.ndarray:
  """Mean of all cosines, by FAISS."""

  def search(index: Any, x: np.ndarray, real: np.ndarray) -> np.ndarray:
    index.add(real.mean(axis=0, dtype=np.float64)[None].astype(np.float32))
    return index.search(x, 1)[0][:, 0]

  return peer(data, search)


def sides(data: Data, k: int) -> dict[str, dict[str, Callable[[], np.ndarray]]]:
  """What is run, by figure and side."""
  arrays = data.x, data.category, data.real, data.real_category
  return {
    'nearest': {
      'ours': lambda: nearest_similarity(*arrays, k),
      'peer': lambda: peer_nearest(data, k),
    },
    'mean': {'ours': lambda: mean_similarity(*arrays), 'peer': lambda: peer_mean(data)},
  }


def seconds_of(work: Callable[[], Any]) -> float:
  start = time.perf_counter()
  work()
  return time.perf_counter() - start


def measure(options: Options, categories: int) -> dict[str, Any]:
  """Measures both figures with so many categories."""
  out: dict[str, Any] = {}
  for name, both in sides(make_data(options, categories), options.nearest).items():
    common.say(f'{name}, {categories} categories')
    first = {side: work() for side, work in both.items()}  # compiles
    apart = float(np.nanmax(np.abs(first['ours'] - first['peer'])))
    taken = common.in_turns(
      {side: lambda work=work: seconds_of(work) for side, work in both.items()}, options.rounds
    )
    out[name] = {
      'seconds': {side: common.spread(values) for side, values in taken.items()},
      'ratio': common.ratios(taken, target=1.0),
      'largest_difference': common.rounded(apart),
    }
  return out


def memory(options: Options) -> dict[str, Any]:
  """By how much the process grows while the cosines of one broad category are gone over."""
  both = sides(make_data(options, 1), options.nearest)['nearest']
  few = dataclasses.replace(options, generated=8192)
  sides(make_data(few, 1), options.nearest)['nearest']['ours']()  # compiles
  return {
    'rss_bytes': {
      side: timed(lambda work=work: float(work()[0]), 1)[2] for side, work in both.items()
    },
    'all_cosines_bytes': 4 * options.generated * options.real,
  }


def run(options: Options) -> dict[str, Any]:
  """Measures every case."""
  common.need('faiss-cpu')
  import faiss

  faiss.omp_set_num_threads(common.cores())
  needed = memory(options)
  common.keep_memory()
  return {
    'benchmark': 'similarity',
    **common.machine(),
    'faiss': common.version('faiss-cpu'),
    **{k: v for k, v in dataclasses.asdict(options).items() if k != 'categories'},
    **needed,
    'by_categories': {
      count: measure(options, int(count)) for count in options.categories.split(',')
    },
  }


if __name__ == '__main__':
  common.command(Options, run, __doc__.splitlines()[0])
