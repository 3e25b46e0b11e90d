"""A trained dual encoder for use: images and texts in, unit-norm NumPy embeddings out."""

import copy
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, UInt8

from align_jax.config import build
from align_jax.data.tokenizer import Tokenizer, load_tokenizer
from align_jax.data.transforms import Transform
from align_jax.errors import UserError
from align_jax.modality import Modality
from align_jax.models.dual_encoder import DualEncoder, DualEncoderConfig
from align_jax.models.flat import Params, Skeleton, count
from align_jax.parallel.rows import per_device, place_params, place_rows, ways
from align_jax.storage import AnyPath
from align_jax.train.checkpoints import load_params
from align_jax.train.config import TrainConfig
from align_jax.train.run_config import read_run_config

# Any number of inputs is cut and padded to batches of these sizes: each tower compiles at most once
# for each, and a single picture does not cost as much as many.
_SIZES = (8, 32, 256)


class Encoder:
  """Embeds images of either modality and texts.

  Attributes:
    transform: how an image must be prepared for `embed_images`.
    image_size: side of the images, pixels.
    tokenizer, length: of texts; tokens of each.
    dim, parameters: of the embeddings; how many numbers the model has.
  """

  def __init__(
    self,
    config: DualEncoderConfig,
    params: Params,
    tokenizer: Tokenizer,
    transform: Transform,
    length: int,
    mesh: Mesh | None = None,
  ):
    """`mesh`: of devices that share the work, each with all parameters; None: the default one."""
    self.transform = transform
    self.image_size = transform.image_size
    self.dual_projection = config.projection == 'dual'
    self.tokenizer, self.length = tokenizer, length
    self.dim, self.parameters = config.dim, count(params)
    self._params, self._mesh = place_params(params, mesh), mesh
    skeleton = Skeleton(lambda rngs: DualEncoder(config, rngs))

    @functools.partial(jax.jit, static_argnums=(2, 3))
    def image(
      params: Params, images: jax.Array, modality: str, projection: str | None
    ) -> jax.Array:
      def run(params: Params, images: jax.Array) -> jax.Array:
        return skeleton.bind(params).encode_image(images, modality, projection)

      return per_device(run, mesh)(params, images)

    @jax.jit
    def text(params: Params, tokens: jax.Array) -> jax.Array:
      return per_device(lambda p, x: skeleton.bind(p).encode_text(x), mesh)(params, tokens)

    self._image, self._text = image, text

  def with_params(self, params: Params) -> 'Encoder':
    """The same encoder with other parameters; nothing is compiled anew."""
    other = copy.copy(self)
    other._params = place_params(params, self._mesh)
    return other

  def embed_images(
    self,
    images: UInt8[np.ndarray, 'n height width 3'],
    modality: Modality = 'real',
    projection: Modality | None = None,
  ) -> Float[np.ndarray, 'n dim']:
    """Embeds images that went through `transform`.

    Args:
      images: uint8.
      modality: which track: `real`, the plain backbone, or `generated`, with its adapter.
      projection: which projection head; None: that of the modality. The paper's second reading of
        inference is `modality='generated', projection='real'` on real images.
    """
    return in_batches(
      lambda b: self._image(self._params, b, modality, projection), images, self._mesh
    )

  def embed_texts(self, texts: Sequence[str]) -> Float[np.ndarray, 'n dim']:
    """Embeds texts of any length; what is longer than the model reads is cut."""
    tokens = self.tokenizer.encode(texts, self.length)
    return in_batches(lambda b: self._text(self._params, b), tokens, self._mesh)


def in_batches(
  fn: Callable[[np.ndarray], jax.Array], rows: np.ndarray, mesh: Mesh | None = None
) -> np.ndarray:
  """Applies a compiled function to any number of rows, cut and padded to a few sizes.

  Args:
    fn: of rows; returns as many.
    rows: what it is applied to.
    mesh: of the devices that share the rows; the sizes are those of each.

  Raises:
    UserError: no rows.
  """
  if not len(rows):
    raise UserError('nothing to embed: the list of images or texts is empty')
  sizes = [size * ways(mesh) for size in _SIZES]
  out = []
  for start in range(0, len(rows), sizes[-1]):
    part = rows[start : start + sizes[-1]]
    size = next(size for size in sizes if size >= len(part))
    padded = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
    out.append(np.asarray(fn(place_rows(padded, mesh)))[: len(part)])
  return np.concatenate(out)


def make_encoder(
  config: TrainConfig, params: Params, tokenizer: Tokenizer, mesh: Mesh | None = None
) -> Encoder:
  """An encoder from a training config and parameters, for instance in the middle of training."""
  model = build(DualEncoderConfig, config.model_fields, 'config.model')
  return Encoder(model, params, tokenizer, eval_transform(config), config.data.length, mesh)


def eval_transform(config: TrainConfig) -> Transform:
  """What an image must go through before a model of this config embeds it."""
  return Transform(
    image_size=config.model['image']['image_size'],
    mode='eval',
    resize=config.data.resize,
    interpolation=config.data.interpolation,
    short_side=config.data.short_side,
  )


def load_run(workdir: AnyPath, *, step: int | None = None, mesh: Mesh | None = None) -> Encoder:
  """The encoder of a training run, from its newest checkpoint; `mesh`: see `Encoder`.

  Raises:
    UserError: no such run, or a run of a model that is no dual encoder.
  """
  config = read_run_config(workdir)
  if not config.has_towers:
    kind = (
      'a model that answers, see align_jax.load_multimodal' if config.answers else 'a generator'
    )
    raise UserError(f'{workdir}: a run of {kind}; embeddings need an image-text model')
  params = load_params(workdir, averaged=True, step=step)
  return make_encoder(config, params, load_tokenizer(workdir / 'tokenizer'), mesh)
