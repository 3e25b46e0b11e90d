"""What mining does with embeddings: each content once, what is refused or counted, the page."""

import numpy as np
import pytest

from align_jax.data.pair_record import Content
from align_jax.errors import UserError
from align_jax.mining.pairs import Pairs
from align_jax.mining.report import text_report
from align_jax.mining.strategy import STRATEGIES, MiningConfig
from align_jax.mining_page import PageConfig, mining_page
from align_jax.mining_run import EmbeddedPairs, check, embed_pairs, mine_pairs, mine_run
from tests import tiny
from tests.pairs import Page, Source, hashed, pair


def test_each_content_is_embedded_once():
  asked = []

  def embed(contents, role, instruction):
    asked.extend((role, content.id) for content in contents)
    return hashed(contents, role, instruction)

  shared = Content('shared')
  source = Source(
    [pair(i, positive=shared if i % 2 else None, task=f't{i % 3}') for i in range(20)]
  )
  found = embed_pairs(embed, source, batch_size=7)
  assert len(asked) == len(set(asked)) == 20 + 11
  assert found.pairs.candidate.max() == 10 and found.task_names == ('t0', 't1', 't2')
  assert (found.labels == -1).all()
  for i in (0, 1, 13):
    record = source[i]
    wanted = hashed([record.query, record.positive], '', '')
    np.testing.assert_array_equal(found.pairs.queries[found.pairs.query[i]], wanted[0])
    np.testing.assert_array_equal(found.pairs.candidates[found.pairs.candidate[i]], wanted[1])


def test_embeddings_that_are_not_finite_are_refused_or_counted():
  source = Source([pair(i) for i in range(12)])

  def embed(contents, role, instruction):
    out = hashed(contents, role, instruction)
    out[[c.text == 'query 5' for c in contents]] = np.nan
    return out

  with pytest.raises(UserError, match=r'1 embeddings are not finite, .* \(--bad=skip\)'):
    mine_run(embed, source, 3)
  mined, _ = mine_run(embed, source, 3, settings=MiningConfig(bad='skip'))
  assert mined.counts['not_finite'] == 1 and 5 not in mined.clusters
  text = text_report(mined, float('nan'), {'query without image': 2})
  assert '2  left out by the source: query without image' in text and 'false' not in text


@pytest.mark.parametrize(
  ('k', 'strategy', 'change', 'message'),
  [
    (12, 'saha', {}, 'tests:pairs: 12 pairs, and k=12 needs clusters of 13'),
    (0, 'saha', {}, 'k=0 hard negatives'),
    (3, 'sahara', {}, "no strategy 'sahara'"),
    (3, 'percentage', {'percentage': 3.0}, 'config.percentage'),
  ],
)
def test_settings_that_cannot_be_are_named_first(k, strategy, change, message):
  def embed(contents, role, instruction):
    raise AssertionError('nothing is to be embedded')

  with pytest.raises(UserError, match=message):
    mine_run(embed, Source([pair(i) for i in range(12)]), k, strategy, MiningConfig(**change))


def test_ids_are_there_once():
  source = Source([pair(i) for i in range(12)])
  source.ids = lambda: ['a'] * 12
  with pytest.raises(UserError, match="two pairs have the id 'a'"):
    check(source, 3, 'saha', MiningConfig())


@pytest.mark.parametrize('strategy', STRATEGIES)
def test_a_page_of_any_strategy(strategy):
  if strategy == 'b3':
    pytest.importorskip('pymetis')
  evil = '<script>alert(1)</script>'
  png = tiny.png(tiny.picture('red', 'disc', 0))
  source = Source(
    [
      pair(i, Content(f'{evil} {i}', (png,)), Content(f'{evil} {i % 20}'), label=f'{evil} {i % 10}')
      for i in range(40)
    ]
  )
  found = []
  embedded = embed_pairs(hashed, source)
  settings = MiningConfig(skip=2, keep=10)
  mined = mine_pairs(embedded, 4, strategy, settings, found=found.append)
  text = mining_page(mined, found, embedded, source, PageConfig(evil, [evil], shown=40), {'x': 1.0})
  page = Page(text)
  assert 'script' not in page.tags and any(evil in word for word in page.words)
  assert sum(word.startswith('Query, its match, negatives') for word in page.words) == min(
    40, len(mined.clusters)
  )
  near = [word for word in page.words if word.startswith('Near, and left out: ')]
  assert bool(near) == (strategy not in ('random', 'task_random', 'top_k'))


def test_pairs_of_one_candidate_have_one_label():
  shared = Content('shared')
  labels = [
    'cat',
    '',
    'dog',
    '',
    'cat',
    'dog',
  ]  # of the second nobody knows; its candidate is a cat
  some = [pair(i, positive=shared if i < 2 else None, label=labels[i]) for i in range(6)]
  found = embed_pairs(hashed, Source(some))
  clusters = mine_pairs(found, 3, 'labels', MiningConfig(bad='skip')).clusters
  known = np.array([0, 0, 1, 2, 0, 1])
  assert len(clusters)
  for row in clusters.tolist():
    assert known[row[0]] not in known[row[1:]]


def test_labels_of_a_candidate_of_two_tasks():
  shared = Content('shared')
  some = [
    pair(i, positive=shared if i % 6 == 0 else None, task=f't{i // 6}', label=f'{i % 3}')
    for i in range(12)
  ]
  found = embed_pairs(hashed, Source(some))
  together = mine_pairs(found, 2, 'labels', MiningConfig(per_task=False)).clusters
  apart = mine_pairs(found, 2, 'labels').clusters
  label, task = np.arange(12) % 3, np.arange(12) // 6
  for row in apart.tolist():
    assert len(set(task[row])) == 1 and label[row[0]] not in label[row[1:]]
  # label 0 of either task is that of the candidate which both have
  for row in together.tolist():
    assert label[row[0]] != 0 or 0 not in label[row[1:]]


def test_not_one_cluster():
  vectors = np.eye(20, dtype=np.float32)
  number = np.arange(20, dtype=np.int32)
  pairs = Pairs(vectors, vectors[:3], number, number % 3)  # three candidates in all
  ids = tuple(map(str, range(20)))
  embedded = EmbeddedPairs(pairs, ids, ('a',), 0 * number, 0 * number - 1, 0, {})
  with pytest.raises(UserError, match=r'of 20 pairs no 8 can be found .* smaller k'):
    mine_pairs(embedded, 7, 'top_k', MiningConfig(bad='skip'))
