"""A generative multimodal model for use as an embedder: contents in, unit-norm vectors out."""

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float

from align_jax.config import build
from align_jax.data.chat import Chat, load_chat
from align_jax.data.embed_prompt import Level, Role, embed_turns
from align_jax.data.images import ImageError
from align_jax.data.pair_record import Content
from align_jax.data.transforms import Transform, apply_to_bytes
from align_jax.encoder import eval_transform
from align_jax.errors import UserError
from align_jax.models.flat import Params, Skeleton, count
from align_jax.models.last_token import last_hidden
from align_jax.models.multimodal import Multimodal, MultimodalConfig
from align_jax.parallel.rows import per_device, place_params, place_rows, ways
from align_jax.storage import AnyPath
from align_jax.train.checkpoints import load_params
from align_jax.train.config import TrainConfig
from align_jax.train.run_config import read_run_config

# Few programs are compiled: batches are of either size, prompts of one of so many lengths.
_FEW, _MANY = 8, 64
_LENGTHS = 16
_LANES = 8  # a length is a multiple of it
# tokens of a prompt beside an image, where the run learnt chats: these say less than prompts do
_LONGEST = 512
_WINDOW = 64  # batches whose prompts are put in order of length together

Embedding = Callable[[Params, Array, Array, Array | None], Float[Array, 'batch dim']]


def make_embed(config: MultimodalConfig, mesh: Mesh | None = None) -> Embedding:
  """Returns the compiled function from parameters, tokens, segments and images to embeddings.

  `mesh`: of devices that share the rows, see `parallel.rows`; None: the default one.
  """
  skeleton = Skeleton(lambda rngs: Multimodal(config, rngs))
  adapted = config.decoder.lora is not None

  def embed(params: Params, tokens: Array, segment: Array, images: Array | None) -> Array:
    gate = jnp.ones(len(tokens), jnp.float32) if adapted else None
    return last_hidden(skeleton.bind(params), tokens, segment, images, gate)

  return jax.jit(per_device(embed, mesh))


