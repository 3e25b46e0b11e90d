"""The losses once more in plain float64 NumPy: loops and dense labels, from the formulas."""

from collections.abc import Callable

import numpy as np


def unit(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
  x = rng.normal(size=(rows, dim))
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def info_nce(query, key, scale, positives) -> float:
  """`positives[i]` lists the keys that query i matches; queries without one are left out."""
  losses = []
  for q, matches in zip(query, positives, strict=True):
    if len(matches):
      logits = scale * (key @ q)
      log_p = logits - np.log(np.sum(np.exp(logits)))
      losses.append(-np.mean(log_p[list(matches)]))
  return float(np.mean(losses)) if losses else 0.0


def matches(query_group, key_group) -> list[list[int]]:
  return [[j for j, k in enumerate(key_group) if k == q] for q in query_group]


def sigmoid(image, text, scale, bias, labels) -> float:
  """`labels` is 1 for a match and -1 for none: algorithm 1 of arXiv 2303.15343."""
  logits = scale * image @ text.T + bias
  return float(np.sum(np.log1p(np.exp(-labels * logits))) / len(image))


def alignment(generated, real, paired, tau, form, group=None, bias=None) -> float:
  """GMAIL's equation 1 on the rows that have a partner, their masked rows cut out beforehand."""
  rows = np.flatnonzero(paired)
  if not len(rows):
    return 0.0
  group = np.arange(len(real)) if group is None else np.asarray(group)

  def rivals(i):
    return [j for j in rows if j == i or group[j] != group[i]]

  def one_way(a, b):
    losses = []
    for i in rows:
      logits = np.array([a[i] @ b[j] / tau for j in rivals(i)])
      losses.append(np.log(np.sum(np.exp(logits))) - a[i] @ b[i] / tau)
    return float(np.mean(losses))

  if form == 'one_way':
    return one_way(generated, real)
  if form == 'symmetric':
    return (one_way(generated, real) + one_way(real, generated)) / 2
  if bias is None:
    bias = -np.log(max(1, len(rows) - 1))
  total = 0.0
  for i in rows:
    for j in rivals(i):
      logit = generated[i] @ real[j] / tau + bias
      total += np.log1p(np.exp(-logit if i == j else logit))
  return total / len(rows)


def gradients(fn: Callable[..., float], *args: np.ndarray | float) -> list[np.ndarray]:
  """Central differences of `fn` by every number of every argument, in float64."""
  arrays = [np.array(a, np.float64) for a in args]
  out = []
  for array in arrays:
    gradient = np.zeros_like(array)
    for index in np.ndindex(array.shape):
      kept, step = array[index], 1e-5
      values = []
      for sign in (1, -1):
        array[index] = kept + sign * step
        values.append(fn(*arrays))
      array[index] = kept
      gradient[index] = (values[0] - values[1]) / (2 * step)
    out.append(gradient)
  return out
