"""Every strategy, through the one function that a user calls."""

import jax
import numpy as np
import pytest

from align_jax.errors import UserError
from align_jax.mining.fill import clear, fill
from align_jax.mining.hardness import BINS, measure
from align_jax.mining.pairs import Pairs, select, without_bad
from align_jax.mining.report import text_report
from align_jax.mining.strategy import STRATEGIES, MiningConfig, mine
from align_jax.parallel.mesh import MeshConfig, make_mesh
from tests.mining.toy import Toy, make_toy, some_pairs

SMALL = MiningConfig(skip=2, keep=12, depth=20)
LOT = ('random', 'task_random')
CUTS = (*LOT, 'b3', 'saha_mutual')  # every pair is in one place


def plain_measure(clusters, pairs):
  """Products of all ordered pairs of members that are no known match."""
  known = set(zip(pairs.query.tolist(), pairs.candidate.tolist(), strict=True))
  out, matches = [], 0
  for row in clusters.tolist():
    for a in row:
      for b in row:
        if a >= 0 and b >= 0 and a != b:
          if (int(pairs.query[a]), int(pairs.candidate[b])) in known:
            matches += 1
          else:
            x, y = pairs.queries[pairs.query[a]], pairs.candidates[pairs.candidate[b]]
            out.append(
              (x @ y, pairs.queries[pairs.query[a]] @ pairs.candidates[pairs.candidate[a]])
            )
  return np.array(out), matches


@pytest.mark.parametrize('strategy', STRATEGIES)
@pytest.mark.parametrize(
  ('queries', 'candidates', 'count', 'k'),
  [
    (60, 60, 60, 3),
    (60, 20, 80, 3),  # several owners
    (20, 60, 80, 3),  # queries of several positives
    (30, 30, 30, 17),  # more than half of all there are
  ],
)
def test_clusters_are_whole(queries, candidates, count, k, strategy):
  rng = np.random.default_rng(0)
  pairs = some_pairs(rng, queries, candidates, count, whole=False)
  tasks = np.arange(count) * 2 // count if count == 80 else np.zeros(count, np.int64)
  labels = pairs.candidate % 25
  mined = mine(pairs, k, strategy, SMALL, labels=labels, tasks=tasks)
  clusters = mined.clusters
  assert clusters.shape[1] == k + 1 and 0 <= clusters.min() <= clusters.max() < count
  assert all(len(set(row)) == k + 1 for row in clusters.tolist())
  left, right = np.broadcast_arrays(clusters[:, :, None], clusters[:, None, :])
  assert not pairs.clash(left[left != right], right[left != right]).any()
  assert mined.hardness.known_matches == 0
  if strategy not in LOT and not mined.counts['filled_other_task'] and k == 3:
    assert (tasks[clusters] == tasks[clusters[:, :1]]).all()
  if strategy in CUTS and not mined.counts['known_match']:
    assert len(np.unique(clusters)) == count
    assert len(clusters) <= count // (k + 1) + 2
  if strategy == 'labels':
    same = labels[clusters[:, 1:]] == labels[clusters[:, :1]]
    assert not same.any()
  again = mine(pairs, k, strategy, SMALL, labels=labels, tasks=tasks)
  np.testing.assert_array_equal(again.clusters, clusters)
  text_report(mined)


@pytest.mark.parametrize('strategy', [s for s in STRATEGIES if s != 'saha'])
def test_the_order_of_the_data_does_not_matter(strategy):
  """The same ids, whatever numbers they have: with equal products as well."""
  rng = np.random.default_rng(1)
  given = some_pairs(rng, 40, 30, 60)
  floats = [
    rng.standard_normal(x.shape).astype(np.float32) for x in (given.queries, given.candidates)
  ]
  ids = np.array([f'{i:03}' for i in rng.permutation(60)])
  labels = given.candidate % 5
  for pairs in (given, Pairs(*floats, given.query, given.candidate)):
    found = []
    for order in (np.arange(60), rng.permutation(60)):
      # queries and candidates have other numbers as well
      some, names = select(pairs, order), ids[order]
      mined = mine(some, 3, strategy, SMALL, labels=labels[order], ids=names.tolist())
      found.append(names[mined.clusters].tolist())
    assert len(found[0]) >= 15
    assert found[0] == found[1]


