"""Ranked negatives are those of a plain loop, and those of sentence-transformers."""

import logging  # noqa: F401  before sentence_transformers, whose own module has this name

import numpy as np
import pytest

from align_jax.errors import UserError
from align_jax.mining.nearest import nearest
from align_jax.mining.pairs import Pairs
from align_jax.mining.ranked import Rules, own_candidates, ranked
from tests.mining.toy import some_pairs, unit

RULES = {
  'top_k': Rules(),
  'skip': Rules(skip=3),
  'margin': Rules(margin=0.2),
  'percentage': Rules(percentage=0.95),
  'labels': Rules(different_labels=True),
  'all': Rules(skip=1, margin=0.05, percentage=0.8, different_labels=True),
}


def plain(pairs, values, pool, k, rules, labels):
  """The negatives of every pair, as (owner, candidate), one at a time."""
  own = {}
  for q, c in zip(pairs.query.tolist(), pairs.candidate.tolist(), strict=True):
    own.setdefault(q, set()).add(c)
  owners = {}
  for q, candidates in sorted(own.items()):
    for c in candidates:
      owners.setdefault(c, []).append(q)
  x, y = pairs.queries.astype(np.float64), pairs.candidates.astype(np.float64)
  out = []
  for q, c in zip(pairs.query.tolist(), pairs.candidate.tolist(), strict=True):
    positive = min(x[q] @ y[other] for other in own[q])
    found, skipped = [], 0
    for value, other in zip(values[q].tolist(), pool[q].tolist(), strict=True):
      if other < 0 or other in own[q]:
        continue
      if rules.margin is not None and value > np.float32(positive - rules.margin):
        continue
      if rules.percentage is not None and value > np.float32(
        positive - abs(positive) * (1 - rules.percentage)
      ):
        continue
      if rules.different_labels and labels[other] == labels[c]:
        continue
      if skipped < rules.skip:
        skipped += 1
        continue
      owner = max(owners[other], key=lambda o: (x[q] @ x[o], -o))
      if owner not in [o for o, _ in found]:
        found.append((owner, other))
    out.append(found[:k])
  return out


@pytest.mark.parametrize('whole', [True, False])
@pytest.mark.parametrize('name', RULES)
@pytest.mark.parametrize(
  ('queries', 'candidates', 'count', 'k', 'depth'),
  [
    (40, 40, 40, 3, 12),
    (30, 6, 50, 2, 6),  # many owners
    (8, 30, 50, 4, 30),  # queries of several positives
    (9, 6, 14, 7, 6),  # a pool of all candidates, fewer than k
  ],
)
def test_negatives_are_those_of_a_plain_loop(queries, candidates, count, k, depth, name, whole):
  rules = RULES[name]
  for seed in range(3):
    rng = np.random.default_rng(seed)
    pairs = some_pairs(rng, queries, candidates, count, whole=whole)
    labels = rng.integers(0, 3, candidates).astype(np.int32)
    values, pool = nearest(pairs.queries, pairs.candidates, depth)
    found, counts = ranked(pairs, values, pool, k, rules, labels)
    np.testing.assert_array_equal(found[:, 0], np.arange(count))
    wanted = plain(pairs, values, pool, k, rules, labels)
    for row, negatives in zip(found[:, 1:], wanted, strict=True):
      row = row[row >= 0]
      assert list(zip(pairs.query[row], pairs.candidate[row], strict=True)) == negatives
    assert counts['own'] > 0
    assert counts['label'] == 0 or rules.different_labels


def test_it_counts_what_ranks_before_the_last_one_taken():
  number = np.arange(4, dtype=np.int32)
  x = unit(np.array([[1, 0], [0, 1], [0, -1], [-1, 0]], np.float32))
  y = unit(np.array([[1, 0.3], [1, 0], [1, -0.4], [1, 0.6]], np.float32))
  pairs = Pairs(x, y, number, number)
  values, pool = nearest(x, y, 4)  # of query 0: 1, its own 0, 2, 3
  found, counts = ranked(pairs, values, pool, 1, Rules(percentage=0.99))
  assert found[0].tolist() == [0, 2] and counts['percentage'] >= 1
  assert ranked(pairs, values, pool, 3, Rules())[0][0].tolist() == [0, 1, 2, 3]
  _, counts = ranked(pairs, values, pool, 1, Rules(skip=1))
  assert counts['skipped'] == 4


