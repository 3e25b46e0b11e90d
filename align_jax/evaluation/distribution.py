"""How a set of embeddings lies, and how it lies to another set. Pure NumPy, float64, in blocks.

Every number is of the embeddings of one encoder: those of another one cannot be compared with it.
Most depend on how many rows there are, so compare only what was measured on equally many.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

BLOCK = 1 << 23  # distances held at once: 64 MiB
# Squared distances closer than this, relative to the largest squared lengths, count as equal:
# 10,000 times the rounding of float64, so that a copy of a point lies on it.
_TIE = 1e-12


@dataclasses.dataclass(frozen=True)
class Manifold:
  """How far two sets cover each other, by balls around points that reach their k-th neighbour.

  Attributes:
    precision: share of generated points inside a ball of a real one, in [0, 1].
    recall: share of real points inside a ball of a generated one, in [0, 1].
    density: how many real balls a generated point lies in, over k: about 1 for equal
      distributions, above 1 where the generated lie where the real ones are dense.
    coverage: share of real balls that hold a generated point, in [0, 1].
  """

  precision: float
  recall: float
  density: float
  coverage: float


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Everything that is measured of a generated set against a real one.

  Attributes:
    real_count, generated_count: rows.
    dispersion: of the generated, see `dispersion`.
    manifold: see `Manifold`.
    frechet: see `frechet_distance`.
    kernel: see `kernel_distance`.
    notes: what keeps a number from being taken at its word; an attribute that there are too few
      rows for is None, and a note says so.
  """

  real_count: int
  generated_count: int
  dispersion: float | None
  manifold: Manifold | None
  frechet: float | None
  kernel: float | None
  notes: tuple[str, ...] = ()


def compare(
  real: Float[np.ndarray, 'real dim'], generated: Float[np.ndarray, 'generated dim'], k: int = 5
) -> Comparison:
  """Measures a generated set against a real one, and says what there are too few rows for.

  Args:
    real, generated: unit vectors of one encoder.
    k: neighbours that a ball reaches.

  Raises:
    ValueError: embeddings that are not finite.
  """
  for name, x in (('real', real), ('generated', generated)):
    if not np.isfinite(x).all():
      raise ValueError(f'compare: {name} embeddings are not finite')
  fewer, dim = min(len(real), len(generated)), real.shape[1]
  notes = []
  if fewer <= k:
    notes.append(f'{fewer} rows: too few for balls that reach {k} neighbours')
  if fewer < 2:
    notes.append(f'{fewer} rows: too few for a distance between distributions')
  elif fewer <= dim:
    notes.append(
      f'Fréchet distance: with {fewer} rows in {dim} dimensions the covariance has rank '
      f'{fewer - 1} at most, and the distance comes out too large'
    )
  elif fewer < 10 * dim:
    notes.append(
      f'Fréchet distance: {fewer} rows in {dim} dimensions, fewer than ten a dimension, make it '
      'come out too large'
    )
  return Comparison(
    real_count=len(real),
    generated_count=len(generated),
    dispersion=dispersion(generated) if len(generated) > 1 else None,
    manifold=manifold(real, generated, k) if fewer > k else None,
    frechet=frechet_distance(real, generated) if fewer > 1 else None,
    kernel=kernel_distance(real, generated) if fewer > 1 else None,
    notes=tuple(notes),
  )


def dispersion(x: Float[np.ndarray, 'rows dim']) -> float:
  """Mean cosine distance, 1 − cosine, over all pairs of different rows, in [0, 2].

  0: all point one way; 1: evenly spread over the sphere. Unbiased, so rows may be few; of rows
  that fall into categories it says mostly how far apart the categories lie, see
  `category_dispersion`.

  Raises:
    ValueError: fewer than two rows.
  """
  if len(x) < 2:
    raise ValueError('dispersion: needs at least two rows')
  return float(_dispersions(_unit(x), np.zeros(len(x), np.int64), 1)[0])


