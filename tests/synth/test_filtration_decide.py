"""Scores and decisions, on real paths with an encoder of colours."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from align_jax.config import build
from align_jax.errors import UserError
from align_jax.synth.filtration.config import FiltrationConfig
from align_jax.synth.filtration.decide import Decider, make_thresholds
from align_jax.synth.filtration.duplicates import DuplicateConfig
from align_jax.synth.filtration.references import (
  ReferenceConfig,
  References,
  make_references,
)
from align_jax.synth.filtration.score import score_part
from align_jax.synth.filtration.thresholds import (
  ThresholdConfig,
)
from align_jax.synth.filtration.views import show
from align_jax.synth.rows import AnnotationRow, DecisionRow, ScoreRow, from_json, to_json
from tests.synth.colours import NAMES, ColourEncoder, annotation, image_row, picture, real_source


@pytest.fixture
def references(tmp_path) -> References:
  return make_references(
    ReferenceConfig(), NAMES, real_source(), ColourEncoder(), 'colours', tmp_path / 'r.safetensors'
  )


def made(config: FiltrationConfig, references: References, what: Sequence[tuple[str, str]]):
  """Images that are asked for as one colour and drawn in another ('' for none)."""
  images, pictures, annotations = [], [], []
  for i, (category, drawn) in enumerate(what):
    images.append(image_row(i, category, '' if drawn else 'not_finite'))
    image, mask = picture(drawn, i) if drawn else (None, None)
    pictures.append(image)
    if image is not None:
      annotations.append(annotation(i, image, mask))
  scores, x = score_part(config, images, pictures, annotations, ColourEncoder(), references)
  return images, annotations, scores, x


def test_from_real_images_to_decisions(references):
  config = FiltrationConfig(duplicates=DuplicateConfig('none'))
  what = [('red', 'red'), ('red', 'green'), ('green', 'green'), ('blue', ''), ('pink', 'pink')]
  images, annotations, scores, x = made(config, references, what)
  decisions = Decider(config, references).decide(images, annotations, scores, x)
  assert [d.kept for d in decisions] == [True, False, True, False, True]
  assert decisions[1].reasons[0].startswith('similarity 0.6')
  assert decisions[3].reasons == ('not_finite',)
  assert decisions[4].notes == ('no real image of pink: keep',)
  assert scores[4].similarity is None and scores[4].similarity_to == 'keep'
  assert scores[0].text is not None and scores[0].text > 0.99 > scores[1].text
  assert np.isnan(x[3]).all() and scores[0].area == pytest.approx(0.25)
  for row in (*scores, *decisions):
    assert from_json(type(row), to_json(row), 'here') == row
  real = references.embeddings[references.category == 0].astype(np.float64)
  assert scores[0].similarity == pytest.approx(float((real @ x[0]).mean()), abs=1e-6)


@pytest.mark.parametrize(
  ('fallback', 'drawn', 'to', 'kept'),
  [
    ('keep', 'green', 'keep', True),
    ('drop', 'pink', 'drop', False),
    ('text', 'pink', 'text', True),
    ('text', 'green', 'text', False),
    ('neighbour', 'red', 'neighbour:red', True),
    ('neighbour', 'green', 'neighbour:red', False),
  ],
)
def test_a_category_without_real_images(references, fallback, drawn, to, kept):
  text = ThresholdConfig('fixed', value=0.95) if fallback == 'text' else ThresholdConfig()
  config = FiltrationConfig(
    fallback=fallback, text=text, text_for='fallback', duplicates=DuplicateConfig('none')
  )
  images, annotations, scores, x = made(config, references, [('pink', drawn), ('red', 'red')])
  decisions = Decider(config, references).decide(images, annotations, scores, x)
  assert (scores[0].similarity_to, decisions[0].kept) == (to, kept)
  assert decisions[1].kept
  if fallback == 'drop':
    assert decisions[0].reasons == ('no_real image of pink',)
  if fallback == 'neighbour':
    assert 'pink: neighbour:red' in decisions[0].notes[0]


def test_every_reason_is_given_in_order(references):
  config = FiltrationConfig(
    similarity=ThresholdConfig('fixed', value=0.9),
    text=ThresholdConfig('fixed', value=0.9),
    min_area=0.1,
    max_area=0.9,
    max_spread=100.0,
  )
  images = [image_row(i, 'red') for i in range(4)]
  scores = [
    ScoreRow('g0', 0.5, text=0.2, area=0.01, spread=0.5, phash='0' * 16),
    ScoreRow('g1', similarity_to='not_finite', area=0.95, spread=110.0, phash='0' * 16),
    ScoreRow('g2', 0.95, text=0.95, spread=50.0, phash='0' * 16),
    ScoreRow('g3', 0.95, text=0.95, spread=50.0, phash='0' * 16),
  ]
  annotations = [AnnotationRow('g0', 8, 8, failure='empty')]
  x = np.asarray([[1, 0], [np.nan, 0], [1, 0], [1, 0]], np.float32)
  found = Decider(config, references).decide(images, annotations, scores, x)
  assert found[0].reasons == (
    'blank 0.5 < 2', 'mask empty', 'area 0.01 < 0.1', 'similarity 0.5 < 0.9', 'text 0.2 < 0.9',
  )  # fmt: skip
  assert found[1].reasons == ('noise 110 > 100', 'area 0.95 > 0.9', 'not_finite embedding')
  assert found[2] == DecisionRow('g2', True)
  assert found[3] == DecisionRow('g3', False, ('duplicate of g2',), 'g2')


def test_what_is_dropped_does_not_drop_its_copies(references):
  config = FiltrationConfig(duplicates=DuplicateConfig('embedding', cosine=0.999))
  images, annotations, scores, x = made(config, references, [('red', 'red')] * 3)
  scores[0] = dataclasses.replace(scores[0], similarity=0.1)
  x[1] = x[0]
  x[2] = x[0]
  found = Decider(config, references).decide(images, annotations, scores, x)
  assert [d.duplicate_of for d in found] == ['', '', 'g1']


def test_parts_after_a_kill_are_decided_as_they_would_have_been(references):
  config = FiltrationConfig(duplicates=DuplicateConfig('embedding', cosine=0.9995))
  what = [(NAMES[i % 3], NAMES[i % 3]) for i in range(30)]
  images, annotations, scores, x = made(config, references, what)
  whole = Decider(config, references).decide(images, annotations, scores, x)
  assert {d.kept for d in whole} == {True, False}
  found: list[DecisionRow] = []
  for start in range(0, 30, 10):
    decider = Decider(config, references)
    for before in range(0, start, 10):
      part = slice(before, before + 10)
      decider.replay(images[part], scores[part], x[part], found[part])
    part = slice(start, start + 10)
    found += decider.decide(images[part], annotations[part], scores[part], x[part])
  assert found == whole


@pytest.mark.parametrize('masks', ['drop', 'keep'])
def test_masks_that_failed(references, masks):
  config = FiltrationConfig(masks=masks, similarity=ThresholdConfig())
  image, _ = picture('red', 0)
  rows = [AnnotationRow('g0', 24, 24, failure='empty'), AnnotationRow('g1', 24, 24, failure='none')]
  images = [image_row(0, 'red'), image_row(1, 'green')]
  scores, x = score_part(config, images, [image, image], rows, ColourEncoder(), references)
  found = Decider(config, references).decide(images, rows, scores, x)
  whole = show('whole', ColourEncoder.transform, image)
  np.testing.assert_array_equal(x[0], ColourEncoder().embed_images(whole[None])[0])
  assert scores[1].area is None and found[1].kept
  assert found[0].kept == (masks == 'keep')
  assert (found[0].reasons or found[0].notes) == ('mask empty',)


def test_empty_parts_and_an_empty_source(references, tmp_path):
  config = FiltrationConfig()
  scores, x = score_part(config, [], [], [], ColourEncoder(), references)
  assert scores == [] and x.shape == (0, 3)
  assert Decider(config, references).decide([], [], scores, x) == []
  none = make_references(
    ReferenceConfig(), NAMES, None, ColourEncoder(), 'colours', tmp_path / 'none.safetensors'
  )
  images, annotations, scores, x = made(config, none, [('red', 'red'), ('green', 'blue')])
  found = Decider(config, none).decide(images, annotations, scores, x)
  assert [d.kept for d in found] == [True, True]
  assert found[0].notes == ('no real image of red: keep',)
  config = FiltrationConfig(fallback='neighbour')
  assert made(config, none, [('red', 'red')])[2][0].similarity_to == 'keep'


def test_quantiles_wait_for_all_images(references):
  config = FiltrationConfig(
    similarity=ThresholdConfig('quantile', drop=0.25, at_least=4),
    duplicates=DuplicateConfig('none'),
  )
  assert not config.is_streaming and FiltrationConfig().is_streaming
  with pytest.raises(UserError, match='quantile thresholds need scored images'):
    Decider(config, references)
  what = [('red', 'red')] * 6 + [('red', 'green')] * 2 + [('blue', 'blue')]
  images, annotations, scores, x = made(config, references, what)
  pool = list(zip(images, scores, strict=True))
  thresholds = make_thresholds(config, references, pool)
  assert thresholds == make_thresholds(config, references, reversed(pool))
  found = Decider(config, references, pool).decide(images, annotations, scores, x)
  assert [d.kept for d in found] == [True] * 6 + [False] * 2 + [True]
  assert found[8].notes == ('similarity: threshold of all categories',)


def test_quantiles_are_of_the_images_own_category(references):
  config = FiltrationConfig(
    similarity=ThresholdConfig('quantile', drop=0.25, at_least=4),
    fallback='neighbour',
    duplicates=DuplicateConfig('none'),
  )
  # pink ones, compared with red ones, are less like those than red ones are
  what = [('red', 'red')] * 8 + [('pink', 'pink')] * 8
  images, annotations, scores, x = made(config, references, what)
  pool = list(zip(images, scores, strict=True))
  found = Decider(config, references, pool).decide(images, annotations, scores, x)
  assert sum(d.kept for d in found[:8]) == sum(d.kept for d in found[8:]) == 6


@pytest.mark.parametrize(
  ('values', 'field'),
  [
    ({'nearest': -1}, 'nearest'),
    ({'similarity': {'kind': 'fixed', 'value': 2.0}}, 'similarity.value'),
    ({'similarity': {'kind': 'best'}}, 'similarity.kind'),
    ({'text': {'kind': 'quantile', 'drop': 1.0}}, 'text.drop'),
    ({'text': {'keep': 0.0}}, 'text.keep'),
    ({'text_of': 'none', 'text': {'kind': 'fixed'}}, 'text_of'),
    ({'fallback': 'text'}, 'fallback'),
    ({'min_area': 0.5, 'max_area': 0.2}, 'min_area'),
    ({'min_spread': -1.0}, 'min_spread'),
    ({'references': {'templates': ('a photo',)}}, 'references.templates'),
    ({'references': {'templates': ('a {0.__class__} {}',)}}, 'references.templates'),
    ({'references': {'smallest': 0}}, 'references.smallest'),
    ({'duplicates': {'distance': -1}}, 'duplicates.distance'),
    ({'nearst': 3}, 'nearst'),
  ],
)
def test_bad_configs_are_named(values, field):
  with pytest.raises(UserError, match=f'config.filtration.{field}'):
    build(FiltrationConfig, values, 'config.filtration')


def test_bad_images_are_named(references):
  config = FiltrationConfig()
  image, mask = picture('red', 0)
  with pytest.raises(UserError, match="category 'cyan' is not among the references"):
    score_part(config, [image_row(0, 'cyan')], [image], [], ColourEncoder(), references)
  small = annotation(0, image[:10], mask[:10])
  with pytest.raises(UserError, match='a mask of 24 x 10 pixels on a picture of 24 x 24'):
    score_part(config, [image_row(0, 'red')], [image], [small], ColourEncoder(), references)
  wide = dataclasses.replace(references, texts=np.ones((4, 5), np.float32))
  with pytest.raises(UserError, match='embeddings of 3 dimensions, the references have 5'):
    score_part(config, [image_row(0, 'red')], [image], [], ColourEncoder(), wide)
