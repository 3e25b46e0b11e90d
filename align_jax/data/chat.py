"""Conversations to tokens and back, through a tokenizer's own chat template."""

import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from jaxtyping import Bool, Int, Int32
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from align_jax import storage
from align_jax.data.chat_shared import shared_row
from align_jax.data.chat_template import CHATML, IMAGE, Template, Turn
from align_jax.data.tokenizer import PAD, fetched, ids_of, read_hf, save_folder, special_ids
from align_jax.errors import UserError

__all__ = ['Chat', 'Rows', 'Turn', 'load_chat', 'train_chat']

TURN, TURN_END = '<|im_start|>', '<|im_end|>'
# beside a tokenizer: the template of old processors, and what of them is no matter of the tokenizer
_OLD_TEMPLATE, _NEW_TEMPLATE = 'chat_template.json', 'chat_template.jinja'
_PROCESSOR = 'processor_config.json'
_LEAST = 256 + 4


class Rows(NamedTuple):
  """Encoded conversations, `[batch, length]`.

  Attributes:
    tokens: with the image token once for each patch.
    segment: 1 of a token, 0 of padding; see `Chat.encode_shared` for more.
    answer: the tokens that the assistant writes: its texts and their end tokens.
  """

  tokens: Int32[np.ndarray, 'batch length']
  segment: Int32[np.ndarray, 'batch length']
  answer: Bool[np.ndarray, 'batch length']