class ContentEmbedder:
  """Embeds texts, images and both; what `evaluation.contents.Embed` asks for.

  Attributes:
    transform: of the images.
    chat: tokens and template.
    length: of a prompt, patches among them.
    level: see `data.embed_prompt.embed_turns`.
    batch: contents that are embedded together, on each device.
    dim, parameters: of the embeddings; how many numbers the model has.
  """

  def __init__(
    self,
    config: MultimodalConfig,
    params: Params,
    chat: Chat,
    transform: Transform,
    length: int,
    level: Level = 'hierarchical',
    batch: int = _MANY,
    mesh: Mesh | None = None,
  ):
    """`mesh`: of devices that share the work, each with all parameters; None: the default one."""
    self.transform, self.chat, self.length, self.level = transform, chat, length, level
    self.batch = batch
    self.dim, self.parameters = config.decoder.width, count(params)
    self._params, self._mesh = place_params(params, mesh), mesh
    self._sizes = min(_FEW, batch) * ways(mesh), batch * ways(mesh)
    self._embed = make_embed(config, mesh)

  def with_params(self, params: Params) -> 'ContentEmbedder':
    """The same embedder with other parameters; nothing is compiled anew."""
    other = copy.copy(self)
    other._params = place_params(params, self._mesh)
    return other

  def __call__(
    self, contents: Sequence[Content], role: Role, instruction: str = ''
  ) -> Float[np.ndarray, 'n dim']:
    """Embeds contents.

    Args:
      contents: any mixture of texts, images and both.
      role, instruction: see `data.embed_prompt.embed_turns`.

    Returns: float32, unit norm.

    Raises:
      UserError: no contents, an image that cannot be decoded, a prompt without room for its text.
    """
    if not contents:
      raise UserError('nothing to embed: the list of contents is empty')
    out = np.empty((len(contents), self.dim), np.float32)
    before: tuple[list[int], Array] | None = None
    with ThreadPoolExecutor() as threads:
      for rows, tokens, segment in self._batches(contents, role, instruction):
        part = [contents[i] for i in rows]
        pixels = np.asarray(list(threads.map(self._pixels, part))) if part[0].images else None
        size = self._sizes[len(rows) > self._sizes[0]]
        filled = [x if x is None else _fill(x, size) for x in (tokens, segment, pixels)]
        found = self._embed(self._params, *place_rows(filled, self._mesh))
        if before is not None:  # fetched only now: the next images are decoded meanwhile
          out[before[0]] = np.asarray(before[1])[: len(before[0])]
        before = rows, found
    if before is not None:
      out[before[0]] = np.asarray(before[1])[: len(before[0])]
    return out

  def _batches(
    self, contents: Sequence[Content], role: Role, instruction: str
  ) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
    """Yields numbers of contents with equally many images and prompts of about one length.

    Their tokens and segments come with them, cut to the longest.
    """
    kinds = [len(content.images) for content in contents]
    window = _WINDOW * self._sizes[1]
    step = -(-self.length // (_LENGTHS * _LANES)) * _LANES
    for images in sorted(set(kinds)):
      own = [i for i, kind in enumerate(kinds) if kind == images]
      for start in range(0, len(own), window):
        rows = own[start : start + window]
        chats = [embed_turns(contents[i], role, instruction, self.level) for i in rows]
        tokens, segment = self.chat.prompts(chats, images, self.length)
        sizes = segment.sum(axis=1)
        order = np.argsort(-sizes, kind='stable')
        for some in _parts(order, *self._sizes):
          cut = -min(self.length, -(-int(sizes[some].max()) // step) * step)
          yield [rows[i] for i in some.tolist()], tokens[some, cut:], segment[some, cut:]

  def _pixels(self, content: Content) -> list[np.ndarray]:
    rng = np.random.default_rng(0)  # the transform of evaluation draws nothing
    try:
      return [apply_to_bytes(self.transform, image, rng) for image in content.images]
    except ImageError as error:
      raise UserError(f'content {content.id}: {error}; leave it out') from error


def _parts(rows: np.ndarray, few: int, size: int) -> Iterator[np.ndarray]:
  """Cuts rows into parts of `size`, and what is left into few ones unless it is about as many."""
  whole = len(rows) // size * size
  if len(rows) - whole > size // 2:
    whole = len(rows)
  yield from (rows[i : i + size] for i in range(0, whole, size))
  yield from (rows[i : i + few] for i in range(whole, len(rows), few))


def _fill(rows: np.ndarray, size: int) -> np.ndarray:
  return np.concatenate([rows, np.repeat(rows[-1:], size - len(rows), axis=0)])


def make_content_embedder(
  config: TrainConfig, params: Params, workdir: AnyPath, level: Level, mesh: Mesh | None = None
) -> ContentEmbedder:
  """An embedder with the given parameters of a run."""
  model = build(MultimodalConfig, config.model_fields, 'config.model')
  chat = load_chat(workdir / 'tokenizer', model.image.patches)
  length = config.data.length
  if config.data.text != 'pairs':
    length = max(length, longest_prompt(model))
  return ContentEmbedder(model, params, chat, eval_transform(config), length, level, mesh=mesh)


def longest_prompt(config: MultimodalConfig) -> int:
  """Tokens that the prompts of a model may have that has not been trained on pairs."""
  return config.image.patches + _LONGEST


def load_content_embedder(
  workdir: AnyPath,
  level: Level = 'hierarchical',
  *,
  step: int | None = None,
  mesh: Mesh | None = None,
) -> ContentEmbedder:
  """The embedder of a run of a multimodal model, from its newest checkpoint.

  Raises:
    UserError: no such run, or one of another model.
  """
  config = read_run_config(workdir)
  if not config.answers:
    raise UserError(
      f'{workdir}: not a run of a multimodal model; name one of configs/multimodal.py'
    )
  params = load_params(workdir, averaged=True, step=step)
  return make_content_embedder(config, params, workdir, level, mesh)
