"""A track as an encoder of `mteb`, so that its tasks judge it: texts, images, or both.

  import align_jax, mteb
  from align_jax.mteb_encoder import MtebEncoder

  encoder = MtebEncoder(align_jax.load('runs/gmail', track='generated'), name='me/gmail')
  mteb.evaluate(encoder, mteb.get_tasks(tasks=['Flickr30kT2IRetrieval']))

`pip install 'align_jax[mteb]'` brings mteb, which brings PyTorch; the model itself stays in JAX.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from align_jax.api import TrackEncoder, open_picture
from align_jax.data.transforms import apply_to_picture
from align_jax.errors import UserError

try:
  from mteb.models.abs_encoder import AbsEncoder
  from mteb.models.model_meta import ModelMeta, ScoringFunction
except ModuleNotFoundError as error:
  raise UserError(
    f"align_jax.mteb_encoder: {error.name} is missing; pip install 'align_jax[mteb]'"
  ) from error

# Rows embedded at once, the encoder's largest batch: what is left over of mteb's own batches, of 32
# unless told otherwise, would be padded to it again and again.
_ROWS = 256


def _regroup(batches: Iterable[dict[str, list[Any]]]) -> Iterator[dict[str, list[Any]]]:
  """Yields the same rows in batches of `_ROWS`, the last of fewer."""
  names: tuple[str, ...] = ()
  rows: list[tuple[Any, ...]] = []
  for batch in batches:
    if rows and names != tuple(batch):  # no row is joined to another's text or image
      yield _columns(names, rows)
      rows = []
    names = tuple(batch)
    rows += zip(*batch.values(), strict=True)
    while len(rows) >= _ROWS:
      yield _columns(names, rows[:_ROWS])
      rows = rows[_ROWS:]
  if rows:
    yield _columns(names, rows)


def _columns(names: tuple[str, ...], rows: list[tuple[Any, ...]]) -> dict[str, list[Any]]:
  return {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


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

    Returns: float32, unit norm. Of a text and an image together the sum of both unit vectors,
      brought to unit norm: both weigh the same. (mteb's own wrapper of CLIP adds what the towers
      give, so there the longer vector weighs more.)

    Raises:
      UserError: nothing to embed, or a batch with neither.
    """
    del kwargs
    parts = [self._embed(batch) for batch in _regroup(self._read(inputs))]
    if not parts:
      raise UserError('mteb: nothing to embed')
    return np.concatenate(parts)

  def _read(self, inputs: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, list[Any]]]:
    """Yields what the model reads of each batch, pictures in the model's own small size."""
    transform = self._encoder.encoder.transform
    rng = np.random.default_rng(0)  # the transform of evaluation draws nothing
    place = 0
    for batch in inputs:
      found: dict[str, list[Any]] = {}
      if 'text' in batch:
        found['text'] = list(batch['text'])
      if 'image' in batch:
        found['image'] = [
          apply_to_picture(transform, open_picture(image, place + row), rng)
          for row, image in enumerate(batch['image'])
        ]
      if not found:
        raise UserError(f'mteb: a batch of {", ".join(batch)}; this model reads text and image')
      place += max(map(len, found.values()))
      yield found

  def _embed(self, batch: Mapping[str, list[Any]]) -> np.ndarray:
    model, found = self._encoder.encoder, []
    if 'text' in batch:
      found.append(model.embed_texts(batch['text']))
    if 'image' in batch:
      found.append(model.embed_images(np.stack(batch['image']), self._encoder.track))
    if len(found) == 1:
      return found[0]
    fused = found[0] + found[1]
    return fused / np.maximum(np.linalg.norm(fused, axis=1, keepdims=True), 1e-12)