class Chat:
  """A tokenizer with a chat template. Made by `train_chat` or `load_chat`.

  Attributes:
    vocab_size: the embedding table's size: the largest id plus one.
    pad_id: fills a row up; the end token where the tokenizer has none.
    end_id: ends a turn of the assistant: that of the template, else the tokenizer's end token.
    image_id: stands for a patch of an image; None: the tokenizer has no such token.
    patches: of an image.
    template: renders turns.
  """

  def __init__(self, hf: Any, template: Template, patches: int):
    """Wraps a tokenizer of `transformers`.

    Raises:
      UserError: a tokenizer without an end token.
    """
    self._hf, self.template, self.patches = hf, template, patches
    self._ids = ids_of(hf)
    self._start = special_ids(hf)[0]
    self.vocab_size = max(len(hf), 1 + max(hf.get_vocab().values()))
    token = template.image_token
    self.image_id = int(hf.convert_tokens_to_ids(token)) if token else None
    written = self._written_end()
    end = hf.eos_token_id if written is None else written
    if end is None:
      raise UserError(
        f'{template.where}: neither the chat template nor the tokenizer has a token that ends a '
        'turn; add an eos_token'
      )
    self._adds_end = written is None
    self.end_id = int(end)
    self.pad_id = int(hf.pad_token_id if hf.pad_token_id is not None else end)

  def encode(
    self, turns: Sequence[Turn], images: int, length: int
  ) -> tuple[Int32[np.ndarray, 'length'], Bool[np.ndarray, 'length']]:
    """Tokens of one conversation, and which of them are answers; see `encode_all`."""
    rows = self.encode_all([turns], images, length)
    return rows.tokens[0], rows.answer[0]

  def encode_all(self, chats: Sequence[Sequence[Turn]], images: int, length: int) -> Rows:
    """Encodes conversations as LLaVA's processor does, padded on the right.

    Images come first in the first user turn, each as many tokens as it has patches. Where the
    template writes nothing after a last answer, the end token is added, for a model must learn to
    end. What is longer than `length` loses the tail of its last user turn; only if that is not
    enough, the tail of its answer.

    Args:
      chats: turns, of the user and of the assistant by turns, a system turn first if any.
      images: of each conversation.
      length: tokens of a row.

    Raises:
      UserError: a system turn that the template does not show, turns that it refuses, images that
        it has no place for, or a length without room.
    """
    return self._rows(chats, images, length, ask=False)

  def encode_shared(
    self,
    groups: Sequence[tuple[Sequence[Sequence[Turn]], Sequence[Sequence[Turn]]]],
    images: int,
    length: int,
  ) -> Rows:
    """Encodes conversations about the same images as one row, in which these are but once.

    What all of a group begin with is there once, as segment `SHARED`; the rest of each follows as
    a segment of its own, which reads what is shared as if it alone stood there. Those that do not
    fit any more are left out, but the first, see `encode_all`.

    Args:
      groups: conversations about images, and such without any, which come before what is shared.
      images, length: see `encode_all`.

    Raises:
      UserError: see `encode_all`.
    """
    asked, texts = ([chat for group in groups for chat in group[i]] for i in (0, 1))
    encoded = iter(self._encoded(asked, images, ask=False))
    blind = iter(self._encoded(texts, 0, ask=False))
    parts = []
    for seeing, others in groups:
      found = [next(encoded) for _ in seeing]
      if len(found[0][0]) > length:
        found[0] = self._cut(seeing[0], images, length, ask=False)
      whole = shared_row(found, [next(blind) for _ in others], length)
      if (whole[0] == self.image_id).sum() != images * self.patches:
        raise UserError(
          f'{self.template.where}: its chat template puts what differs before the images; several '
          'conversations cannot share them: set config.data.questions=1'
        )
      parts.append(whole)
    return self._padded(parts, length)

  def prompts(
    self, chats: Sequence[Sequence[Turn]], images: int, length: int
  ) -> tuple[Int32[np.ndarray, 'batch length'], Int32[np.ndarray, 'batch length']]:
    """Encodes what the assistant is to answer to, padded on the left.

    Returns: the tokens, and 1 where there is one, 0 of padding.

    Raises:
      UserError: see `encode_all`.
    """
    tokens, real, _ = self._rows(chats, images, length, ask=True)
    order = (np.arange(length) + real.sum(axis=1)[:, None]) % length
    return np.take_along_axis(tokens, order, axis=1), np.take_along_axis(real, order, axis=1)

  def decode(self, rows: Int[np.ndarray, 'batch length']) -> list[str]:
    """Returns what the assistant wrote: text up to the end token, without control tokens."""
    texts = []
    for row in np.asarray(rows).tolist():
      row = row[: row.index(self.end_id)] if self.end_id in row else row
      texts.append(self._hf.decode(row, skip_special_tokens=True).strip())
    return texts

  def tokens_of(self, turns: Sequence[Turn], images: int, *, ask: bool = False) -> int:
    """Returns how many tokens a conversation (or prompt) takes, patches among them."""
    return len(self._encoded([turns], images, ask=ask)[0][0])

  def save(self, folder: str | storage.AnyPath) -> None:
    """Writes a folder that `load_chat` and `transformers` read; aside first, then renamed."""
    save_folder(folder, self.write)

  def write(self, folder: Path) -> None:
    """Writes the files into a folder."""
    self._hf.chat_template = self.template.source
    self._hf.save_pretrained(str(folder))
    if self.template.image_token:
      described = json.dumps({'image_token': self.template.image_token}, indent=2)
      (folder / _PROCESSOR).write_text(described + '\n')

  def _rows(self, chats: Sequence[Sequence[Turn]], images: int, length: int, *, ask: bool) -> Rows:
    parts = []
    for turns, (ids, marks) in zip(chats, self._encoded(chats, images, ask=ask), strict=True):
      if len(ids) > length:
        ids, marks = self._cut(turns, images, length, ask=ask)
      parts.append((ids, np.ones(len(ids), np.int32), marks))
    return self._padded(parts, length)

  def _padded(
    self, parts: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], length: int
  ) -> Rows:
    """Joins tokens, segments and marks of rows, padded on the right."""
    shape = len(parts), length
    tokens = np.full(shape, self.pad_id, np.int32)
    segment, answer = np.zeros(shape, np.int32), np.zeros(shape, bool)
    for row, (ids, of, marks) in enumerate(parts):
      place = row, slice(0, len(ids))
      tokens[place], segment[place], answer[place] = ids, of, marks
    return Rows(tokens, segment, answer)

  def _cut(
    self, turns: Sequence[Turn], images: int, length: int, *, ask: bool
  ) -> tuple[np.ndarray, np.ndarray]:
    """Encodes with the longest beginning of the last user turn that fits."""
    last = max((i for i, turn in enumerate(turns) if turn.role == 'user'), default=0)

    whole, kept = turns[last].text, turns[last].kept
    text, end = whole[: len(whole) - kept], whole[len(whole) - kept :]

    def shortened(count: int) -> tuple[np.ndarray, np.ndarray]:
      turn = Turn(turns[last].role, text[:count].rstrip() + end)
      return self._encoded([[*turns[:last], turn, *turns[last + 1 :]]], images, ask=ask)[0]

    fits, too_long = 0, len(text)
    while too_long - fits > 1:
      middle = (fits + too_long) // 2
      if len(shortened(middle)[0]) <= length:
        fits = middle
      else:
        too_long = middle
    ids, marks = shortened(fits)
    if len(ids) > length and not marks[:length].any():
      raise UserError(
        f'chat: {len(ids)} tokens of image, template and answer do not fit a length of {length}; '
        'raise the length (config.data.length)'
      )
    return ids[:length], marks[:length]

  def _encoded(
    self, chats: Sequence[Sequence[Turn]], images: int, *, ask: bool
  ) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ids of each conversation, and which of them are answers (none if `ask`)."""
    texts: list[str] = []
    for turns in chats:
      text = self.template.render(turns, images, ask=ask)
      # nothing is to stand between the answer and the end that is added
      added = self._adds_end and not ask and turns[-1].role == 'assistant'
      texts.append(text.rstrip() if added else text)
      for i in () if ask else _answers(turns):
        texts.append(self.template.render(turns[:i], images, ask=True))
        if i < len(turns) - 1:
          texts.append(self.template.render(turns[: i + 1], images, ask=False).rstrip())
    ids = iter(self._tokens(texts))
    out = []
    for turns in chats:
      whole = next(ids)
      marks = np.zeros(len(whole), bool)
      for i in () if ask else _answers(turns):
        start = _common(whole, next(ids))
        stop = _common(whole, next(ids)) if i < len(turns) - 1 else len(whole)
        stop = next((j + 1 for j in range(start, stop) if whole[j] == self.end_id), stop)
        marks[start:stop] = True
        if self._adds_end and i == len(turns) - 1:
          whole, marks = [*whole, self.end_id], np.append(marks, True)
      out.append(self._with_patches(np.asarray(whole, np.int32), marks, images))
    return out

  def _with_patches(
    self, ids: np.ndarray, marks: np.ndarray, images: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Repeats the image token."""
    is_image = ids == (-1 if self.image_id is None else self.image_id)
    if is_image.sum() != images:
      raise UserError(
        f'{self.template.where}: its chat template has a place for {is_image.sum()} of {images} '
        f'images; take one of a LLaVA, which writes {IMAGE} for each'
      )
    times = np.where(is_image, self.patches, 1)
    return np.repeat(ids, times), np.repeat(marks, times)

  def _tokens(self, texts: list[str]) -> list[list[int]]:
    """Ids of rendered texts; as of processors, after a start token unless one is written there."""
    bos = self._hf.bos_token
    begun = [bos is not None and text.startswith(bos) for text in texts]
    found = zip(begun, self._ids(texts), strict=True)
    return [ids if has_start else [*self._start, *ids] for has_start, ids in found]

  def _written_end(self) -> int | None:
    """The special token that the template writes after an answer."""
    turns = [Turn('user', 'a'), Turn('assistant', 'a')]
    asked, whole = self._tokens(
      [self.template.render(turns[:1], 0, ask=True), self.template.render(turns, 0, ask=False)]
    )
    special = {i for i, token in self._hf.added_tokens_decoder.items() if token.special}
    special |= {*self._hf.all_special_ids} - {None}
    rest = whole[_common(asked, whole) :]
    return next((i for i in rest if i in special and i != self.image_id), None)


