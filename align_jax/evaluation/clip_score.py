"""CLIPScore of captions: how near they are to their images, by an encoder of images and texts."""

import numpy as np
from jaxtyping import Float, Int

_WEIGHT = 2.5  # stretches the cosines of the paper's CLIP over [0, 1]; of another encoder as well


def clip_score(
  image: Float[np.ndarray, 'images dim'], caption: Float[np.ndarray, 'images dim']
) -> Float[np.ndarray, 'images']:
  """CLIPScore of each caption, `2.5 · max(cos, 0)`, in [0, 2.5].

  It needs no references. Scores under two encoders cannot be compared.

  Args:
    image, caption: unit-norm embeddings; row i of one belongs to row i of the other.

  Source: Hessel et al. 2021, arXiv 2104.08718, section 3.
  """
  return _WEIGHT * np.maximum(0.0, np.sum(image * caption, axis=1))


def ref_clip_score(
  image: Float[np.ndarray, 'images dim'],
  caption: Float[np.ndarray, 'images dim'],
  reference: Float[np.ndarray, 'references dim'],
  owner: Int[np.ndarray, 'references'],
) -> Float[np.ndarray, 'images']:
  """RefCLIPScore of each caption: CLIPScore and the nearest reference's cosine, harmonic mean.

  Args:
    image, caption: as in `clip_score`.
    reference: unit-norm embeddings of what people said.
    owner: of each reference, the row of its image. Every image has at least one.

  Source: Hessel et al. 2021, arXiv 2104.08718, section 3.
  """
  nearest = np.zeros(len(image), np.float64)  # what is below 0 counts as 0
  np.maximum.at(nearest, owner, np.sum(caption[owner] * reference, axis=1))
  score = clip_score(image, caption)
  total = score + nearest
  return np.where(total > 0, 2 * score * nearest / np.where(total > 0, total, 1.0), 0.0)