@pytest.mark.parametrize('strategy', STRATEGIES)
def test_a_task_of_one_pair(strategy):
  pairs = some_pairs(np.random.default_rng(5), 21, 21, 21, whole=False)
  tasks = np.array([0] * 20 + [1])
  mined = mine(pairs, 3, strategy, SMALL, labels=pairs.candidate, tasks=tasks)
  if strategy == 'saha':  # it has nobody to be hard for
    assert mined.counts['left_over'] == 1
  else:
    assert 20 in mined.clusters
  assert mined.clusters.min() >= 0
  assert mined.counts['filled_other_task'] >= (0 if strategy in ('random', 'saha') else 3)


def test_devices_share_the_work():
  pairs, _ = make_toy(Toy(pairs=200, meanings=80), seed=0)
  alone = mine(pairs, 3, 'saha_mutual')
  shared = mine(pairs, 3, 'saha_mutual', mesh=make_mesh(MeshConfig(4, 2, 1)))
  np.testing.assert_array_equal(alone.clusters, shared.clusters)
  assert len(jax.devices()) == 8


def test_hardness_is_that_of_a_plain_loop():
  pairs = some_pairs(np.random.default_rng(2), 20, 12, 30, whole=False)
  pairs = Pairs(pairs.queries / 4, pairs.candidates / 4, pairs.query, pairs.candidate)
  clusters = np.random.default_rng(3).permutation(30).reshape(6, 5).astype(np.int32)
  clusters[2, 3:] = -1
  found = measure(clusters, pairs)
  wanted, matches = plain_measure(clusters, pairs)
  assert found.negative.count == len(wanted) and found.known_matches == matches > 0
  for spread, x in (
    (found.negative, wanted[:, 0]),
    (found.difference, wanted[:, 1] - wanted[:, 0]),
  ):
    exact = [x.mean(), x.std(), x.min(), x.max()]
    np.testing.assert_allclose(
      [spread.mean, spread.std, spread.least, spread.most], exact, atol=1e-5
    )
    quarters = np.quantile(x, (0.25, 0.5, 0.75), method='inverted_cdf')
    np.testing.assert_allclose(
      [spread.quarter, spread.median, spread.three_quarters], quarters, atol=6e-4
    )
  assert found.above == pytest.approx((wanted[:, 0] >= wanted[:, 1]).mean())
  bins = np.histogram(wanted[:, 0].clip(-1, 0.9999), BINS, (-1, 1))[0]
  np.testing.assert_allclose(found.histogram, bins, atol=1)
  assert found.members == 28 and found.positive.count == 28


def test_members_that_do_not_belong_are_taken_out():
  query, candidate = np.array([[0, 1, 2, 2, 3], [0, 1, 2, 1, 3]], np.int32)
  pairs = Pairs(np.eye(4), np.eye(4), query, candidate)
  rows = np.array([[0, 1, 0, 4], [1, 3, 4, -1], [2, 3, 0, 1], [0, 1, 2, 4]], np.int32)
  found, counts = clear(rows, pairs)
  # 3 is of the candidate of 1 and of the query of 2, whose candidate 1 its query owns as well
  assert found.tolist() == [[0, 1, -1, 4], [1, -1, 4, -1], [2, -1, 0, -1], [0, 1, -1, 4]]
  assert counts == {'twice': 1, 'known_match': 4}


def test_places_are_filled_from_the_same_task():
  number = np.arange(12, dtype=np.int32)
  pairs = Pairs(np.eye(12), np.eye(12), number, number)
  tasks = np.array([0] * 6 + [1] * 3 + [2] * 3)
  rows = np.array([[0, -1, -1, -1], [6, 7, -1, -1], [3, -1, 4, 5]], np.int32)
  found, counts = fill(rows, pairs, tasks, None, seed=0)
  assert (tasks[found[0]] == 0).all() and (tasks[found[2]] == 0).all()
  assert sorted(found[1][:3].tolist()) == [6, 7, 8] and found[1][3] not in (6, 7, 8)
  assert counts == {'filled': 6, 'filled_other_task': 1, 'too_few': 0}
  np.testing.assert_array_equal(fill(rows, pairs, tasks, None, seed=0)[0], found)
  labels = np.array([0, 0, 0, 1, 2, 3] + [4] * 6)
  found, _ = fill(rows[:1], pairs, tasks, labels, seed=0)
  assert sorted(labels[found[0]].tolist()) == [0, 1, 2, 3]