def category_dispersion(
  x: Float[np.ndarray, 'rows dim'], categories: Sequence[str]
) -> dict[str, float]:
  """Dispersion of the rows of each category that has two rows or more.

  Args:
    categories: of each row.
  """
  names, code = np.unique(np.asarray(categories, object).astype(str), return_inverse=True)
  values = _dispersions(_unit(x), code, len(names))
  return {
    str(name): float(value) for name, value in zip(names, values, strict=True) if np.isfinite(value)
  }


def manifold(
  real: Float[np.ndarray, 'real dim'],
  generated: Float[np.ndarray, 'generated dim'],
  k: int = 5,
  *,
  block: int = BLOCK,
) -> Manifold:
  """Precision, recall, density and coverage by nearest neighbours, Euclidean.

  The ball of a point reaches its k-th neighbour within its own set, itself not counted; a point on
  the rim is inside. Of two samples of one distribution, density is 1 on average and coverage

    1 − (N−1)⋯(N−k) / ((M+N−1)⋯(M+N−k))   of N real and M generated points.

  Small samples: balls shrink as points grow many, so all four depend on how many there are of both
  kinds; one outlier among the real has a ball wide enough to flatter precision, and one among the
  generated flatters recall (what density and coverage were made to mend). Below some hundred
  points of each, or with unlike numbers, read nothing into small differences.

  Args:
    k: Naeem et al. use 5, Kynkäänniemi et al. 3.
    block: distances held at once, 8 bytes each.

  Raises:
    ValueError: k or fewer rows in one of the sets.

  Source: precision and recall: Kynkäänniemi et al. 2019, arXiv 1904.06991, section 2; density and
  coverage: Naeem et al. 2020, arXiv 2002.09797, equations 3 to 5 and lemma 2.
  """
  if k < 1 or min(len(real), len(generated)) <= k:
    raise ValueError(f'manifold: needs more than k = {k} rows of each kind, and k at least 1')
  centre = real.astype(np.float64).mean(axis=0)  # nearer to 0 a difference of squares loses less
  x, y = real - centre, generated - centre
  slack = _TIE * (np.einsum('ij,ij->i', x, x).max() + np.einsum('ij,ij->i', y, y).max())
  of_real, of_generated = _radii(x, k, block) + slack, _radii(y, k, block) + slack
  precise = np.zeros(len(y), bool)
  recalled = covered = inside = 0
  for start, square in _squares(x, y, block):
    near = square <= of_real[start : start + len(square), None]
    inside += int(near.sum())
    covered += int(near.any(axis=1).sum())
    precise |= near.any(axis=0)
    recalled += int((square <= of_generated).any(axis=1).sum())
  return Manifold(
    precision=float(precise.mean()),
    recall=recalled / len(x),
    density=inside / (k * len(y)),
    coverage=covered / len(x),
  )


