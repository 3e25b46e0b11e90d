"""The study's own tokenizer: of questions, answers and prompts."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from align_jax.data.chat import train_chat
from align_jax.data.embed_prompt import Level, embed_turns
from align_jax.data.questions import questions, things_in
from align_jax.data.sources import open_source
from align_jax.embedding_study.config import TokenizerPart
from align_jax.study.kept import kept

if TYPE_CHECKING:
  from align_jax.data.pair_record import PairSource
else:
  PairSource = Any  # the shape check of the tests cannot follow a name that exists for mypy only

_PAIRS = 1500  # that are read, spread over all: they have every word of the prompts


def make_tokenizer(part: TokenizerPart, pairs: PairSource, folder: Path, patches: int) -> None:
  """Trains and writes a tokenizer, unless there is one.

  Args:
    part: what of images it reads.
    pairs: whose prompts it reads, at all levels, so that it is the same for all.
    folder: where to.
    patches: of an image.

  Raises:
    UserError: no questions in the data, too small a vocabulary, or one that is there was made
      otherwise: models have learnt by it.
  """
  asked = {**dataclasses.asdict(part), 'pairs': pairs.spec, 'patches': patches}

  def make() -> None:
    texts = [*_questions(part), *_prompts(pairs)]
    train_chat(texts, part.vocab_size, patches).save(folder)

  kept(folder.with_name(f'{folder.name}.json'), asked, make)


def _questions(part: TokenizerPart) -> Iterator[str]:
  source = open_source(part.data)
  things = things_in(source)
  for index in _spread(len(source), part.count):
    for asked in questions(source[index], things):
      yield from (asked.question, asked.answer)


def _prompts(pairs: PairSource) -> Iterator[str]:
  for index in _spread(len(pairs), _PAIRS):
    pair = pairs[index]
    for level in get_args(Level):
      for turns in (
        embed_turns(pair.query, 'query', pair.instruction, level),
        embed_turns(pair.positive, 'candidate', pair.candidate_instruction, level),
      ):
        yield from (turn.text for turn in turns if turn.text)


def _spread(length: int, count: int) -> Sequence[int]:
  """At most `count` positions, all over a source."""
  return range(0, length, max(1, length // count))
