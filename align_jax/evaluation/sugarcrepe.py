"""SugarCrepe and SugarCrepe++: is the right caption nearer than one that is nearly the same?

Source: Hsieh et al. 2023, arXiv 2306.14610; Dumpala et al. 2024, arXiv 2406.11171, section 3.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from align_jax.data.pair_sources.sugarcrepe import CATEGORIES, SugarCrepeSource
from align_jax.evaluation.contents import ContentVectors, Embed, Role

# what the authors of SaHa tell their model of a caption; images get no instruction
INSTRUCTION = 'Find me an image that matches the given caption:'


def evaluate(
  source: SugarCrepeSource,
  embed: Embed,
  *,
  instruction: str = INSTRUCTION,
  image_role: Role = 'candidate',
  caption_role: Role = 'query',
  batch_size: int = 64,
) -> dict[str, float]:
  """Accuracy of every category, and its averages.

  Every caption and image is embedded once. Equal similarities count against the model, as in the
  published scripts.

  Args:
    instruction: of captions.
    image_role, caption_role: how the two are embedded.

  Returns: shares in [0, 1]. SugarCrepe: `CATEGORY`, `replace`, `swap`, `add` (means over their
    categories) and `average` (over all categories). SugarCrepe++: `itt.CATEGORY` and
    `itt.average`, both right captions are nearer to the image than the wrong one; `tot.CATEGORY`
    and `tot.average`, they are nearer to each other than either is to the wrong one.

  Raises:
    UserError: embeddings that are not finite, or images that cannot be read.
  """
  images = ContentVectors(embed, image_role, batch_size, source.spec)
  captions = ContentVectors(embed, caption_role, batch_size, source.spec)
  image_rows, caption_rows, categories = [], [], []
  for index in range(len(source)):
    record = source[index]
    image_rows.append(images.row(record.query.id, '', (record.query,)))
    caption_rows.append([captions.row(c.id, instruction, (c,)) for c in record.candidates])
    categories.append(record.task)
  image_vectors = images.vectors()[image_rows]
  caption_vectors = captions.vectors()[np.asarray(caption_rows)]
  right = caption_vectors[:, :-1]
  wrong = caption_vectors[:, -1]
  hits = {'itt': image_hits(image_vectors, right, wrong)}
  if source.plus_plus:
    hits['tot'] = text_hits(right[:, 0], right[:, 1], wrong)
  out: dict[str, float] = {}
  for name, values in hits.items():
    each = {
      c: float(values[[c == category for category in categories]].mean())
      for c in CATEGORIES
      if c in categories
    }
    prefix = f'{name}.' if source.plus_plus else ''
    out |= {f'{prefix}{key}': value for key, value in summarise(each, source.plus_plus).items()}
  return out


def image_hits(
  image: Float[np.ndarray, 'n dim'],
  right: Float[np.ndarray, 'n captions dim'],
  wrong: Float[np.ndarray, 'n dim'],
) -> np.ndarray:
  """Returns `[n]` bool: every right caption is nearer to the image than the wrong one."""
  near = np.einsum('nd,ncd->nc', image, right)
  far = np.einsum('nd,nd->n', image, wrong)
  return (near > far[:, None]).all(axis=1)


def text_hits(
  first: Float[np.ndarray, 'n dim'],
  second: Float[np.ndarray, 'n dim'],
  wrong: Float[np.ndarray, 'n dim'],
) -> np.ndarray:
  """Returns `[n]` bool: two captions are nearer to each other than either is to the wrong one."""
  near = np.einsum('nd,nd->n', first, second)
  far = np.maximum(np.einsum('nd,nd->n', first, wrong), np.einsum('nd,nd->n', second, wrong))
  return near > far


def summarise(each: Mapping[str, float], plus_plus: bool = False) -> dict[str, float]:
  """Adds the averages to accuracies by category; every category counts alike."""
  out = dict(each)
  for group in () if plus_plus else ('replace', 'swap', 'add'):
    members = [value for name, value in each.items() if name.startswith(f'{group}_')]
    if members:
      out[group] = float(np.mean(members))
  return {**out, 'average': float(np.mean(list(each.values())))}


def table(scores: Mapping[str, float]) -> str:
  """Returns what `evaluate` gave as a Markdown table, in percent."""
  rows = [f'| {name} | {100 * value:.1f} |' for name, value in scores.items()]
  return '\n'.join(['| SugarCrepe | accuracy (%) |', '| --- | ---: |', *rows]) + '\n'