def test_what_is_left_out_is_not_counted_as_filled():
  # The second cluster takes a stranger, and then there is nobody: 4 has its label, 5 its query.
  query, candidate = np.array([[0, 1, 2, 3, 4, 3], range(6)], np.int32)
  pairs = Pairs(np.eye(6)[:5], np.eye(6), query, candidate)
  rows = np.array([[0, 1, 2], [3, -1, -1]], np.int32)
  labels, tasks = np.array([0, 0, 0, 3, 3, 1]), np.array([0, 0, 0, 1, 1, 1])
  found, counts = fill(rows, pairs, tasks, labels, seed=0, drop=True)
  assert len(found) == 1 and counts == {'filled': 0, 'filled_other_task': 0, 'too_few': 1}
  labels[2] = 2
  found, counts = fill(rows, pairs, tasks, labels, seed=0, drop=True)
  assert len(found) == 2 and counts == {'filled': 2, 'filled_other_task': 2, 'too_few': 0}


def test_what_cannot_be_filled():
  # two candidates in all: no three pairs are without a known match
  query, candidate = np.array([[0, 1, 2, 3, 4], [0, 1, 0, 1, 0]], np.int32)
  pairs = Pairs(np.eye(5), np.eye(5)[:2], query, candidate)
  with pytest.raises(UserError, match=r'a cluster of 3 pairs cannot be filled: it has 2, and'):
    mine(pairs, 2, 'top_k')
  mined = mine(pairs, 2, 'top_k', MiningConfig(bad='skip'))
  assert len(mined.clusters) == 0 and mined.counts['too_few'] == 5
  assert mined.hardness.negative.count == 0
  assert 'no negatives' in text_report(mined)
  assert mine(pairs, 1, 'top_k').clusters.shape == (5, 2)
  # three candidates, but the query of pair 0 owns them all
  query, candidate = np.array([[0, 0, 0, 1, 2], [0, 1, 2, 1, 2]], np.int32)
  pairs = Pairs(np.eye(5)[:3], np.eye(5)[:3], query, candidate)
  with pytest.raises(UserError, match='a cluster of 3 pairs cannot be filled'):
    mine(pairs, 2, 'top_k')
  mined = mine(pairs, 2, 'top_k', MiningConfig(bad='skip'))
  assert len(mined.clusters) + mined.counts['too_few'] == 5
  assert not mined.counts['filled'] or len(mined.clusters)


@pytest.fixture
def broken():
  """Pairs of which some cannot be mined."""
  rng = np.random.default_rng(4)
  queries, candidates = rng.standard_normal((2, 22, 6)).astype(np.float32)
  queries[3], candidates[5, 2] = np.nan, np.inf
  query = np.array([*range(20), 7, 7], np.int32)  # one pair twice, queries 20 and 21 in none
  candidate = np.array([*range(20), 7, 8], np.int32)
  return Pairs(queries, candidates, query, candidate)


def test_bad_input_is_refused_or_counted(broken):
  with pytest.raises(UserError, match=r'queries have no positive, first number 20; leave them out'):
    mine(broken, 2)
  mined = mine(broken, 2, settings=MiningConfig(bad='skip'))
  assert {name: mined.counts[name] for name in ('not_finite', 'repeated', 'no_owner')} == {
    'not_finite': 2,  # pairs 3 and 5
    'repeated': 1,  # pair 20
    'no_owner': 4,  # 20, 21, and those of the pairs that are not finite
  }
  assert not {3, 5, 20} & set(mined.clusters.reshape(-1).tolist())
  kept, numbers, _ = without_bad(broken)
  kept.check()
  np.testing.assert_array_equal(kept.queries[kept.query], broken.queries[broken.query[numbers]])
  text = text_report(mined)
  assert 'pairs left out: an embedding that is not finite' in text


