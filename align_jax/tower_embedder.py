"""A dual encoder as an embedder of contents, and the embedder of any run."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from align_jax.data.embed_prompt import Level, Role
from align_jax.data.images import ImageError
from align_jax.data.pair_record import Content
from align_jax.data.tokenizer import load_tokenizer
from align_jax.data.transforms import apply_to_bytes
from align_jax.embedder import (
  ContentEmbedder,
  load_content_embedder,
  make_content_embedder,
)
from align_jax.encoder import Encoder, load_run, make_encoder
from align_jax.errors import UserError
from align_jax.modality import MODALITIES
from align_jax.models.flat import Params
from align_jax.storage import AnyPath
from align_jax.train.config import TrainConfig
from align_jax.train.run_config import read_run_config

LEVELS = ('none', 'user', 'hierarchical')


class TowerEmbedder:
  """Embeds a text by the text tower, an image by its modality's track, both by their mean.

  It is what `evaluation.contents.Embed` asks for; it knows neither roles nor instructions.
  """

  def __init__(self, encoder: Encoder):
    self.encoder, self.dim = encoder, encoder.dim

  def with_params(self, params: Params) -> 'TowerEmbedder':
    """The same embedder with other parameters; nothing is compiled anew."""
    return TowerEmbedder(self.encoder.with_params(params))

  def __call__(
    self, contents: Sequence[Content], role: Role, instruction: str = ''
  ) -> Float[np.ndarray, 'n dim']:
    """Embeds contents.

    Args:
      contents: any mixture of texts, images and both.
      role, instruction: make no difference.

    Returns: float32, unit norm; of an image with a text, the direction of the sum of both vectors.

    Raises:
      UserError: no contents, one with neither text nor image or with several images, an image that
        cannot be decoded.
    """
    if not contents:
      raise UserError('nothing to embed: the list of contents is empty')
    for content in contents:
      if len(content.images) > 1 or not (content.images or content.text):
        raise UserError(
          f'content {content.id}: {len(content.images)} images and '
          f'{"a" if content.text else "no"} text; a dual encoder embeds one image, a text, or both'
        )
    out = np.zeros((len(contents), self.dim), np.float32)
    texts = [i for i, content in enumerate(contents) if content.text]
    if texts:
      out[texts] += self.encoder.embed_texts([contents[i].text for i in texts])
    for modality in MODALITIES:
      images = [i for i, c in enumerate(contents) if c.images and c.modality == modality]
      if images:
        pixels = self._pixels([contents[i] for i in images])
        out[images] += self.encoder.embed_images(pixels, modality)
    length = np.linalg.norm(out, axis=1, keepdims=True)
    return out / np.where(length == 0, 1, length)  # opposite vectors: there is no direction

  def _pixels(self, contents: Sequence[Content]) -> np.ndarray:
    rng = np.random.default_rng(0)  # the transform of evaluation draws nothing
    out = []
    for content in contents:
      try:
        out.append(apply_to_bytes(self.encoder.transform, content.images[0], rng))
      except ImageError as error:
        raise UserError(f'content {content.id}: {error}; leave it out') from error
    return np.stack(out)


def make_embedder(
  config: TrainConfig, params: Params, workdir: AnyPath
) -> ContentEmbedder | TowerEmbedder:
  """The embedder of a run with the given parameters, prompted as `config.data.level` says."""
  if config.answers:
    return make_content_embedder(config, params, workdir, config.data.level)
  return TowerEmbedder(make_encoder(config, params, load_tokenizer(workdir / 'tokenizer')))


def renewed_embedder(
  config: TrainConfig, workdir: AnyPath
) -> Callable[[Params], ContentEmbedder | TowerEmbedder]:
  """Returns what makes the embedder of any weights of a run; its programs are compiled once."""
  last: ContentEmbedder | TowerEmbedder | None = None

  def make(params: Params) -> ContentEmbedder | TowerEmbedder:
    nonlocal last
    last = make_embedder(config, params, workdir) if last is None else last.with_params(params)
    return last

  return make


def load_embedder(
  workdir: AnyPath,
  level: Level | Literal[''] = '',
  *,
  step: int | None = None,
  mesh: Mesh | None = None,
) -> ContentEmbedder | TowerEmbedder:
  """The embedder of a run, of a multimodal model or of a dual encoder, from its newest checkpoint.

  Args:
    workdir: the run folder.
    level: of the prompt, for a multimodal model; '': that of its training, `config.data.level`.
    step: of another checkpoint.
    mesh: of devices that share the work; None: the default one.

  Raises:
    UserError: no such run, a run of a generator, a level for a dual encoder, or a level that the
      model's chat template has no place for.
  """
  config = read_run_config(workdir)
  if not config.answers:
    if level and config.has_towers:
      raise UserError(f'{workdir}: a dual encoder has no prompt; leave the level {level!r} out')
    return TowerEmbedder(load_run(workdir, step=step, mesh=mesh))
  level = level or config.data.level
  embedder = load_content_embedder(workdir, level, step=step, mesh=mesh)
  return with_roles(embedder, str(workdir))


def with_roles(embedder: ContentEmbedder, where: str) -> ContentEmbedder:
  """Refuses a chat template without the roles that the level needs."""
  if embedder.level == 'hierarchical' and not embedder.chat.template.has_system:
    raise UserError(
      f"{where}: its chat template has no system role, which the level 'hierarchical' needs; "
      'use --level=user'
    )
  return embedder