def _answers(turns: Sequence[Turn]) -> list[int]:
  return [i for i, turn in enumerate(turns) if turn.role == 'assistant']


def _common(first: Sequence[int], second: Sequence[int]) -> int:
  """How many tokens two texts begin with alike."""
  pairs = zip(first, second, strict=False)
  return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def train_chat(texts: Iterable[str], vocab_size: int, patches: int) -> Chat:
  """Trains a byte-level BPE with a ChatML template; the same texts give the same one in any order.

  Args:
    texts: of turns.
    vocab_size: an upper bound: few texts give fewer tokens, see `Chat.vocab_size`.
    patches: of an image.

  Raises:
    UserError: no texts, or `vocab_size` below the 256 bytes and 4 control tokens.
  """
  if vocab_size < _LEAST:
    raise UserError(f'tokenizer: vocab_size {vocab_size} is too small; set {_LEAST} or more')
  texts = list(texts)
  if not texts:
    raise UserError('tokenizer: no texts to train on; choose a source that has captions')
  import transformers  # here: it takes a second

  backend = tokenizers.Tokenizer(models.BPE())
  backend.normalizer = normalizers.NFC()  # type: ignore[assignment]
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
  backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size,
    min_frequency=2,
    special_tokens=[PAD, IMAGE, TURN_END, TURN],
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  # the roles are in every conversation
  backend.train_from_iterator([*texts, *['user', 'assistant'] * len(texts)], trainer)
  hf = transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend,
    pad_token=PAD,
    eos_token=TURN_END,
    extra_special_tokens=[IMAGE, TURN],
    clean_up_tokenization_spaces=False,
  )
  return Chat(hf, Template(hf, CHATML, IMAGE, 'tokenizer'), patches)


