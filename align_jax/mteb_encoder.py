"""A track as an encoder of `mteb`, so that its tasks judge it: texts, images, or both.

  import align_jax, mteb
  from align_jax.mteb_encoder import MtebEncoder

  encoder = MtebEncoder(align_jax.load('runs/gmail', track='generated'), name='me/gmail')
  mteb.evaluate(encoder, mteb.get_tasks(tasks=['Flickr30kT2IRetrieval']))

`pip install 'align_jax[mteb]'` brings mteb, which brings PyTorch; the model itself stays in JAX.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from align_jax.api import TrackEncoder
from align_jax.errors import UserError

try:
  from mteb.models.abs_encoder import AbsEncoder
  from mteb.models.model_meta import ModelMeta, ScoringFunction
except ModuleNotFoundError as error:
  raise UserError(
    f"align_jax.mteb_encoder: {error.name} is missing; pip install 'align_jax[mteb]'"
  ) from error


class MtebEncoder(AbsEncoder):
  """Embeds what mteb's tasks hand over; NumPy out, compared by cosine.

  Attributes:
    mteb_model_meta: what mteb files the results under.
  """

  def __init__(self, encoder: TrackEncoder, name: str, revision: str = 'local'):
    """Wraps a track.

    Args:
      encoder: of `align_jax.load`.
      name: `OWNER/NAME`, of the results.
      revision: of the results; another one for other weights, or mteb takes the old results.

    Raises:
      UserError: a name of another form.
    """
    if name.count('/') != 1 or not all(name.split('/')):
      raise UserError(f'name: {name!r}; mteb wants OWNER/NAME')
    self._encoder = encoder
    model = encoder.encoder
    self.mteb_model_meta = ModelMeta(
      loader=None,
      name=name,
      revision=revision,
      release_date=None,
      languages=None,
      n_parameters=model.parameters,
      memory_usage_mb=None,
      max_tokens=model.length,
      embed_dim=model.dim,
      license=None,
      open_weights=None,
      public_training_code=None,
      public_training_data=None,
      framework=['JAX'],
      similarity_fn_name=ScoringFunction.COSINE,
      use_instructions=False,
      training_datasets=None,
      modalities=['text', 'image'],
    )

  def encode(
    self, inputs: Iterable[Mapping[str, Any]], **kwargs: Any
  ) -> Float[np.ndarray, 'n dim']:
    """Embeds batches of mteb.

    Args:
      inputs: batches with a list of strings under `text`, of pictures under `image`, or both.
      kwargs: what mteb says of the task; not used, since CLIPs take no instruction.

    Returns: float32, unit norm. Of a text and an image together the sum of both, as mteb's own
      wrapper of CLIP has it, brought to unit norm.

    Raises:
      UserError: a batch with neither.
    """
    del kwargs
    parts = [self._embed(batch) for batch in inputs]
    return np.concatenate(parts)

  def _embed(self, batch: Mapping[str, Any]) -> np.ndarray:
    found = []
    if 'text' in batch:
      found.append(self._encoder.embed_texts(list(batch['text'])))
    if 'image' in batch:
      found.append(self._encoder.embed_images(batch['image']))
    if not found:
      raise UserError(f'mteb: a batch of {", ".join(batch)}; this model reads text and image')
    if len(found) == 1:
      return found[0]
    fused = found[0] + found[1]
    return fused / np.maximum(np.linalg.norm(fused, axis=1, keepdims=True), 1e-12)