def pairs_of(queries, candidates, query, candidate):
  return Pairs(queries, candidates, np.array(query, np.int32), np.array(candidate, np.int32))


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda e: pairs_of(e, e, [0, 1, 2, 9], [0, 1, 2, 3]), 'queries outside 0 to 3'),
    (lambda e: pairs_of(e, e, [0, 1, 2, 3], [0, 1, 2, -1]), 'candidates outside 0 to 3'),
    (lambda e: pairs_of(e, e, [0, 1, 2, 3], [0, 1, 2, 2]), '1 of 4 candidates have no owner'),
    (lambda e: pairs_of(e, e, [0, 1, 2, 3, 0], [0, 1, 2, 3, 0]), 'pairs are there more than once'),
    (lambda e: pairs_of(e * np.nan, e, [0, 1, 2, 3], [0, 1, 2, 3]), 'queries are not finite'),
  ],
)
def test_pairs_that_cannot_be(change, message):
  with pytest.raises(UserError, match=message):
    mine(change(np.eye(4, dtype=np.float32)), 2)


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({'strategy': 'saha_mutal'}, "did you mean 'saha_mutual'"),
    ({'k': 0}, 'k=0'),
    ({'k': 12}, 'k=12 needs clusters of 13 pairs, there are 12'),
    ({'strategy': 'labels'}, 'strategy labels needs labels'),
    ({'labels': np.zeros(3, np.int32)}, '3 labels of 12 pairs'),
    ({'ids': ['x'] * 12}, "two pairs have the id 'x'"),
    (
      {'settings': MiningConfig(labelled_tasks=(0,))},
      'is for the strategy saha, not for saha_mutual',
    ),
    (
      {'strategy': 'saha', 'settings': MiningConfig(labelled_tasks=(0,), per_task=False)},
      'needs tasks that are mined apart',
    ),
  ],
)
def test_calls_that_cannot_be(given, message):
  number = np.arange(12, dtype=np.int32)
  x = np.random.default_rng(0).standard_normal((12, 4)).astype(np.float32)
  with pytest.raises(UserError, match=message):
    mine(Pairs(x, x, number, number), **{'k': 2, **given})


def test_labels_of_a_candidate_agree():
  pairs = pairs_of(np.eye(4), np.eye(4)[:3], [0, 1, 2, 3], [0, 1, 2, 2])
  with pytest.raises(UserError, match='pairs of one candidate have one label'):
    mine(pairs, 1, 'labels', labels=np.array([0, 1, 2, 3]))


@pytest.mark.parametrize(
  ('name', 'value'),
  [('mult', 0), ('skip', -1), ('keep', 0), ('depth', -1), ('recall', 1.0)],
)
def test_settings_that_cannot_be(name, value):
  with pytest.raises(UserError, match=f'config.{name}'):
    MiningConfig(**{name: value})


def test_an_approximate_search_tells_its_recall():
  pairs, _ = make_toy(Toy(pairs=300, meanings=100), seed=0)
  mined = mine(pairs, 3, 'top_k', MiningConfig(recall=0.9))
  assert mined.recall is not None and 0.8 <= mined.recall <= 1
  assert 'recall of the approximate search' in text_report(mined)
  assert mine(pairs, 3, 'top_k').recall is None


def test_tasks_of_classes_take_the_nearest_owners():
  pairs, _ = make_toy(Toy(pairs=200, meanings=80), seed=0)
  tasks = np.zeros(200, np.int64)
  plain = mine(pairs, 3, 'saha', tasks=tasks)
  classes = mine(pairs, 3, 'saha', MiningConfig(labelled_tasks=(0,)), tasks=tasks)
  assert classes.hardness.negative.mean > plain.hardness.negative.mean + 0.05


def test_the_report_tells_what_was_done():
  pairs, _ = make_toy(Toy(pairs=200, meanings=80), seed=0)
  mined = mine(pairs, 3, 'percentage')
  text = text_report(mined)
  lines = text.splitlines()
  assert lines[0] == (
    'percentage: 200 clusters of 4 (3 hard negatives); 200 of 200 pairs are in one'
  )
  assert f'{mined.hardness.negative.mean:14.4f}' in text
  assert f'{mined.counts["percentage"]:,}  candidates left out: above the percentage' in text
  bars = [line for line in lines if ' to ' in line]
  assert sum(int(line.split()[3].replace(',', '')) for line in bars) == 200 * 12
  assert max(line.count('#') for line in bars) == 40
