"""Mining: from pairs and their embeddings to clusters, by any of the strategies."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from align_jax.errors import UserError, did_you_mean, require
from align_jax.mining.fill import clear, fill
from align_jax.mining.graph import even_out, metis_parts, mutual, need_metis, ranked_pairs
from align_jax.mining.hardness import Hardness, measure
from align_jax.mining.nearest import nearest, recall_of
from align_jax.mining.pairs import Pairs, select, without_bad
from align_jax.mining.ranked import Rules, ranked
from align_jax.mining.saha import saha
from align_jax.mining.saha_mutual import MutualConfig, saha_mutual

STRATEGIES = (
  'random',
  'task_random',
  'top_k',
  'skip',
  'margin',
  'percentage',
  'labels',
  'b3',
  'saha',
  'saha_mutual',
)
_SAMPLE = 1024  # queries that recall is measured on
_SPARE = 10  # ranks for each negative, where a rule may leave some out: as sentence-transformers


@dataclasses.dataclass(frozen=True)
class MiningConfig:
  """What the strategies are told besides k; each takes what concerns it.

  Attributes:
    mult: `saha`, `saha_mutual`: they look at the `2 * k * mult` nearest candidates.
    skip: `skip`, `b3`: so many of the first ranks are left out, for hidden matches.
    keep: `b3`: so many of those after them are hard.
    margin: `margin`: negatives are weaker than the positive by this.
    percentage: `percentage`: negatives are weaker than this share of the positive.
    different_labels: strategies that rank candidates leave out those of the pair's own label;
      `labels` always does.
    labelled_tasks: `saha`: tasks of classes, where another class is no hidden match; their
      clusters are made of the nearest owners.
    mutual: `saha_mutual`.
    per_task: negatives are of the pair's own task (not for `random`).
    recall: of the search: 0 is exact, see `nearest`.
    depth: nearest candidates that are looked at; 0: what the strategy needs.
    bad: what happens to what cannot be mined (embeddings that are not finite, repeated pairs,
      candidates without an owner, queries without a positive, clusters that cannot be filled):
      `error`, or `skip`, and it is counted.
  """

  mult: int = 3
  skip: int = 30
  keep: int = 100
  margin: float = 0.05
  percentage: float = 0.95
  different_labels: bool = False
  labelled_tasks: tuple[int, ...] = ()
  mutual: MutualConfig = dataclasses.field(default_factory=MutualConfig)
  per_task: bool = True
  recall: float = 0.0
  depth: int = 0
  bad: Literal['error', 'skip'] = 'error'

  def __post_init__(self) -> None:
    for name, least in (('mult', 1), ('skip', 0), ('keep', 1), ('depth', 0)):
      value = getattr(self, name)
      require(value >= least, f'config.{name}', f'{value} must be at least {least}')
    require(0 <= self.recall < 1, 'config.recall', f'{self.recall} must be 0 (exact), or below 1')


@dataclasses.dataclass(frozen=True)
class Mined:
  """What mining found.

  Attributes:
    strategy: by which.
    settings: it was told, with k and the seed.
    clusters: numbers of pairs, k + 1 different ones in each, no two of them known matches.
    counts: of what was looked at and left out, by reason; see `report`.
    hardness: of the clusters.
    recall: of the search, where it was approximate.
  """

  strategy: str
  settings: dict[str, Any]
  clusters: Int[np.ndarray, 'clusters size']
  counts: dict[str, int]
  hardness: Hardness
  recall: float | None = None


@dataclasses.dataclass(frozen=True)
class Found:
  """What a strategy found among the pairs of one task, for `explain`.

  Attributes:
    strategy, k, settings: by which, and what it was told.
    pairs, numbers: those of the task, and what `mine` was given them as.
    classes: whether it is a task of classes.
    labels: of the candidates, where the strategy went by them.
    values, pool: the nearest candidates of each query; None where nobody looked.
    clusters: numbers in `pairs`, -1 where a place is empty, before any place was filled.
    counts: see `Mined`.
    recall: of the search, where it was approximate.
  """

  strategy: str
  k: int
  settings: MiningConfig
  pairs: Pairs
  numbers: Int[np.ndarray, 'n']
  classes: bool
  labels: Int[np.ndarray, 'm'] | None
  values: Float[np.ndarray, 'q depth'] | None
  pool: Int[np.ndarray, 'q depth'] | None
  clusters: Int[np.ndarray, 'clusters size']
  counts: dict[str, int]
  recall: float | None


def mine(
  pairs: Pairs,
  k: int,
  strategy: str = 'saha_mutual',
  settings: MiningConfig = MiningConfig(),
  mesh: Mesh | None = None,
  labels: Int[np.ndarray, 'n'] | None = None,
  tasks: Int[np.ndarray, 'n'] | None = None,
  ids: Sequence[str] | None = None,
  seed: int = 0,
  seen: Callable[[int], None] = lambda count: None,
  found: Callable[[Found], None] = lambda found: None,
) -> Mined:
  """Finds clusters of k + 1 pairs that are hard for each other.

  `random`, `task_random` cut a random order of all pairs, or of each task's, into clusters. `b3`
  and `saha_mutual` cut each task's pairs into clusters: every pair is in one. `saha` does not reach
  all; the others make a cluster for every pair, its own hard negatives. Places that stay empty are
  filled by lot from the same task.

  Args:
    pairs: what is mined.
    k: hard negatives of a pair.
    strategy: by which.
    settings: for it.
    mesh: of the devices that search; None: the default device.
    labels: of each pair; those of a candidate must be equal.
    tasks: of each pair; None: all are of one.
    ids: names of the pairs: the same pairs in another order make the same clusters. `saha` goes by
      the order of the data, as published. None: numbers are names.
    seed: of what is drawn by lot.
    seen: is told of so many more queries that have been searched for.
    found: is given what was found of each task, if somebody asks why (see `explain`).

  Raises:
    UserError: an unknown strategy; labels, tasks or ids that do not fit; fewer pairs than a cluster
      needs; what `MiningConfig.bad` says.
  """
  check_strategy(strategy, k, settings)
  for name, given in (('labels', labels), ('tasks', tasks), ('ids', ids)):
    if given is not None and len(given) != len(pairs):
      raise UserError(f'mining: {len(given)} {name} of {len(pairs)} pairs')
  kept, counts = np.arange(len(pairs)), {'pairs': len(pairs)}
  if settings.bad == 'skip':
    _, kept, bad = without_bad(pairs)
    counts |= bad
  else:
    pairs.check()
  if len(kept) <= k:
    raise UserError(f'mining: k={k} needs clusters of {k + 1} pairs, there are {len(kept)}')
  if ids is not None and strategy != 'saha':
    kept = kept[_order(np.asarray(ids)[kept])]
  whole = select(pairs, kept)
  task = np.zeros(len(kept), np.int64) if tasks is None else tasks[kept]
  label = None if labels is None else labels[kept]
  work = _Work(k, strategy, settings, mesh, seed, seen)
  made: list[np.ndarray] = []
  recalls: list[tuple[float, int]] = []
  apart = settings.per_task and strategy != 'random'
  for which in np.unique(task).tolist() if apart else [None]:
    part = np.arange(len(kept)) if which is None else np.flatnonzero(task == which)
    own = None if label is None else label[part]
    classes = which in settings.labelled_tasks
    some_found = work.run(select(whole, part), kept[part], own, classes, len(made))
    found(some_found)
    clusters, some = some_found.clusters, some_found.counts
    made.append(np.where(clusters >= 0, part[clusters], -1))
    counts |= {key: counts.get(key, 0) + value for key, value in some.items()}
    recalls += [(some_found.recall, len(part))] if some_found.recall is not None else []
  clusters, some = clear(np.concatenate(made).astype(np.int32), whole)
  counts |= some
  avoid = label if strategy == 'labels' or settings.different_labels else None
  clusters, some = fill(clusters, whole, task, avoid, seed, drop=settings.bad == 'skip')
  counts |= some
  return Mined(
    strategy,
    {'k': k, 'seed': seed, **dataclasses.asdict(settings)},
    kept.astype(np.int32)[clusters],
    counts,
    measure(clusters, whole),
    _mean(recalls) if recalls else None,
  )


def check_strategy(strategy: str, k: int, settings: MiningConfig) -> None:
  """Says what is wrong before anything is computed.

  Raises:
    UserError: an unknown strategy, less than one negative, a rule that cannot be, or no METIS.
  """
  if strategy not in STRATEGIES:
    raise UserError(f'mining: no strategy {strategy!r}{did_you_mean(strategy, STRATEGIES)}')
  require(k >= 1, 'mining', f'k={k} hard negatives; at least 1')
  rules_of(strategy, settings)
  if settings.labelled_tasks:
    check_labelled_tasks(strategy, settings)
  if strategy == 'b3':
    need_metis()


def check_labelled_tasks(strategy: str, settings: MiningConfig) -> None:
  """Refuses tasks of classes where nobody would ask for them.

  Raises:
    UserError: another strategy than `saha`, or tasks that are not told apart.
  """
  name = 'config.labelled_tasks'
  require(strategy == 'saha', name, f'is for the strategy saha, not for {strategy}; leave it out')
  require(settings.per_task, name, 'needs tasks that are mined apart (per_task)')


def _mean(recalls: Sequence[tuple[float, int]]) -> float:
  """Of tasks, by their size."""
  return sum(recall * size for recall, size in recalls) / sum(size for _, size in recalls)


def _order(ids: np.ndarray) -> Int[np.ndarray, 'n']:
  order = np.argsort(ids, kind='stable')
  again = np.flatnonzero(ids[order][1:] == ids[order][:-1])
  if len(again):
    raise UserError(f'mining: two pairs have the id {str(ids[order][again[0]])!r}')
  return order


@dataclasses.dataclass(frozen=True)
class _Work:
  """Mines one task after another."""

  k: int
  strategy: str
  settings: MiningConfig
  mesh: Mesh | None
  seed: int
  seen: Callable[[int], None]

  def run(
    self,
    pairs: Pairs,
    numbers: Int[np.ndarray, 'n'],
    labels: Int[np.ndarray, 'n'] | None,
    classes: bool,
    number: int,
  ) -> Found:
    size, config = self.k + 1, self.settings
    values = pool = of = recall = None
    counts: dict[str, int] = {}
    if self.strategy in ('random', 'task_random'):
      order = np.random.default_rng([self.seed, number]).permutation(len(pairs))
      room = np.full(-(-len(pairs) // size) * size - len(pairs), -1)
      clusters = np.concatenate([order, room]).reshape(-1, size)
    else:
      values, pool, recall = self._search(pairs)
      if self.strategy == 'saha':
        clusters, counts = saha(pairs, pool, self.k, config.mult, labelled=classes)
      elif self.strategy == 'saha_mutual':
        clusters, counts = saha_mutual(pairs, values, pool, self.k, config.mutual)
      elif self.strategy == 'b3':
        edges = mutual(len(pairs), *ranked_pairs(pairs, values, pool, config.skip, config.keep))
        clusters, moved = even_out(metis_parts(len(pairs), edges, size), edges, size)
        counts = {'edges': len(edges.left), 'moved': moved}
      else:
        rules = rules_of(self.strategy, config)
        if rules.different_labels:
          if labels is None:
            raise UserError(f'mining: strategy {self.strategy} needs labels')
          of = _candidate_labels(pairs, labels)
        clusters, counts = ranked(pairs, values, pool, self.k, rules, of)
    return Found(
      self.strategy,
      self.k,
      config,
      pairs,
      numbers,
      classes,
      of,
      values,
      pool,
      clusters,
      counts,
      recall,
    )

  def _depth(self, pairs: Pairs) -> int:
    """How many nearest candidates the strategy looks at."""
    config, own = self.settings, pairs.most[0]
    if config.depth:
      return config.depth
    if self.strategy in ('saha', 'saha_mutual'):
      return 2 * self.k * config.mult
    if self.strategy == 'b3':
      return own + config.skip + config.keep
    rules = rules_of(self.strategy, config)
    spare = rules.different_labels or rules.margin is not None or rules.percentage is not None
    return own + rules.skip + self.k * (max(own, _SPARE) if spare else own)

  def _search(
    self, pairs: Pairs
  ) -> tuple[Float[np.ndarray, 'q depth'], Int[np.ndarray, 'q depth'], float | None]:
    depth = min(self._depth(pairs), len(pairs.candidates))
    recall = self.settings.recall
    both = pairs.queries, pairs.candidates
    values, pool = nearest(*both, depth, mesh=self.mesh, recall=recall, seen=self.seen)
    if not recall:
      return values, pool, None
    # evenly spread, so that it is the same every time
    some = np.unique(np.linspace(0, len(pool) - 1, min(_SAMPLE, len(pool))).astype(np.int64))
    _, exact = nearest(pairs.queries[some], pairs.candidates, depth, mesh=self.mesh)
    return values, pool, recall_of(pool[some], exact)


def rules_of(strategy: str, config: MiningConfig) -> Rules:
  """Returns the rules of a strategy that ranks candidates."""
  return Rules(
    skip=config.skip if strategy == 'skip' else 0,
    margin=config.margin if strategy == 'margin' else None,
    percentage=config.percentage if strategy == 'percentage' else None,
    different_labels=config.different_labels or strategy == 'labels',
  )


def _candidate_labels(pairs: Pairs, labels: Int[np.ndarray, 'n']) -> Int[np.ndarray, 'm']:
  """The labels of candidates, from those of their pairs."""
  out = np.zeros(len(pairs.candidates), np.int32)
  out[pairs.candidate] = labels
  wrong = np.flatnonzero(out[pairs.candidate] != labels)
  if len(wrong):
    one, other = labels[wrong[0]], out[pairs.candidate[wrong[0]]]
    raise UserError(
      f'mining: {len(wrong)} pairs have another label than an other pair of their candidate, such '
      f'as {one} and {other}; pairs of one candidate have one label'
    )
  return out
