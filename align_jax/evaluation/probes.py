"""Probe transfer: classifiers fitted to one set of features, tested on another.

Fitted to generated images and tested on real ones, they say whether the generated stand in for
the real: the nearer their features lie, the better the transfer.
"""

import dataclasses
import warnings

import numpy as np
from jaxtyping import Float, Int

from align_jax.evaluation.features import Features, single_labels
from align_jax.evaluation.retrieval import nearest

STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)  # inverse penalties tried, the strongest penalty first


@dataclasses.dataclass(frozen=True)
class ProbeData:
  """Labelled features of two sources, with classes numbered by the train set.

  Attributes:
    classes: class names of the train set, sorted.
    train_x, train_y: features and class numbers.
    test_x, test_y: the same of the test set; -1 for a class the train set does not have.
  """

  classes: list[str]
  train_x: Float[np.ndarray, 'train dim']
  train_y: Int[np.ndarray, 'train']
  test_x: Float[np.ndarray, 'test dim']
  test_y: Int[np.ndarray, 'test']

  @property
  def unknown(self) -> int:
    """How many test images have a class that the train set does not have: never right."""
    return int((self.test_y < 0).sum())


def probe_data(train: Features, test: Features) -> ProbeData:
  """Takes the images with exactly one label of both sets.

  Raises:
    ValueError: no such image in one of them, or fewer than two classes to learn.
  """
  train_rows, train_names = single_labels(train)
  test_rows, test_names = single_labels(test)
  classes = sorted(set(train_names))
  if len(classes) < 2 or not test_names:
    raise ValueError('probe: needs two classes and images with exactly one label on both sides')
  place = {name: i for i, name in enumerate(classes)}
  return ProbeData(
    classes=classes,
    train_x=train.image[train_rows],
    train_y=np.asarray([place[name] for name in train_names]),
    test_x=test.image[test_rows],
    test_y=np.asarray([place.get(name, -1) for name in test_names]),
  )


def linear_probe(data: ProbeData, *, seed: int = 0) -> float:
  """Accuracy of multinomial logistic regression on standardised features, in [0, 1].

  The penalty is chosen on a fifth of the *train* features, never on the test set, then the probe
  is fitted again to all of them. Test images of unknown classes count as wrong.

  Source: the linear evaluation of Radford et al. 2021, arXiv 2103.00020, appendix A.3, with a
  shorter grid.
  """
  fit, held = _split(data.train_y, seed)
  scores = []
  for model in _paths(data.train_x[fit], data.train_y[fit], STRENGTHS):
    scores.append(_accuracy(model(data.train_x[held]), data.train_y[held]))
  best = STRENGTHS[int(np.argmax(scores))]  # of equals the strongest penalty
  (model,) = _paths(data.train_x, data.train_y, (best,))
  return _accuracy(model(data.test_x), data.test_y)


def knn_probe(data: ProbeData, *, k: int = 10, temperature: float = 0.07) -> float:
  """Accuracy of a vote of the k nearest train images, each weighted exp(cosine / temperature).

  Test images of unknown classes count as wrong.

  Source: Wu et al. 2018, arXiv 1805.01978, section 3.4; k as in DINO (arXiv 2104.14294).
  """
  rows, cosines = nearest(data.test_x, data.train_x, k)
  weight = np.exp((cosines - cosines.max(axis=1, keepdims=True)) / temperature)
  votes = np.zeros((len(rows), len(data.classes)), np.float32)
  np.add.at(votes, (np.arange(len(rows))[:, None], data.train_y[rows]), weight)
  return _accuracy(votes.argmax(axis=1), data.test_y)


def _accuracy(predicted: np.ndarray, target: np.ndarray) -> float:
  return float(np.mean(predicted == target))


def _split(target: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Splits rows 4:1, class by class where every class is large enough for that."""
  from sklearn.model_selection import train_test_split  # here: see `gap.separability_auc`

  rows = np.arange(len(target))
  counts = np.bincount(target)
  held = max(1, len(target) // 5)
  even = counts.min() >= 2 and held >= len(counts) and len(target) - held >= len(counts)
  fit, held_rows = train_test_split(
    rows, test_size=held, random_state=seed, stratify=target if even else None
  )
  if len(np.unique(target[fit])) < 2:  # a handful of images: choosing on them beats failing
    return rows, rows
  return fit, held_rows


def _paths(x: np.ndarray, y: np.ndarray, strengths: tuple[float, ...]):
  """Yields of each penalty a fitted function from features to class numbers."""
  from sklearn.exceptions import ConvergenceWarning
  from sklearn.linear_model import LogisticRegression
  from sklearn.preprocessing import StandardScaler

  scaler = StandardScaler().fit(x)
  # Each fit starts from the one before it: from strong to weak penalties that halves the work.
  model = LogisticRegression(max_iter=200, tol=1e-3, warm_start=True)
  for strength in strengths:
    model.set_params(C=strength)
    with warnings.catch_warnings():
      # 200 steps are the method here: the same for every arm, and the seconds they save are many.
      warnings.simplefilter('ignore', ConvergenceWarning)
      model.fit(scaler.transform(x), y)
    yield lambda z: model.predict(scaler.transform(z))