def frechet_distance(
  real: Float[np.ndarray, 'real dim'], generated: Float[np.ndarray, 'generated dim']
) -> float:
  """Fréchet distance on the encoder's features, not FID: squared, between two fitted Gaussians.

    ‖m − n‖² + tr(S + T − 2 (S T)^½)   with means m, n and covariances S, T.

  FID is the same on the features of one Inception network; the numbers of another encoder share
  neither its scale nor its literature.

  Small samples: the covariance of n rows has rank n − 1 at most. With no more rows than dimensions
  it is deficient; the distance exists, but even two samples of one distribution lie far apart. The
  excess falls as 1/n: compare only at equal numbers, best ten rows a dimension and more.

  Raises:
    ValueError: fewer than two rows in one of the sets.

  Source: Heusel et al. 2017, arXiv 1706.08500, equation 6; the bias: Chong & Forsyth 2020,
  arXiv 1911.07023.
  """
  if min(len(real), len(generated)) < 2:
    raise ValueError('frechet_distance: needs at least two rows of each kind')
  means = [x.astype(np.float64).mean(axis=0) for x in (real, generated)]
  roots = []
  trace = 0.0
  for x, mean in zip((real, generated), means, strict=True):
    centred = x - mean
    trace += float(np.einsum('ij,ij->', centred, centred)) / (len(x) - 1)
    values, vectors = np.linalg.eigh(centred.T @ centred / (len(x) - 1))
    roots.append((vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T)
  # tr (S T)^½ is the sum of the singular values of S^½ T^½: exact also where S or T is singular
  both = float(np.linalg.svd(roots[0] @ roots[1], compute_uv=False).sum())
  return max(0.0, float(((means[0] - means[1]) ** 2).sum()) + trace - 2 * both)


def kernel_distance(
  real: Float[np.ndarray, 'real dim'],
  generated: Float[np.ndarray, 'generated dim'],
  *,
  block: int = BLOCK,
) -> float:
  """Squared maximum mean discrepancy with the kernel (x·y + 1)³, as KID on our encoder's features.

  KID's kernel divides x·y by the dimension, which suits features whose length grows with it; unit
  vectors need no division. Unbiased whatever the number of rows, so it may come out below 0; what
  it needs rows for is its spread alone.

  Args:
    block: values of the kernel held at once, 8 bytes each.

  Raises:
    ValueError: fewer than two rows in one of the sets.

  Source: Bińkowski et al. 2018, arXiv 1801.01401, section 4; Gretton et al. 2012, lemma 6.
  """
  x, y = real.astype(np.float64), generated.astype(np.float64)
  if min(len(x), len(y)) < 2:
    raise ValueError('kernel_distance: needs at least two rows of each kind')
  total = 0.0
  for z in (x, y):
    own = float(((np.einsum('ij,ij->i', z, z) + 1) ** 3).sum())  # i with itself: not counted
    total += (_kernel_sum(z, z, block) - own) / (len(z) * (len(z) - 1))
  return total - 2 * _kernel_sum(x, y, block) / (len(x) * len(y))


def _kernel_sum(x: np.ndarray, y: np.ndarray, block: int) -> float:
  step = max(1, block // len(y))
  total = 0.0
  for i in range(0, len(x), step):
    value = x[i : i + step] @ y.T + 1
    total += float((value * value * value).sum())  # a power of 3 is slower by far
  return total


def _radii(x: Float[np.ndarray, 'rows dim'], k: int, block: int) -> Float[np.ndarray, 'rows']:
  """Squared distance of each row to its k-th nearest other row."""
  out = np.empty(len(x))
  for start, square in _squares(x, x, block):
    row = np.arange(len(square))
    square[row, start + row] = np.inf
    out[start : start + len(square)] = np.partition(square, k - 1, axis=1)[:, k - 1]
  return out


def _squares(
  x: Float[np.ndarray, 'rows dim'], y: Float[np.ndarray, 'columns dim'], block: int
) -> Iterator[tuple[int, Float[np.ndarray, 'some columns']]]:
  """Yields the first row of each block and the squared distances of its rows to all of y."""
  length = np.einsum('ij,ij->i', y, y)
  step = max(1, block // len(y))
  for start in range(0, len(x), step):
    part = x[start : start + step]
    square = part @ y.T
    square *= -2
    square += length
    square += np.einsum('ij,ij->i', part, part)[:, None]
    yield start, np.maximum(square, 0, out=square)


def _dispersions(
  x: Float[np.ndarray, 'rows dim'], code: Int[np.ndarray, 'rows'], groups: int
) -> Float[np.ndarray, 'groups']:
  """1 − the mean cosine over the pairs of each group; not a number where it has no pair."""
  total = np.zeros((groups, x.shape[1]))
  np.add.at(total, code, x)
  own = np.bincount(code, np.einsum('ij,ij->i', x, x), groups)  # a row with itself
  count = np.bincount(code, minlength=groups).astype(np.float64)
  pairs = count * (count - 1)
  cosines = np.einsum('ij,ij->i', total, total) - own
  return 1 - np.divide(cosines, pairs, out=np.full(groups, np.nan), where=pairs > 0)


def _unit(x: Float[np.ndarray, 'rows dim']) -> Float[np.ndarray, 'rows dim']:
  x = x.astype(np.float64)
  return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float64).tiny)
