"""The tokenizer of a run, kept, given or trained, and whether it fits the model."""

import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

from align_jax import storage
from align_jax.data.chat import Chat, Turn, load_chat, train_chat
from align_jax.data.embed_prompt import embed_turns
from align_jax.data.pair_record import Content
from align_jax.data.questions import DESCRIBE, questions, things_in
from align_jax.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from align_jax.errors import UserError
from align_jax.models.multimodal import MultimodalConfig
from align_jax.storage import AnyPath
from align_jax.train.config import DataConfig
from align_jax.train.run_config import is_under_way

if TYPE_CHECKING:
  from align_jax.data.pair_record import PairSource
  from align_jax.data.sources import Source
else:
  PairSource = Source = Any  # the shape check of the tests cannot follow names for mypy only

_TEXTS = 200_000  # enough for any vocabulary we train; a corpus need not be read whole


def open_tokenizer(
  data: DataConfig, workdir: AnyPath, init: AnyPath | None, sources: Sequence[Source]
) -> Tokenizer:
  """The tokenizer of captions: of the run under way, the config, the run `init`, or a new one."""
  folder = _tokenizer_folder(data, workdir, init)
  if folder is not None:
    return load_tokenizer(folder)
  return train_tokenizer(_limited(_texts_of(sources, data)), data.vocab_size)


def open_chat(
  data: DataConfig,
  workdir: AnyPath,
  init: AnyPath | None,
  sources: Sequence[Source],
  patches: int,
) -> Chat:
  """The same for chats."""
  folder = _tokenizer_folder(data, workdir, init)
  if folder is not None:
    return load_chat(folder, patches)
  if data.text == 'pairs':
    texts = _texts_of_pairs([cast(PairSource, source) for source in sources], data)
  else:
    texts = _texts_of(sources, data)
  return train_chat(_limited(texts), data.vocab_size, patches)


def _tokenizer_folder(data: DataConfig, workdir: AnyPath, init: AnyPath | None) -> AnyPath | None:
  if is_under_way(workdir):
    return workdir / 'tokenizer'
  if data.tokenizer:
    return storage.open_path(data.tokenizer)
  return None if init is None else init / 'tokenizer'


def check_tokenizer(tokenizer: Tokenizer, model: Any) -> None:
  """Refuses other special tokens: the model reads them by their ids, and would without a sign."""
  _check_size(tokenizer.vocab_size, model.vocab_size)
  for name in ('pad_id', 'eot_id'):
    wanted, has = getattr(model, name), getattr(tokenizer, name)
    if wanted is not None and wanted != has:
      raise UserError(
        f'config.model: {name} is {wanted}, but {has} in the tokenizer; set it to {has}'
      )


def check_chat(chat: Chat, model: MultimodalConfig, data: DataConfig) -> None:
  """The same for chats; and is there room for what every chat holds?"""
  _check_size(chat.vocab_size, model.vocab_size)
  if chat.image_id != model.image_id:
    has = 'none' if chat.image_id is None else chat.image_id
    raise UserError(
      f'config.model.image_id: {model.image_id}, but {has} in the tokenizer; set it to that, or '
      'give a tokenizer with an image token'
    )
  if data.length > model.length:
    raise UserError(
      f'config.data.length: {data.length}, but config.model.length is {model.length}; lower it, or '
      'raise that of the model'
    )
  if data.text == 'pairs':
    image = Content('a', images=(b'',))
    least = chat.tokens_of(embed_turns(image, 'query', '', data.level), 1, ask=True)
    what = f'an image, the prompt (config.data.level={data.level!r}) and one word'
  else:
    turns = _summary('a') if data.summaries else [Turn('user', 'a'), Turn('assistant', 'a')]
    least = chat.tokens_of(turns, 1)
    what = 'an image, the chat template and one word each'
  if data.length < least:
    raise UserError(f'config.data.length: {data.length}, but {what} take {least} tokens; raise it')


def _check_size(tokens: int, vocab_size: int) -> None:
  if tokens > vocab_size:
    raise UserError(
      f'config.model: vocab_size is {vocab_size}, but the tokenizer has {tokens} tokens; raise it, '
      'or lower config.data.vocab_size'
    )


def _limited(texts: Iterable[str]) -> Iterable[str]:
  return itertools.islice(texts, _TEXTS)


def _texts_of(sources: Sequence[Source], data: DataConfig) -> Iterable[str]:
  """What a tokenizer of records is trained on."""
  text = data.text
  # a model that answers may become an embedder: the words of its prompts are to be tokens
  prompts = [t.text for t in _summary('word')[:-1] if t.text] if text == 'questions' else []
  if text == 'captions':
    yield DESCRIBE
  for source in sources:
    things = things_in(source) if text == 'questions' else ()
    for index in range(len(source)):
      try:
        record = source[index]
        found = questions(record, things) if text == 'questions' else []
      except UserError:
        continue
      if text == 'questions':
        for asked in found:
          yield from (asked.question, asked.answer)
      else:
        yield from record.captions
      yield from prompts


def _summary(word: str) -> list[Turn]:
  """The longest conversation of a summary."""
  asked = embed_turns(Content(images=(b'',)), 'query', '', 'hierarchical')
  return [*asked, Turn('assistant', word)]


def _texts_of_pairs(sources: Sequence[PairSource], data: DataConfig) -> Iterable[str]:
  """What a tokenizer of pairs is trained on: all turns of the prompts."""
  for source in sources:
    for index in range(len(source)):
      try:
        pair = source[index]
      except UserError:
        continue
      for turns in (
        embed_turns(pair.query, 'query', pair.instruction, data.level),
        embed_turns(pair.positive, 'candidate', pair.candidate_instruction, data.level),
      ):
        yield from (turn.text for turn in turns if turn.text)
