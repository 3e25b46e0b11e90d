"""A trained multimodal model for use: images and questions in, texts out."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from align_jax.config import build
from align_jax.data.chat import Chat, Turn, load_chat
from align_jax.data.transforms import Transform
from align_jax.encoder import eval_transform
from align_jax.errors import UserError
from align_jax.interop.folder import find_folder, load_folder, read_folder
from align_jax.modality import Modality
from align_jax.models.flat import Params, Skeleton, count
from align_jax.models.generate import Prompt, beam_search, sample
from align_jax.models.multimodal import Multimodal, MultimodalConfig
from align_jax.storage import AnyPath
from align_jax.train.checkpoints import load_params
from align_jax.train.config import TrainConfig
from align_jax.train.run_config import read_run_config

_TRANSFORM = ('resize', 'interpolation', 'short_side')  # fields of `config.data` about pixels
_SIZES = (8, 128)  # of batches; others are padded to these, so that few programs are compiled


class Answerer:
  """Answers questions about images.

  Attributes:
    config: of the model.
    transform: how an image must be prepared for `answer`.
    chat: tokens and template.
    length: of a prompt, patches among them.
    parameters: how many numbers the model has.
  """

  def __init__(
    self, config: MultimodalConfig, params: Params, chat: Chat, transform: Transform, length: int
  ):
    self.config, self.transform, self.chat = config, transform, chat
    self.length, self.parameters = length, count(params)
    self._params = {name: jnp.asarray(p) for name, p in params.items()}
    skeleton = Skeleton(lambda rngs: Multimodal(config, rngs))

    @functools.partial(jax.jit, static_argnums=(5, 6, 7, 8))
    def write(
      params: Params,
      tokens: jax.Array,
      segment: jax.Array,
      images: jax.Array,
      key: jax.Array,
      gated: bool,
      most: int,
      beams: int,
      choice: tuple[float, float],
    ) -> jax.Array:
      ones = jnp.ones(len(tokens), jnp.float32)
      gate, image_gate = None if config.decoder.lora is None else ones, ones if gated else None
      run = functools.partial(sample, key=key, temperature=choice[0], top_p=choice[1])
      if beams > 1:
        run = functools.partial(_beam, beams=beams)
      return run(
        skeleton.bind(params),
        Prompt(tokens, segment, images[:, None]),
        most=most,
        end_id=chat.end_id,
        pad_id=chat.pad_id,
        gate=gate,
        image_gate=image_gate,
      )

    self._write = write

    @functools.partial(jax.jit, static_argnums=4)
    def logits(
      params: Params, tokens: jax.Array, segment: jax.Array, images: jax.Array, gated: bool
    ) -> jax.Array:
      model, ones = skeleton.bind(params), jnp.ones(len(tokens), jnp.float32)
      gate = None if config.decoder.lora is None else ones
      images = images[:, None]
      hidden = model(tokens, segment, images, gate=gate, image_gate=ones if gated else None)
      return model.decoder.logits(hidden)

    self._logits = logits

  def answer(
    self,
    images: UInt8[np.ndarray, 'n height width 3'],
    questions: Sequence[str],
    *,
    system: str = '',
    modality: Modality = 'real',
    most: int = 32,
    beams: int = 1,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
  ) -> list[str]:
    """Writes an answer to a question about each image.

    Args:
      images: that went through `transform`.
      questions: one for each.
      system: what a system turn says; '' for none.
      modality: the track that reads the images: `generated` with the tower's adapters.
      most: tokens of an answer.
      beams: of a beam search; 1: token by token.
      temperature, top_p, seed: see `models.generate.sample`.

    Raises:
      UserError: a number of questions that is not that of the images, a prompt that is too long.
    """
    if len(images) != len(questions):
      raise UserError(
        f'answer: {len(images)} images, {len(questions)} questions; give one for each'
      )
    before = [Turn('system', system)] if system else []
    chats = [[*before, Turn('user', question)] for question in questions]
    out: list[str] = []
    for start in range(0, len(images), _SIZES[-1]):
      rows = slice(start, start + _SIZES[-1])
      tokens, segment = self.chat.prompts(chats[rows], 1, self.length)
      size = next(size for size in _SIZES if size >= len(tokens))
      padded = [_fill(x, size) for x in (tokens, segment, images[rows])]
      written = self._write(
        self._params,
        *padded,
        jax.random.fold_in(jax.random.key(seed), start),
        modality == 'generated',
        most,
        beams,
        (temperature, top_p),
      )
      out += self.chat.decode(np.asarray(written)[: len(tokens)])
    return out

  def logits(
    self,
    images: UInt8[np.ndarray, 'n height width 3'],
    questions: Sequence[str],
    modality: Modality = 'real',
  ) -> tuple[list[np.ndarray], list[Float[np.ndarray, '...']]]:
    """Tokens of each prompt, and the logits of the token after each, `[tokens, vocab]`."""
    tokens, segment = self.chat.prompts([[Turn('user', q)] for q in questions], 1, self.length)
    generated = modality == 'generated'
    rows = np.asarray(self._logits(self._params, tokens, segment, images, generated))
    real = segment > 0
    ids = [row[own] for row, own in zip(tokens, real, strict=True)]
    return ids, [row[own] for row, own in zip(rows, real, strict=True)]


def _beam(*arguments: Any, **settings: Any) -> jax.Array:
  return beam_search(*arguments, **settings)[0]


def _fill(rows: np.ndarray, size: int) -> np.ndarray:
  return np.concatenate([rows, np.repeat(rows[-1:], size - len(rows), axis=0)])


def make_answerer(config: TrainConfig, params: Params, workdir: AnyPath) -> Answerer:
  """An answerer with the given parameters of a run, for instance in the middle of training."""
  model = build(MultimodalConfig, config.model_fields, 'config.model')
  chat = load_chat(workdir / 'tokenizer', model.image.patches)
  return Answerer(model, params, chat, eval_transform(config), config.data.length)


def load_answerer(workdir: AnyPath, *, step: int | None = None) -> Answerer:
  """The answerer of a training run, from its newest checkpoint.

  Raises:
    UserError: no such run, or a run of a model that does not answer.
  """
  config = read_run_config(workdir)
  if not config.answers:
    raise UserError(
      f'{workdir}: not a run of a multimodal model; name one of configs/multimodal.py'
    )
  params = load_params(workdir, averaged=True, step=step)
  return make_answerer(config, params, workdir)


def load_llava(name: str, length: int = 0) -> Answerer:
  """The answerer of a LLaVA's folder or hub id.

  Args:
    name: of the folder, or hub id.
    length: of prompts, patches among them; 0: room for the image and 256 tokens more.

  Raises:
    UserError: no such folder, another architecture, or no tokenizer in it.
  """
  llava = read_llava(name)
  patches = llava.config.image.patches
  length = length or min(llava.config.length, patches + 256)
  return Answerer(llava.config, llava.params, llava.chat, llava.transform, length)


@dataclasses.dataclass(frozen=True)
class Llava:
  """What a LLaVA's folder holds: its shape, weights, tokens and template, and what images need."""

  config: MultimodalConfig
  params: Params
  chat: Chat
  transform: Transform


def read_llava(name: str) -> Llava:
  """Reads a LLaVA's folder or hub id.

  Raises:
    UserError: no such folder, another architecture, or no tokenizer in it.
  """
  imported = read_folder(find_folder(name))
  if 'decoder' not in imported.model:
    raise UserError(f'hf:{name}: a {imported.architecture.name} writes no answers; name a LLaVA')
  if 'tokenizer' not in imported.data:
    raise UserError(f'hf:{name}: has no tokenizer; copy its tokenizer files there')
  config = build(MultimodalConfig, imported.model, 'config.model')
  skeleton = Skeleton(lambda rngs: Multimodal(config, rngs))
  transform = Transform(
    config.image_size, **{k: v for k, v in imported.data.items() if k in _TRANSFORM}
  )
  chat = load_chat(Path(imported.data['tokenizer']), config.image.patches)
  return Llava(config, load_folder(imported, skeleton.shapes), chat, transform)
