"""Zero-shot classification: images named by the nearest class description."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from align_jax.errors import require
from align_jax.evaluation.features import Features, ImageTextEncoder, single_labels
from align_jax.evaluation.retrieval import first_right_rank

# A few of the 80 templates that CLIP published for ImageNet; these carry most of the gain.
PHOTO = (
  'a photo of a {}',
  'a photo of the {}',
  'a photo of one {}',
  'a close-up photo of a {}',
  'a good photo of a {}',
  'a bad photo of the {}',
  'a photo of a small {}',
  'a photo of a large {}',
  'a blurry photo of a {}',
  'a drawing of a {}',
  'itap of a {}',
  'art of the {}',
)
# Short, as the captions of drawn scenes are; colours because a caption names them.
SCENE = (
  '{}',
  'a {}',
  'one {}',
  'a picture of a {}',
  *(f'a {colour} {{}}' for colour in ('red', 'orange', 'yellow', 'green', 'blue', 'purple')),
)
TEMPLATES = {'photo': PHOTO, 'scene': SCENE}


@dataclasses.dataclass(frozen=True)
class Frequency:
  """Which classes are rare in training.

  Attributes:
    counts: real training images of each class.
    common: from so many images on a class is common, below it is rare.
    frequent: from so many images on it is frequent.

  Source: Gupta et al. 2019, arXiv 1908.03195 (LVIS): rare 1 to 10, common 11 to 100 images.
  """

  counts: Mapping[str, int]
  common: int = 11
  frequent: int = 101

  GROUPS: ClassVar[tuple[str, ...]] = ('frequent', 'common', 'rare')

  def __post_init__(self) -> None:
    require(
      1 <= self.common <= self.frequent,
      'frequency',
      f'common from {self.common} and frequent from {self.frequent} images do not go upwards',
    )

  def group(self, name: str) -> str:
    count = self.counts.get(name, 0)
    return 'frequent' if count >= self.frequent else 'common' if count >= self.common else 'rare'


def class_vectors(
  encoder: ImageTextEncoder, names: Sequence[str], templates: Sequence[str] = PHOTO
) -> Float[np.ndarray, 'classes dim']:
  """Returns one unit vector a class: the mean over the templates' unit vectors, renormalised.

  Args:
    names: class names.
    templates: each with one `{}` for the name.

  Source: Radford et al. 2021, arXiv 2103.00020, section 3.1.4 (ensembling in embedding space).
  """
  prompts = [template.format(name) for name in names for template in templates]
  vectors = np.asarray(encoder.embed_texts(prompts), np.float32)
  mean = vectors.reshape(len(names), len(templates), -1).mean(axis=1)
  return mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)


def classify(
  features: Features,
  names: Sequence[str],
  vectors: Float[np.ndarray, 'classes dim'],
  *,
  ks: Sequence[int] = (1, 5),
  frequency: Frequency | None = None,
) -> dict[str, float]:
  """Accuracy of naming each image by its nearest class vector.

  Only images with exactly one label among `names` are used: several labels leave no one right
  answer. A tie counts against the model (see `retrieval.first_right_rank`).

  Args:
    features: of the images.
    names, vectors: of the classes, see `class_vectors`.
    ks: for which k to count the right class among the k nearest.
    frequency: groups of classes that are told apart besides.

  Returns:
    `top1`, `top5`: shares in [0, 1]; `balanced`: mean over the classes of their own top-1 share,
    so that frequent classes do not outvote rare ones; `images`: how many were used. With
    `frequency` also `frequent`, `common`, `rare`: the balanced share of the classes of each group,
    for groups that have images.

  Raises:
    ValueError: no image has exactly one label.
  """
  place = {name: i for i, name in enumerate(names)}
  used = [(row, name) for row, name in zip(*single_labels(features), strict=True) if name in place]
  if not used:
    raise ValueError('zero-shot: no image with exactly one label')
  rows = np.asarray([row for row, _ in used])
  target = np.asarray([place[name] for _, name in used])
  ranks = first_right_rank(
    features.image[rows], vectors, [target[i : i + 1] for i in range(len(rows))]
  )
  out = {f'top{k}': float(np.mean(ranks <= k)) for k in ks}
  each = {names[c]: float(np.mean(ranks[target == c] == 1)) for c in np.unique(target)}
  out |= {'balanced': float(np.mean(list(each.values()))), 'images': float(len(rows))}
  if frequency is not None:
    for group in Frequency.GROUPS:
      shares = [share for name, share in each.items() if frequency.group(name) == group]
      out |= {group: float(np.mean(shares))} if shares else {}
  return out
