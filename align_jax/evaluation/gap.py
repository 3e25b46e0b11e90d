"""The modality gap: how far apart generated and real images lie. Pure NumPy, float64."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int


def centroid_distance(
  real: Float[np.ndarray, 'real dim'], generated: Float[np.ndarray, 'generated dim']
) -> float:
  """Distance between the means, ||mean(real) - mean(generated)||, in [0, 2].

  Source: Liang et al. 2022, arXiv 2203.02053, section 2.
  """
  return float(np.linalg.norm(_mean(real) - _mean(generated)))


def paired_cosines(
  real: Float[np.ndarray, 'pairs dim'], generated: Float[np.ndarray, 'pairs dim']
) -> Float[np.ndarray, 'pairs']:
  """Cosine of each pair; row i of `real` is the partner of row i of `generated`.

  Its mean is the sanity check of GMAIL (arXiv 2602.15368): 0.52 before alignment, 0.89 after.
  """
  return np.einsum('ij,ij->i', real.astype(np.float64), generated.astype(np.float64))


def unpaired_cosine(
  real: Float[np.ndarray, 'pairs dim'],
  generated: Float[np.ndarray, 'pairs dim'],
  partner: Int[np.ndarray, 'pairs'] | None = None,
) -> float:
  """Mean cosine over every real and generated image that are no pair.

  The floor under `paired_cosines`: where both are equal, the model tells nothing apart.

  Args:
    partner: a number of the real image of each row, where several rows share one; None: all differ.
  """
  real, generated = real.astype(np.float64), generated.astype(np.float64)
  code = np.arange(len(real)) if partner is None else np.unique(partner, return_inverse=True)[1]
  # The sum over all combinations is one dot product of sums; so is that of each partner's own.
  total = real.sum(axis=0) @ generated.sum(axis=0)
  groups = int(code.max()) + 1
  by_real, by_generated = np.zeros((groups, real.shape[1])), np.zeros((groups, real.shape[1]))
  np.add.at(by_real, code, real)
  np.add.at(by_generated, code, generated)
  own = np.einsum('ij,ij->', by_real, by_generated)
  count = len(real) ** 2 - int((np.bincount(code) ** 2).sum())
  if not count:
    raise ValueError('unpaired_cosine: needs at least two different partners')
  return float((total - own) / count)


def separability_auc(
  real: Float[np.ndarray, 'real dim'],
  generated: Float[np.ndarray, 'generated dim'],
  real_pair: Sequence[str],
  generated_pair: Sequence[str],
  *,
  folds: int = 5,
  seed: int = 0,
) -> float:
  """How well a linear probe tells generated from real: mean AUC over held-out folds.

  0.5: it cannot; 1: without a mistake. A pair stays in one fold: with its partner in the train
  folds, the probe would know an image by its content.

  Args:
    real_pair, generated_pair: a name of each row's pair.
  """
  x = np.concatenate([real, generated]).astype(np.float64)
  y = np.repeat([0, 1], [len(real), len(generated)])
  _, group = np.unique([*real_pair, *generated_pair], return_inverse=True)
  folds = min(folds, int(group.max()) + 1)
  if folds < 2:
    raise ValueError('separability_auc: needs at least two pairs')
  scores = []
  # here: scikit-learn takes seconds to import, and commands that fit no probe do without
  from sklearn.linear_model import LogisticRegression
  from sklearn.metrics import roc_auc_score
  from sklearn.model_selection import GroupKFold
  from sklearn.pipeline import make_pipeline
  from sklearn.preprocessing import StandardScaler

  for train, test in GroupKFold(folds, shuffle=True, random_state=seed).split(x, y, group):
    if len(np.unique(y[train])) < 2 or len(np.unique(y[test])) < 2:
      continue  # rows without a partner may leave a fold with one modality
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=300))
    scores.append(roc_auc_score(y[test], probe.fit(x[train], y[train]).decision_function(x[test])))
  if not scores:
    raise ValueError('separability_auc: no fold holds both modalities; give more pairs')
  return float(np.mean(scores))


def alignment(
  x: Float[np.ndarray, 'pairs dim'], y: Float[np.ndarray, 'pairs dim'], power: float = 2.0
) -> float:
  """Mean ||x_i - y_i||^power over matching rows; 0 is perfect.

  Source: Wang & Isola 2020, arXiv 2005.10242, equation 4.
  """
  distance = np.linalg.norm(x.astype(np.float64) - y.astype(np.float64), axis=1)
  return float(np.mean(distance**power))


def uniformity(x: Float[np.ndarray, 'rows dim'], t: float = 2.0, block: int = 1024) -> float:
  """Log of the mean of exp(-t ||x_i - x_j||^2) over pairs i < j; lower is more evenly spread.

  0 when all rows are equal; about -4 at best for t = 2 (a sphere of high dimension).

  Source: Wang & Isola 2020, arXiv 2005.10242, equation 5.
  """
  x = x.astype(np.float64)
  n = len(x)
  if n < 2:
    raise ValueError('uniformity: needs at least two rows')
  square = np.einsum('ij,ij->i', x, x)
  total = 0.0
  for start in range(0, n, block):
    part = slice(start, start + block)
    distance = square[part, None] + square[None] - 2 * x[part] @ x.T
    total += np.exp(-t * np.maximum(distance, 0)).sum()
  return float(np.log((total - n) / (n * (n - 1))))  # the n pairs i = j each added one


def _mean(x: Float[np.ndarray, 'rows dim']) -> np.ndarray:
  return x.astype(np.float64).mean(axis=0)