def test_own_candidates_of_each_query():
  query, candidate = np.array([[1, 0, 1, 1], [2, 0, 0, 1]], np.int32)
  pairs = Pairs(np.zeros((2, 1)), np.zeros((3, 1)), query, candidate)
  assert own_candidates(pairs).tolist() == [[0, -1, -1], [2, 0, 1]]


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: Rules(skip=-1), 'config.skip'),
    (lambda: Rules(percentage=0.0), 'config.percentage'),
  ],
)
def test_rules_that_cannot_be(make, message):
  with pytest.raises(UserError, match=message):
    make()


class Embedder:
  """What `mine_hard_negatives` asks of a model: embeddings of texts that are numbers."""

  device = 'cpu'

  def __init__(self, queries, candidates):
    self.vectors = {'q': queries, 'c': candidates}

  def encode_query(self, texts, **_):
    return np.stack([self.vectors[t[0]][int(t[1:])] for t in texts])

  encode_document = encode_query

  def similarity(self, x, y):
    import torch

    return torch.as_tensor(x) @ torch.as_tensor(y).T

  def similarity_pairwise(self, x, y):
    import torch

    return (torch.as_tensor(x) * torch.as_tensor(y)).sum(dim=1)


@pytest.mark.parametrize(
  ('rules', 'theirs'),
  [
    (Rules(), {}),
    (Rules(skip=4), {'range_min': 4}),
    (Rules(margin=0.1), {'absolute_margin': 0.1}),
    (Rules(percentage=0.95), {'relative_margin': 0.05}),
    (
      Rules(skip=2, margin=0.02, percentage=0.9),
      {'range_min': 2, 'absolute_margin': 0.02, 'relative_margin': 0.1},
    ),
  ],
)
def test_negatives_are_those_of_sentence_transformers(rules, theirs):
  pytest.importorskip('sentence_transformers')
  datasets = pytest.importorskip('datasets')
  from sentence_transformers.util import mine_hard_negatives

  rng = np.random.default_rng(5)
  # one owner each: a candidate is a negative or not, whoever owns it
  query = np.concatenate([np.arange(30), np.arange(10)]).astype(np.int32)
  candidate = np.arange(40, dtype=np.int32)
  middle = rng.standard_normal((30, 6))
  queries = unit(middle + 0.3 * rng.standard_normal((30, 6)))
  candidates = unit(middle[query] + 0.5 * rng.standard_normal((40, 6)))
  pairs, k = Pairs(queries, candidates, query, candidate), 3
  rows = {'query': [f'q{i}' for i in query], 'positive': [f'c{i}' for i in candidate]}
  # the window is all candidates but the positives that no query may take
  mined = mine_hard_negatives(
    datasets.Dataset.from_dict(rows),
    Embedder(queries, candidates),
    num_negatives=k,
    range_max=38,
    output_format='labeled-pair',
    verbose=False,
    **theirs,
  )
  wanted = {i: [] for i in range(30)}
  for row in mined:
    if row['label'] == 0:
      wanted[int(row['query'][1:])].append(int(row['positive'][1:]))
  values, pool = nearest(queries, candidates, 40)
  found, _ = ranked(pairs, values, pool, 2 * k, rules)
  for number, row in enumerate(found):
    negatives = pairs.candidate[row[1:][row[1:] >= 0]].tolist()
    # an owner that is there already comes with one candidate only
    expected, seen = [], set()
    for c in wanted[int(query[number])]:
      if query[c] not in seen:
        expected.append(c)
      seen.add(query[c])
    assert negatives[: len(expected)] == expected
