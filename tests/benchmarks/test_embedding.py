"""Both sides embed alike, whole and prepared, and the line says which was quicker."""

import dataclasses

import numpy as np
import pytest

from align_jax.errors import UserError
from benchmarks import embedding
from benchmarks.embedding import Options

pytest.importorskip('torch')
pytest.importorskip('transformers')
TINY = Options(
  contents=9, batch=4, rounds=1, width=32, depth=2, heads=4, kv_heads=2, mlp_dim=48,
  image_width=24, image_depth=2, image_heads=2, image_size=32, patch=8, length=300, vocab_size=300,
  words=12, level='user',
)  # fmt: skip


@pytest.fixture(scope='module')
def line():
  return embedding.run(TINY)


def test_both_sides_embed_alike(line):
  for part in ('model', 'embedder'):
    # the run itself raises beyond 1e-4
    assert 0 < line[part]['largest_difference'] < 2e-5
    assert line[part]['ratio']['rounds'] == 1
    assert line[part]['cpu_ratio']['median'] > 0
    for side in ('ours', 'peer'):
      assert line[part][side]['contents_per_second'] > 0
  assert line['median_cosine'] < 0.99  # else equal embeddings would say nothing
  assert 0 < line['parameters'] <= line['peer_parameters']


def test_of_the_last_block_less_is_counted(line):
  # two blocks, and of the second no more than keys and values
  assert 0.5 < line['flops_ratio'] < 1
  assert len(line['lengths']) == 3  # three texts; six with an image, four in a batch


def test_contents_are_of_all_kinds():
  contents = embedding.make_contents(TINY)
  kinds = [(bool(content.text), len(content.images)) for content in contents]
  assert kinds[:3] == [(True, 0), (False, 1), (True, 1)] and kinds == kinds[:3] * 3


def test_a_difference_stops_the_run():
  here, there = np.zeros((2, 3), np.float32), np.full((2, 3), 1e-3, np.float32)
  with pytest.raises(UserError, match=r'differ by 0\.001'):
    embedding.largest_difference(here, there, 'float32')
  assert embedding.largest_difference(here, there, 'bfloat16') == pytest.approx(1e-3)
  with pytest.raises(UserError, match='--dtype'):
    embedding.run(dataclasses.replace(TINY, dtype='float16'))
