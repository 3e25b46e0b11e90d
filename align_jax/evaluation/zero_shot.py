"""Zero-shot classification: images named by the nearest class description."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

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
) -> dict[str, float]:
  """Accuracy of naming each image by its nearest class vector.

  Only images with exactly one label among `names` are used: several labels leave no one right
  answer. A tie counts against the model (see `retrieval.first_right_rank`).

  Returns:
    `top1`, `top5`: shares in [0, 1]; `balanced`: mean over the classes of their own top-1 share,
    so that frequent classes do not outvote rare ones; `images`: how many were used.

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
  each = [float(np.mean(ranks[target == c] == 1)) for c in np.unique(target)]
  return out | {'balanced': float(np.mean(each)), 'images': float(len(rows))}