def load_chat(folder: str | storage.AnyPath, patches: int) -> Chat:
  """Reads a folder that `Chat.save` wrote, or any local one with a tokenizer and a chat template.

  Nothing is downloaded (but the folder itself, from a bucket); templates run in a sandbox.

  Args:
    folder: of the tokenizer, or of a whole model.
    patches: of an image.

  Raises:
    UserError: no such folder, no tokenizer in it, no template, or one that cannot be used.
  """
  if storage.is_remote(folder):
    with tempfile.TemporaryDirectory(prefix='align_jax-') as scratch:
      try:
        return load_chat(fetched(os.fspath(folder), Path(scratch)), patches)
      except UserError as error:
        raise UserError(str(error).replace(scratch, os.fspath(folder))) from error
  folder = Path(folder)
  if not folder.is_dir():
    raise UserError(f'{folder}: no such tokenizer folder')
  hf = read_hf(folder)
  source = _source(folder, hf)
  if not source:
    raise UserError(
      f'{folder}: the tokenizer has no chat template; copy the {_NEW_TEMPLATE} of its model there'
    )
  named = _json(folder / _PROCESSOR).get('image_token') or getattr(hf, 'image_token', None)
  token = named or IMAGE
  if token not in hf.get_vocab():
    if named:
      raise UserError(f'{folder}: its image token {token!r} is not among its tokens')
    token = ''
  return Chat(hf, Template(hf, source, token, str(folder)), patches)


def _source(folder: Path, hf: Any) -> str:
  """The template of the processor where there is one, else of the tokenizer."""
  if not (folder / _NEW_TEMPLATE).is_file():
    for name in (_OLD_TEMPLATE, _PROCESSOR):
      found = _json(folder / name).get('chat_template')
      if isinstance(found, str):
        return found
  found = hf.chat_template
  if isinstance(found, dict):
    found = found.get('default')
  return found or ''


def _json(path: Path) -> dict[str, Any]:
  if not path.is_file():
    return {}
  try:
    found = json.loads(path.read_bytes())
  except ValueError as error:
    raise UserError(f'{path}: not JSON ({error})') from error
  return found if isinstance(found, dict) else {}
