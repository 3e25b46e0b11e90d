"""A trained track in two lines: images of any kind and texts in, embeddings out.

```py
encoder = align_jax.load('runs/aligned', track='generated')
vectors = encoder.embed_images(['cat.jpg', picture, array])  # float32 [3, dim], unit norm
```
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float, Int
from PIL import Image

from align_jax.answerer import Answerer, load_answerer, load_llava
from align_jax.config import build
from align_jax.data.images import ImageError, convert_picture, decode_picture
from align_jax.data.tokenizer import load_tokenizer
from align_jax.data.transforms import Transform, apply_to_picture
from align_jax.encoder import Encoder, in_batches, load_run
from align_jax.errors import UserError, require
from align_jax.evaluation import retrieval
from align_jax.interop.folder import find_folder, load_folder, read_folder
from align_jax.modality import Modality
from align_jax.models.dual_encoder import DualEncoder, DualEncoderConfig
from align_jax.models.flat import Params, Skeleton
from align_jax.models.text import TextConfig, TextTransformer
from align_jax.storage import open_path, read_bytes

# a picture, pixels (uint8, height x width x 3), a file's name or its bytes
AnyImage: TypeAlias = Image.Image | np.ndarray | str | os.PathLike | bytes
_TEXT_LENGTH = 128  # tokens, of a text tower that reads texts of any length
_TRANSFORM = ('resize', 'interpolation', 'short_side')  # fields of `config.data` about pixels


@dataclasses.dataclass(frozen=True)
class TrackEncoder:
  """One track of a model, see `align_jax.load`.

  Attributes:
    encoder: the model that both tracks are of.
    track: `real` or `generated`.
  """

  encoder: Encoder
  track: Modality

  def embed_images(self, images: Sequence[AnyImage]) -> Float[np.ndarray, 'n dim']:
    """Embeds images of any size.

    Args:
      images: pictures of Pillow, uint8 arrays, names of files, or the bytes of files.

    Returns: float32, unit norm.

    Raises:
      UserError: one that cannot be decoded, with its place in the list.
    """
    pixels = _pixels(images, self.encoder.transform)
    if not pixels:
      raise UserError('nothing to embed: the list of images is empty')
    return self.encoder.embed_images(np.stack(pixels), self.track)

  def embed_texts(self, texts: Sequence[str]) -> Float[np.ndarray, 'n dim']:
    """Embeds texts; float32, unit norm. What is longer than the model reads is cut."""
    return self.encoder.embed_texts(texts)


def load(spec: str, track: Modality = 'real') -> TrackEncoder:
  """Loads a model for use.

  Args:
    spec: the folder of a training run (`run:` may stand before it), or `hf:` and a Hugging Face
      folder or hub id of a CLIP or SigLIP.
    track: through which track images go. A Hugging Face folder holds one, and is `real`.

  Raises:
    UserError: no such folder, or a track that it does not hold.
  """
  if spec.startswith('hf:'):
    if track != 'real':
      raise UserError(f'{spec}: holds one track; leave track out')
    return TrackEncoder(_load_folder(spec.removeprefix('hf:')), track)
  return TrackEncoder(load_run(open_path(spec.removeprefix('run:'))), track)


@dataclasses.dataclass(frozen=True)
class MultimodalModel:
  """A model that answers questions about images, see `align_jax.load_multimodal`.

  Attributes:
    answerer: the model.
    track: that reads the images, `real` or `generated`.
  """

  answerer: Answerer
  track: Modality

  def answer(
    self, images: Sequence[AnyImage], questions: str | Sequence[str], **settings: Any
  ) -> list[str]:
    """Answers a question about each image.

    Args:
      images: pictures of Pillow, uint8 arrays, names of files, or the bytes of files.
      questions: one for each image, or one for all.
      settings: `system`, `most`, `beams`, `temperature`, `top_p`, `seed`, see `Answerer.answer`.

    Raises:
      UserError: an image that cannot be decoded, a number of questions that is not theirs.
    """
    pixels = _pixels(images, self.answerer.transform)
    if not pixels:
      return []
    asked = [questions] * len(pixels) if isinstance(questions, str) else list(questions)
    return self.answerer.answer(np.stack(pixels), asked, modality=self.track, **settings)


def load_multimodal(spec: str, track: Modality = 'real') -> MultimodalModel:
  """Loads a model that answers.

  Args:
    spec: the folder of a training run (`run:` may stand before it), or `hf:` and the folder or hub
      id of a LLaVA.
    track: through which track images go. A Hugging Face folder holds one, and is `real`.

  Raises:
    UserError: no such folder, a model that does not answer, or a track that it does not hold.
  """
  folder = spec.removeprefix('hf:')
  answerer = (
    load_llava(folder) if folder != spec else load_answerer(open_path(spec.removeprefix('run:')))
  )
  if track == 'generated' and answerer.config.image_lora is None:
    raise UserError(f'{spec}: holds one track; leave track out')
  return MultimodalModel(answerer, track)


def load_text_embedder(spec: str) -> Callable[[Sequence[str]], Float[np.ndarray, 'n dim']]:
  """Loads what embeds texts alone: that of a track, or a text tower such as MiniLM or BGE.

  Args:
    spec: as for `load`, or `hf:` and the folder of a `BertModel`.

  Returns: texts in, float32 of unit norm out; what is longer than the model reads is cut.

  Raises:
    UserError: no such folder, or one without texts.
  """
  if not spec.startswith('hf:'):
    return load(spec).embed_texts
  imported = read_folder(find_folder(spec.removeprefix('hf:')))
  if 'image' in imported.model:
    return load(spec).embed_texts
  if 'text' not in imported.model or 'tokenizer' not in imported.data:
    raise UserError(f'{spec}: embeds no texts; name the folder of a text model with its tokenizer')
  config = build(TextConfig, imported.model['text'], 'config.model.text')
  skeleton = Skeleton(lambda rngs: _TextTower(config, rngs))
  params = {k: jnp.asarray(v) for k, v in load_folder(imported, skeleton.shapes).items()}
  tokenizer = load_tokenizer(Path(imported.data['tokenizer']))
  length = min(_TEXT_LENGTH, config.length)

  @jax.jit
  def embed(params: Params, tokens: Int[Array, 'n length']) -> Float[Array, 'n dim']:
    x = skeleton.bind(params).text(tokens).astype(jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6)

  def embed_texts(texts: Sequence[str]) -> Float[np.ndarray, 'n dim']:
    return in_batches(functools.partial(embed, params), tokenizer.encode(texts, length))

  return embed_texts


class _TextTower(nnx.Module):
  """A text tower under the name that it has in a dual encoder."""

  def __init__(self, config: TextConfig, rngs: nnx.Rngs):
    self.text = TextTransformer(config, rngs)


def nearest(
  queries: Float[np.ndarray, 'q dim'], candidates: Float[np.ndarray, 'n dim'], count: int = 5
) -> tuple[Int[np.ndarray, 'q k'], Float[np.ndarray, 'q k']]:
  """The candidates of highest cosine for each query.

  Args:
    queries, candidates: unit-norm embeddings.
    count: how many; fewer where there are fewer candidates.

  Returns: their places, best first, and their cosines.

  Raises:
    UserError: no candidates, or a count below one.
  """
  require(len(candidates) > 0 and count > 0, 'nearest', 'needs candidates and a count from 1')
  return retrieval.nearest(queries, candidates, count)


def _pixels(images: Sequence[AnyImage], transform: Transform) -> list[np.ndarray]:
  rng = np.random.default_rng(0)  # the transform of evaluation draws nothing
  return [
    apply_to_picture(transform, open_picture(image, place), rng)
    for place, image in enumerate(images)
  ]


def open_picture(image: AnyImage, place: int = 0) -> Image.Image:
  """Opens what `embed_images` takes as an upright RGB picture.

  Args:
    image: a picture of Pillow, a uint8 array, the name of a file, or its bytes.
    place: its number in a list, for messages.

  Raises:
    UserError: it cannot be decoded, or the array is none of an image.
  """
  if isinstance(image, np.ndarray):
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
      raise UserError(
        f'image {place}: an array of {image.dtype} {image.shape}; give uint8 [height, width, 3]'
      )
    return Image.fromarray(image)
  try:
    if isinstance(image, Image.Image):
      return convert_picture(image)
    return decode_picture(image if isinstance(image, bytes) else read_bytes(image))
  except FileNotFoundError as error:
    raise UserError(f'image {place}: no file {image!s}') from error
  except ImageError as error:
    raise UserError(f'image {place}: cannot be decoded ({error.reason})') from error


def _load_folder(name: str) -> Encoder:
  imported = read_folder(find_folder(name))
  if not {'image', 'text'} <= imported.model.keys():
    raise UserError(
      f'hf:{name}: a {imported.architecture.name} is one tower; images and texts need both'
    )
  if 'tokenizer' not in imported.data:
    raise UserError(f'hf:{name}: has no tokenizer; copy its tokenizer files there')
  config = build(DualEncoderConfig, imported.model, 'config.model')
  skeleton = Skeleton(lambda rngs: DualEncoder(config, rngs))
  transform = Transform(
    config.image_size, **{k: v for k, v in imported.data.items() if k in _TRANSFORM}
  )
  return Encoder(
    config,
    load_folder(imported, skeleton.shapes),
    load_tokenizer(Path(imported.data['tokenizer'])),
    transform,
    imported.data['length'],
  )
