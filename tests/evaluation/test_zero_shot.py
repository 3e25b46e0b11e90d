import numpy as np
import pytest

from align_jax.evaluation import zero_shot


def test_class_vectors_average_unit_vectors(encoder):
  vectors = zero_shot.class_vectors(encoder, ['red', 'blue'], ('a {}', '{} and white'))
  prompts = encoder.embed_texts(['a red', 'red and white'])
  expected = prompts.mean(axis=0) / np.linalg.norm(prompts.mean(axis=0))
  np.testing.assert_allclose(vectors[0], expected, rtol=1e-5)
  np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_every_template_names_the_class_once():
  for templates in zero_shot.TEMPLATES.values():
    assert len(set(templates)) == len(templates)
    assert all(t.format('CAT').count('CAT') == 1 for t in templates)


def test_only_images_with_one_label_count(make_features):
  image = np.eye(3, dtype=np.float32)[[0, 1, 0, 2]]
  labels = [('a',), ('a',), ('a', 'b'), ('c',)]
  names = ['a', 'b', 'c']
  features = make_features(image, labels=labels)
  scores = zero_shot.classify(features, names, np.eye(3, dtype=np.float32))
  assert scores['images'] == 3
  assert scores['top1'] == pytest.approx(2 / 3)
  assert scores['top5'] == 1
  assert scores['balanced'] == pytest.approx((1 / 2 + 1) / 2)


def test_equal_class_vectors_name_nothing(make_features, unit):
  vectors = np.repeat(unit(1), 6, axis=0)
  features = make_features(unit(4, seed=1), labels=[(n,) for n in 'abcd'])
  scores = zero_shot.classify(features, list('abcdef'), vectors)
  assert scores['top1'] == scores['top5'] == 0


def test_no_labels(make_features, unit):
  with pytest.raises(ValueError, match='exactly one label'):
    zero_shot.classify(make_features(unit(2)), ['a'], unit(1))


def test_frequent_common_and_rare_classes_are_told_apart(make_features):
  image = np.eye(4, dtype=np.float32)[[0, 0, 1, 2, 2, 0]]
  labels = [('a',), ('a',), ('b',), ('c',), ('c',), ('c',)]
  names = ['a', 'b', 'c', 'd']
  frequency = zero_shot.Frequency({'a': 101, 'b': 11, 'c': 10, 'd': 500})
  scores = zero_shot.classify(
    make_features(image, labels=labels), names, np.eye(4, dtype=np.float32), frequency=frequency
  )
  assert (scores['frequent'], scores['common']) == (1, 1)
  assert scores['rare'] == pytest.approx(2 / 3)
  few = zero_shot.classify(
    make_features(image[:2], labels=labels[:2]),
    names,
    np.eye(4, dtype=np.float32),
    frequency=zero_shot.Frequency({}),
  )
  assert few['rare'] == 1 and 'common' not in few
  with pytest.raises(ValueError, match='do not go upwards'):
    zero_shot.Frequency({}, common=5, frequent=2)
