import numpy as np
import pytest

from align_jax.evaluation import probes


def clusters(make_features, rows, seed, classes='abcd', spread=0.3, centres=None):
  rng = np.random.default_rng(seed)
  centres = np.eye(len(classes), 8) if centres is None else centres
  y = np.arange(rows) % len(classes)
  x = centres[y] + spread * rng.normal(size=(rows, 8)) / np.sqrt(8)
  x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
  return make_features(x, labels=[(classes[i],) for i in y])


def test_separate_classes_transfer(make_features):
  data = probes.probe_data(clusters(make_features, 80, 0), clusters(make_features, 40, 1))
  assert probes.linear_probe(data) == 1
  assert probes.knn_probe(data) == 1
  assert data.unknown == 0


def test_shuffled_labels_give_chance(make_features):
  train, test = clusters(make_features, 400, 0), clusters(make_features, 400, 1)
  labels = [train.labels[i] for i in np.random.default_rng(0).permutation(400)]
  data = probes.probe_data(make_features(train.image, labels=labels), test)
  assert probes.linear_probe(data) < 0.5
  assert probes.knn_probe(data) < 0.5


def test_unknown_classes_are_counted_and_wrong(make_features):
  train = clusters(make_features, 60, 0, classes='abc')
  test = clusters(make_features, 40, 1, classes='abcd')
  data = probes.probe_data(train, test)
  assert data.unknown == 10
  assert probes.linear_probe(data) == probes.knn_probe(data) == 0.75


def test_knn_votes_equal_a_plain_loop(make_features):
  train = clusters(make_features, 50, 0, spread=2)
  test = clusters(make_features, 30, 1, spread=2)
  data = probes.probe_data(train, test)
  right = 0
  for x, y in zip(data.test_x, data.test_y, strict=True):
    cosine = data.train_x.astype(np.float64) @ x
    votes = np.zeros(len(data.classes))
    for i in np.argsort(-cosine)[:10]:
      votes[data.train_y[i]] += np.exp(cosine[i] / 0.07)
    right += votes.argmax() == y
  assert probes.knn_probe(data) == pytest.approx(right / 30)


def test_a_rare_class_and_a_handful_of_images(make_features):
  train = clusters(make_features, 9, 0, classes='abcd')
  assert 0 <= probes.linear_probe(probes.probe_data(train, train)) <= 1
  two = make_features(train.image[:2], labels=[('a',), ('b',)])
  assert probes.linear_probe(probes.probe_data(two, two)) == 1
  assert probes.knn_probe(probes.probe_data(two, two)) == 1


def test_the_same_twice(make_features):
  train = clusters(make_features, 60, 0, spread=1.5)
  data = probes.probe_data(train, clusters(make_features, 60, 1, spread=1.5))
  assert probes.linear_probe(data) == probes.linear_probe(data)


def test_one_class_is_refused(make_features, unit):
  one = make_features(unit(3), labels=[('a',)] * 3)
  with pytest.raises(ValueError, match='two classes'):
    probes.probe_data(one, one)
