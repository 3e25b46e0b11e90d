"""Pairs of a study: embedded once, kept, and mined by every strategy."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from jaxtyping import Int
from safetensors import SafetensorError, safe_open

from align_jax.data.fingerprint import fingerprint
from align_jax.data.pair_sources import open_pairs
from align_jax.errors import UserError
from align_jax.files import write_file
from align_jax.mining.hardness import false_negative_rate
from align_jax.mining.pairs import Pairs
from align_jax.mining.plan import make_plan, save_plan
from align_jax.mining.strategy import MiningConfig
from align_jax.mining_run import EmbeddedPairs, mine_pairs

_SIDES = ('queries', 'candidates', 'query', 'candidate')
_BY_PAIR = ('tasks', 'labels')
_TOLD = ('ids', 'task_names', 'unreadable', 'skipped', 'stand_ins')
_ROWS = 1024  # clusters that are looked at together


def save_embedded(path: Path, embedded: EmbeddedPairs, asked: Mapping[str, Any]) -> None:
  """Writes embedded pairs and what they were made from, aside first."""
  tensors = {name: getattr(embedded.pairs, name) for name in _SIDES}
  tensors |= {name: getattr(embedded, name) for name in _BY_PAIR}
  # a part of a wider array keeps its strides, which the file has no place for
  tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
  told = {'asked': asked, **{name: getattr(embedded, name) for name in _TOLD}}
  metadata = {name: json.dumps(value) for name, value in told.items()}
  write_file(path, safetensors.numpy.save(tensors, metadata))


def load_embedded(path: Path, asked: Mapping[str, Any]) -> EmbeddedPairs | None:
  """Reads what `save_embedded` wrote; None where there is nothing, or something else was asked.

  Raises:
    UserError: a damaged file.
  """
  if not path.exists():
    return None
  try:
    with safe_open(path, framework='np') as file:
      told = {name: json.loads(text) for name, text in file.metadata().items()}
      if told['asked'] != json.loads(json.dumps(asked)):
        return None
      found = {name: file.get_tensor(name) for name in (*_SIDES, *_BY_PAIR)}
  except SafetensorError as error:
    raise UserError(f'{path}: damaged ({error}); delete it, it will be made again') from error
  return EmbeddedPairs(
    Pairs(**{name: found[name] for name in _SIDES}),
    ids=tuple(told['ids']),
    task_names=tuple(told['task_names']),
    tasks=found['tasks'],
    labels=found['labels'],
    unreadable=told['unreadable'],
    skipped=told['skipped'],
    stand_ins=told['stand_ins'],
  )


def make_batch_plan(
  embedded: EmbeddedPairs,
  spec: str,
  strategy: str,
  k: int,
  settings: MiningConfig,
  seed: int,
  path: Path,
  classes: Sequence[str] = (),
) -> dict[str, float]:
  """Mines a batch plan, writes it, and says what it is like.

  Args:
    embedded: the pairs.
    spec: of their source.
    strategy, k, settings, seed: see `mining.strategy.mine`.
    path: of the plan.
    classes: names of tasks of classes.

  Returns: `clusters`; `members`, the share of pairs that are in one; `positive_cosine`,
    `negative_cosine`; `above`, the share of negatives at least as near as the positive; and, where
    it is known what matches, `false_negatives`, the share of negatives that truly do, and
    `true_negative_cosine` of the others.
  """
  mined = mine_pairs(embedded, k, strategy, settings, labelled_tasks=classes, seed=seed)
  save_plan(path, make_plan(mined, embedded.ids, spec, fingerprint(open_pairs(spec))))
  hardness = mined.hardness
  out = {
    'clusters': float(len(mined.clusters)),
    'members': hardness.members / len(embedded.pairs),
    'positive_cosine': hardness.positive.mean,
    'negative_cosine': hardness.negative.mean,
    'above': hardness.above,
  }
  if (embedded.labels >= 0).all():
    out['false_negatives'] = false_negative_rate(mined.clusters, embedded.labels)
    out['true_negative_cosine'] = true_negative_cosine(mined.clusters, embedded)
  return out


def true_negative_cosine(
  clusters: Int[np.ndarray, 'clusters size'], embedded: EmbeddedPairs
) -> float:
  """The mean cosine of a member's query with another's candidate that does not match it."""
  pairs = embedded.pairs
  total, count = 0.0, 0
  for start in range(0, len(clusters), _ROWS):
    rows = clusters[start : start + _ROWS]
    label = embedded.labels[rows]
    true = label[:, :, None] != label[:, None, :]
    products = pairs.queries[pairs.query[rows]] @ pairs.candidates[pairs.candidate[rows]].swapaxes(
      1, 2
    )
    total += float(products[true].sum(dtype=np.float64))
    count += int(true.sum())
  return total / max(1, count)
