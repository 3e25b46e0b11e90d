"""What is said of a cluster is what the strategy did: counted, it gives the strategy's counts."""

import collections
import dataclasses

import numpy as np
import pytest

from align_jax.errors import UserError
from align_jax.mining import ranked
from align_jax.mining.explain import MEMBERS, REASONS, explain, judge
from align_jax.mining.graph import mutual, ranked_pairs
from align_jax.mining.hardness import false_negative_rate
from align_jax.mining.saha_mutual import hidden_matches
from align_jax.mining.strategy import STRATEGIES, MiningConfig, mine
from tests.mining.toy import Toy, make_toy, some_pairs
from tests.mining.toy import judge as judge_toy

SMALL = MiningConfig(skip=2, keep=12, depth=20)
SHAPES = [(60, 60, 60), (60, 20, 80), (20, 60, 80)]
SHAPE = pytest.mark.parametrize(('queries', 'candidates', 'count'), SHAPES)


def mined(strategy, queries, candidates, count, k=3, **changes):
  pairs = some_pairs(np.random.default_rng(0), queries, candidates, count, whole=False)
  found = []
  settings = dataclasses.replace(SMALL, **changes)
  result = mine(
    pairs, k, strategy, settings, labels=pairs.candidate % 25, tasks=np.zeros(count, int),
    ids=[f'{i:03}' for i in np.random.default_rng(1).permutation(count)], found=found.append,
  )  # fmt: skip
  return pairs, result, found


def tally(seen):
  return collections.Counter(one.reason for row in seen for one in row)


@SHAPE
@pytest.mark.parametrize('strategy', ['top_k', 'skip', 'margin', 'percentage', 'labels'])
def test_verdicts_of_ranks_are_the_counts(strategy, queries, candidates, count):
  _, _, [found] = mined(strategy, queries, candidates, count)
  seen = judge(found, np.arange(count))
  counts = tally(seen)
  assert {name: counts[name] for name in ranked.REASONS} == found.counts
  for row, cluster in zip(seen, found.clusters, strict=True):
    assert [one.pair for one in row if one.reason == 'kept'] == cluster[1:][
      cluster[1:] >= 0
    ].tolist()


@SHAPE
@pytest.mark.parametrize('labelled', [(), (0,)])
def test_verdicts_of_saha_are_its_clusters(labelled, queries, candidates, count):
  _, _, [found] = mined(
    'saha', queries, candidates, count, depth=6, mult=2, labelled_tasks=labelled
  )
  rows = np.arange(len(found.clusters))
  assert len(rows) > found.counts['second_phase'] > (0 if queries == candidates else -1)
  seen = judge(found, rows)
  counts = tally(seen)
  for row, cluster in zip(seen, found.clusters, strict=True):
    kept = [one.pair for one in row if one.reason == 'kept']
    assert sorted(kept) == sorted(cluster[1:][cluster[1:] >= 0].tolist())
  if not labelled:
    assert counts['similar_query'] == found.counts['similar_queries'] > 0
    assert counts['kept'] + counts['similar_query'] == found.counts['gathered']


@SHAPE
def test_verdicts_of_saha_mutual_are_its_hidden_matches(queries, candidates, count):
  _, _, [found] = mined('saha_mutual', queries, candidates, count)
  left, right, _, _, hidden = hidden_matches(found.pairs, found.values, found.pool, SMALL.mutual)
  apart = {*zip(left[hidden].tolist(), right[hidden].tolist(), strict=True)}
  ranks = {*zip(left.tolist(), right.tolist(), strict=True)}
  cluster = {int(i): n for n, row in enumerate(found.clusters) for i in row if i >= 0}
  for row, members in zip(
    judge(found, np.arange(len(found.clusters))), found.clusters, strict=True
  ):
    pair = int(members[0])
    others = [one for one in row if one.reason not in ('own', 'known_match', 'further')]
    for one in (one for one in row if one.reason in ('known_match', 'further')):
      theirs = np.flatnonzero(found.pairs.candidate == found.pairs.candidate[one.pair])
      known = found.pairs.match(theirs, np.full(len(theirs), pair))
      assert one.reason == ('known_match' if known.all() else 'further')
    assert {(pair, one.pair) for one in others} == {edge for edge in ranks if edge[0] == pair}
    for one in others:
      together = cluster[pair] == cluster[one.pair]
      both = (pair, one.pair) in apart or (one.pair, pair) in apart
      assert one.reason == ('kept' if together else 'hidden' if both else 'elsewhere')


@SHAPE
def test_verdicts_of_b3_are_its_edges(queries, candidates, count):
  pytest.importorskip('pymetis')
  _, _, [found] = mined('b3', queries, candidates, count)
  both = mutual(count, *ranked_pairs(found.pairs, found.values, found.pool, 2, 12))
  edges = {*zip(both.left.tolist(), both.right.tolist(), strict=True)}
  seen = judge(found, np.arange(len(found.clusters)))
  for row, members in zip(seen, found.clusters, strict=True):
    for one in row:
      edge = tuple(sorted((int(members[0]), one.pair)))
      if one.reason in ('skipped', 'one_way', 'elsewhere'):
        assert (one.reason == 'elsewhere') == (edge in edges)
  assert {'skipped', 'one_way'} <= tally(seen).keys()


@pytest.mark.parametrize('strategy', STRATEGIES)
def test_every_member_and_every_candidate_has_a_reason(strategy):
  pairs = some_pairs(np.random.default_rng(2), 40, 24, 60, whole=False)
  found = []
  tasks = np.arange(60) % 2
  result = mine(pairs, 5, strategy, SMALL, labels=pairs.candidate, tasks=tasks, found=found.append)
  some = np.arange(0, len(result.clusters), 3)
  for one in explain(result, found, some):
    cluster = result.clusters[one.cluster].tolist()
    assert cluster == [one.pair, *(member.pair for member in one.members)]
    assert {member.reason for member in one.members} <= {*MEMBERS}
    assert {seen.reason for seen in one.left_out} <= {*REASONS} - {*MEMBERS}
    query = pairs.queries[pairs.query[one.pair]]
    for seen in (*one.members, *one.left_out):
      if not np.isnan(seen.product) and strategy != 'saha':
        wanted = query @ pairs.candidates[pairs.candidate[seen.pair]]
        assert seen.product == pytest.approx(wanted, abs=1e-5)
  other = mine(pairs, 5, 'random')
  if strategy not in ('random', 'task_random'):
    with pytest.raises(UserError, match='another mining'):
      explain(other, found[:1], np.arange(len(other.clusters)))


def test_the_rate_of_false_negatives_is_that_of_a_plain_count():
  pairs, meaning = make_toy(Toy(pairs=200, meanings=60, topics=6), seed=0)
  result = mine(pairs, 4, 'top_k')
  rate = false_negative_rate(result.clusters, meaning)
  assert rate == pytest.approx(judge_toy(result.clusters, pairs, meaning)[0]) and rate > 0.02
  clusters = np.array([[0, 1, 2], [3, 4, -1]])
  assert false_negative_rate(clusters, np.array([7, 7, 8, 9, 9])) == pytest.approx(4 / 8)
  assert false_negative_rate(clusters, np.array([7, 7, -1, 9, -1])) == 1.0
  assert np.isnan(false_negative_rate(clusters, np.full(5, -1)))
