"""MMEB: is the right candidate the nearest one? 36 tasks, four meta-tasks, two averages.

Source: Jiang et al. 2024, arXiv 2410.05160 (VLM2Vec), section 2 and table 2.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool

from align_jax.data.pair_record import PairSource, content_ids
from align_jax.data.pair_sources import emoji_tasks, open_pairs
from align_jax.data.pair_sources.mmeb import find_subsets
from align_jax.data.pair_sources.mmeb_names import (
  META_TASKS,
  NAMES,
  OUT_OF_DISTRIBUTION,
  canonical_name,
)
from align_jax.data.sources.spec import with_options
from align_jax.errors import UserError, did_you_mean
from align_jax.evaluation.contents import ContentVectors, Embed
from align_jax.evaluation.retrieval import TIE

_BATCH = 64
_BLOCK = 32  # queries compared at once


@dataclasses.dataclass(frozen=True)
class Suite:
  """Tasks that are reported together.

  Attributes:
    name: for the table.
    meta_tasks: the tasks of each meta-task.
    out_of_distribution: the tasks that training has not seen the like of.
  """

  name: str
  meta_tasks: Mapping[str, tuple[str, ...]]
  out_of_distribution: frozenset[str]

  @property
  def tasks(self) -> tuple[str, ...]:
    return tuple(task for tasks in self.meta_tasks.values() for task in tasks)


MMEB = Suite('MMEB', META_TASKS, OUT_OF_DISTRIBUTION)
# each emoji task twice: scenes like those of training, and scenes with a held-out composition
EMOJI_MMEB = Suite(
  'Emoji-MMEB',
  {
    meta: tuple(f'{task}/{split}' for split in emoji_tasks.SPLITS[1:] for task in tasks)
    for meta, tasks in emoji_tasks.META_TASKS.items()
  },
  frozenset(f'{task}/compositions' for task in emoji_tasks.TASKS),
)


def open_mmeb(folder: str, images: str = '', missing: str = 'error') -> dict[str, PairSource]:
  """Opens every data set of MMEB that a folder holds, in the published order.

  Args:
    folder: as MMEB-eval is published, a folder for each data set.
    images: the folder that image paths start from; '' for `folder`.
    missing: `error` or `skip`, for images that are not there.

  Raises:
    UserError: none of the 36 is there, or one cannot be read.
  """
  there = {canonical_name(name): name for name in find_subsets(folder)}
  options = {'images': images or None, 'missing': missing}
  out = {
    name: open_pairs(with_options(f'mmeb:{folder}', subset=there[name], **options))
    for name in NAMES
    if name in there
  }
  if not out:
    raise UserError(f'{folder}: none of the data sets of MMEB, such as {NAMES[0]}; check the path')
  return out


def open_emoji_mmeb(
  tasks: Sequence[str] = emoji_tasks.TASKS, **options: object
) -> dict[str, PairSource]:
  """Opens emoji tasks, each with its test scenes and with held-out compositions.

  Args:
    options: of `emojitasks:`, all but `split`.
  """
  return {
    f'{task}/{split}': open_pairs(with_options(f'emojitasks:{task}', split=split, **options))
    for split in emoji_tasks.SPLITS[1:]
    for task in tasks
  }


def evaluate(
  sources: Mapping[str, PairSource],
  embed: Embed,
  suite: Suite = MMEB,
  batch_size: int = _BATCH,
) -> dict[str, float]:
  """Scores tasks, and averages as `summarise` does.

  Args:
    sources: evaluation data by task; a suite's tasks that are not there are left out.
    embed: of the model.
    batch_size: contents embedded at a time.

  Returns: `hit1.TASK` of every task, shares in [0, 1], and what `summarise` gives.

  Raises:
    UserError: a task that the suite does not have, data without candidates, or embeddings that are
      not finite.
  """
  for task in sources:
    if task not in suite.tasks:
      raise UserError(f"{suite.name}: no task '{task}'{did_you_mean(task, suite.tasks)}")
  hits = {t: float(hit_at_1(sources[t], embed, batch_size).mean()) for t in sources}
  return {f'hit1.{t}': hits[t] for t in suite.tasks if t in hits} | summarise(hits, suite)


def hit_at_1(
  source: PairSource, embed: Embed, batch_size: int = _BATCH
) -> Bool[np.ndarray, 'queries']:
  """Returns for every query whether its positive is the nearest of its candidates.

  A candidate that is the same content as the positive counts as the positive. Another one that is
  as near (within `retrieval.TIE`) counts against the model, where the published script takes the
  first of equals, which is the positive: constant embeddings score nothing here and everything
  there; without such ties the two agree.

  Raises:
    UserError: a query without candidates, or embeddings that are not finite.
  """
  queries = ContentVectors(embed, 'query', batch_size, source.spec)
  candidates = ContentVectors(embed, 'candidate', batch_size, source.spec)
  rows: list[tuple[int, np.ndarray]] = []
  for index in range(len(source)):
    record = source[index]
    names = content_ids(record.candidates)
    if len(set(names)) < 2:
      raise UserError(
        f'{source.spec}: pair {record.id} has {len(set(names))} distinct candidates; open the '
        'split that is for evaluation'
      )
    query = queries.row(record.query.id, record.instruction, (record.query,))
    numbers = [
      candidates.row(name, record.candidate_instruction, record.candidates, place)
      for place, name in enumerate(names)
    ]
    rows.append((query, np.asarray(numbers, np.int32)))
  if not rows:
    raise UserError(f'{source.spec}: no queries to evaluate; check the spec and its split')
  query_vectors, candidate_vectors = queries.vectors(), candidates.vectors()
  out = np.zeros(len(rows), bool)
  for start in range(0, len(rows), _BLOCK):
    block = rows[start : start + _BLOCK]
    # what the queries of a block choose from is mostly the same: one product for all of them
    distinct = np.unique(np.concatenate([among for _, among in block]))
    near = query_vectors[[query for query, _ in block]] @ candidate_vectors[distinct].T
    for place, (_, among) in enumerate(block):
      mine = near[place, np.searchsorted(distinct, among)]
      wrong = mine[among != among[0]]
      out[start + place] = bool((wrong < mine[0] - TIE).all())
  return out


def summarise(hits: Mapping[str, float], suite: Suite = MMEB) -> dict[str, float]:
  """Averages tasks as published: every average is over tasks, whatever their number of queries.

  Args:
    hits: hit@1 by task.

  Returns: the mean of each meta-task under its name, `in_distribution`, `out_of_distribution`,
    `average` over all tasks, and `tasks`, how many there were; a mean over no task is left out.
  """
  there = [task for task in suite.tasks if task in hits]
  groups = {meta: [t for t in tasks if t in hits] for meta, tasks in suite.meta_tasks.items()}
  groups['in_distribution'] = [t for t in there if t not in suite.out_of_distribution]
  groups['out_of_distribution'] = [t for t in there if t in suite.out_of_distribution]
  groups['average'] = there
  means = {k: float(np.mean([hits[t] for t in tasks])) for k, tasks in groups.items() if tasks}
  return {**means, 'tasks': float(len(there))}


def table(scores: Mapping[str, float], suite: Suite = MMEB) -> str:
  """Returns what `evaluate` gave as a Markdown table, in percent, averages last."""
  lines = [f'| {suite.name} | hit@1 (%) |', '| --- | ---: |']
  for meta, tasks in suite.meta_tasks.items():
    for task in tasks:
      if f'hit1.{task}' in scores:
        star = '' if task in suite.out_of_distribution else ' (in distribution)'
        lines.append(f'| {meta}: {task}{star} | {100 * scores[f"hit1.{task}"]:.1f} |')
  for name in (*suite.meta_tasks, 'in_distribution', 'out_of_distribution'):
    if name in scores:
      lines.append(f'| **{name.replace("_", " ")}** | {100 * scores[name]:.1f} |')
  of = f'{int(scores["tasks"])} of {len(suite.tasks)} tasks'
  if 'average' in scores:
    lines.append(f'| **average, {of}** | {100 * scores["average"]:.1f} |')
  return '\n'.join(lines) + '\n'
