"""What a study says of its numbers, and how the numbers of clusters are made."""

from pathlib import Path

import numpy as np
import pytest

from align_jax.config import build
from align_jax.embedding_study.config import EmbeddingStudyConfig
from align_jax.embedding_study.runner import Cell, Found
from align_jax.embedding_study.summary import markdown, tables, verdict
from align_jax.errors import UserError
from align_jax.mining.pairs import Pairs
from align_jax.mining_run import EmbeddedPairs
from align_jax.study.pairs import load_embedded, save_embedded, true_negative_cosine
from tests.embedding_study.test_study import study_values


def config_of(seeds: int) -> EmbeddingStudyConfig:
  return build(EmbeddingStudyConfig, study_values() | {'seeds': tuple(range(seeds))})


def found_of(seeds: int, gaps: list[float], level_gap: float = 0.0) -> Found:
  """SaHa is better by `gaps` at test scenes, and `user` by `level_gap` than `none`."""
  cells = []
  for level in ('user', 'none'):
    for strategy in ('in_batch', 'saha'):
      for seed in range(seeds):
        base = 0.3 + 0.05 * seed + level_gap * (level == 'user')
        better = gaps[seed] * (strategy == 'saha')
        scores = {'average': base, 'in_distribution': base + better, 'out_of_distribution': base}
        cells.append(Cell(level, strategy, seed, Path('run'), scores, {'false_negatives': 0.1}))
  zero_shot = {level: {'average': 0.1, 'in_distribution': 0.1} for level in ('user', 'none')}
  return Found(zero_shot, tuple(cells))


def test_verdict_is_paired_by_seed_and_says_what_is_firm():
  lines = verdict(config_of(3), found_of(3, [0.10, 0.11, 0.12])).splitlines()
  assert lines[0].startswith('Before any contrastive step: user turn 10.0 %, none 10.0 %')
  assert lines[1] == 'user turn: SaHa better than in-batch: test scenes (+11.0 ± 2.5).'
  assert lines[2].startswith('none: SaHa better than in-batch: test scenes')
  assert lines[3] == 'mean of prompts: SaHa better than in-batch: test scenes (+11.0 ± 2.5).'
  assert lines[4].startswith('12 differences were looked at (table below), 3 of them clear')
  assert len(lines) == 5


def test_verdict_names_the_better_one_first():
  lines = verdict(config_of(3), found_of(3, [-0.10, -0.11, -0.12])).splitlines()
  assert lines[1] == 'user turn: in-batch better than SaHa: test scenes (+11.0 ± 2.5).'


def test_verdict_says_so_when_nothing_holds():
  lines = verdict(config_of(3), found_of(3, [0.10, -0.11, 0.02])).splitlines()
  assert len(lines) == 2
  assert lines[-1].startswith('12 differences were looked at (table below), 0 of them clear')


def test_verdict_sees_levels():
  lines = verdict(config_of(3), found_of(3, [0, 0, 0], 0.2)).splitlines()
  assert lines[1].startswith('Prompt user turn better than none: all tasks (+20.0 ± 0.0), test ')


def test_differences_stand_in_a_table_the_clear_ones_marked():
  made = {table.title: table for table in tables(config_of(3), found_of(3, [0.10, 0.11, 0.12]))}
  text = markdown(made['Differences'])
  assert '| user turn: SaHa less in-batch | +0.0 ± 0.0 | **+11.0 ± 2.5** | +0.0 ± 0.0 |' in text
  assert '| mean of prompts: SaHa less in-batch | +0.0 ± 0.0 | **+11.0 ± 2.5** |' in text
  assert '| Prompt user turn less none | +0.0 ± 0.0 |' in text


def test_verdict_of_a_study_under_way():
  found = found_of(3, [0.1, 0.1, 0.1])
  some = Found(found.zero_shot, found.cells[:5])  # `user` and a seed; of saha two seeds
  lines = verdict(config_of(3), some).splitlines()
  assert lines[-1] == 'Under way: 7 of 12 cells are still missing.'
  made = {table.title: table for table in tables(config_of(3), some)}
  assert len(made['Differences'].rows) == 1
  nothing = verdict(config_of(3), Found(found.zero_shot, ())).splitlines()
  assert len(nothing) == 2
  assert all(t.title != 'Differences' for t in tables(config_of(3), Found(found.zero_shot, ())))


def test_tables_have_spread_and_the_model_before():
  made = {table.title: table for table in tables(config_of(3), found_of(3, [0.1, 0.1, 0.1]))}
  table = made['Prompt: user turn']
  assert [name for name, _ in table.rows] == ['before any contrastive step', 'in-batch', 'SaHa']
  assert table.rows[2][1][1].best and table.rows[2][1][1].spread == '5.0'
  assert not table.rows[0][1][0].spread
  text = markdown(table)
  assert '| SaHa | **35.0 ± 5.0** | **45.0 ± 5.0** |' in text
  assert '| SaHa | **10.0 ± 0.0** |' in markdown(made['Clusters, prompt: none'])


def embedded(count: int = 24) -> EmbeddedPairs:
  """Pairs of five labels; the first two have one candidate."""
  rng = np.random.default_rng(0)
  vectors = rng.normal(size=(2, count, 6)).astype(np.float32)
  vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
  candidate = np.maximum(np.arange(count, dtype=np.int32) - 1, 0)
  labels = rng.integers(0, 5, count).astype(np.int32)
  labels[1] = labels[0]
  return EmbeddedPairs(
    Pairs(vectors[0], vectors[1, 1:], np.arange(count, dtype=np.int32), candidate),
    ids=tuple(f'p{i}' for i in range(count)),
    task_names=('task',),
    tasks=np.zeros(count, np.int32),
    labels=labels,
    unreadable=0,
    skipped={},
  )


def test_cosine_of_true_negatives():
  found = embedded()
  clusters = np.array([[0, 1, 2, 3], [4, 5, 6, 7], [2, 8, 9, 10]])
  products = [
    found.pairs.queries[i] @ found.pairs.candidates[found.pairs.candidate[j]]
    for row in clusters.tolist()
    for i in row
    for j in row
    if found.labels[i] != found.labels[j]
  ]
  assert 0 < len(products) < 36
  assert true_negative_cosine(clusters, found) == pytest.approx(np.mean(products), abs=1e-6)


def test_embedded_pairs_are_kept_and_asked_for_by_what_they_are(tmp_path):
  path, asked, pairs = tmp_path / 'pairs.safetensors', {'pairs': 'spec', 'length': 9}, embedded()
  assert load_embedded(path, asked) is None
  save_embedded(path, pairs, asked)
  found = load_embedded(path, asked)
  assert found is not None
  assert (found.ids, found.task_names) == (pairs.ids, pairs.task_names)
  np.testing.assert_array_equal(found.labels, pairs.labels)
  np.testing.assert_array_equal(found.pairs.queries, pairs.pairs.queries)
  assert load_embedded(path, asked | {'length': 8}) is None
  path.write_bytes(b'0123456789')
  with pytest.raises(UserError, match='damaged'):
    load_embedded(path, asked)
