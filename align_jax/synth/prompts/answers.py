"""What a language model is asked, and what counts as an answer."""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import TypeGuard

from align_jax.synth.rows import Category
from align_jax.synth.wordlists import same

_SYSTEM = (
  'You write prompts for a text-to-image model. You answer with a JSON array of strings and '
  'nothing else.'
)
_ASK = (
  'Write {count} different prompts for pictures of one single {name}{definition}. Each prompt is '
  'one sentence that names the {name}, shows nothing else, and ends with "{ending}". Vary colour, '
  'material, size, state and point of view as far as they make sense for it.'
)
_NOT_AGAIN = ' Do not write any of these again: {prompts}'
_SHORTEST, _LONGEST = 5, 400  # characters of a prompt
_TRIED = 64  # brackets at which an array may begin
_LINE = re.compile(r'^\s*(?:\d+[.):]|[-*•])\s+(.*\S)\s*$')  # 1. a prompt


def ask(category: Category, count: int, ending: str, have: Sequence[str]) -> list[dict[str, str]]:
  """Returns the messages that ask for prompts.

  Args:
    category: of what.
    count: how many.
    ending: how each is to end.
    have: prompts that are there already.
  """
  definition = f' ({category.definition.rstrip(". ")})' if category.definition else ''
  text = _ASK.format(count=count, name=category.name, definition=definition, ending=ending)
  if have:
    text += _NOT_AGAIN.format(prompts=json.dumps(list(have), ensure_ascii=False))
  return [{'role': 'system', 'content': _SYSTEM}, {'role': 'user', 'content': text}]


def parse(answer: str, category: Category) -> list[str]:
  """Returns the prompts of an answer: of a JSON array of strings, or of a list of lines.

  What is no prompt is left out: other values, repeats, texts of a wrong length, and those that do
  not name the category. An answer without any prompt gives none.
  """
  found = _array(answer)
  if found is None:
    found = [m[1].strip('"') for m in map(_LINE.match, answer.splitlines()) if m]
  out: dict[str, str] = {}
  for item in found:
    if not isinstance(item, str):
      continue
    text = ' '.join(item.split())
    if _SHORTEST <= len(text) <= _LONGEST and text.isprintable() and _names(text, category):
      out.setdefault(text.lower(), text)
  return list(out.values())


def _array(answer: str) -> list | None:
  """The first JSON array with a text in it, whatever stands around it."""
  decoder = json.JSONDecoder()
  for found in itertools.islice(re.finditer(r'\[', answer), _TRIED):
    try:
      value, _ = decoder.raw_decode(answer, found.start())
    except (ValueError, RecursionError):
      continue
    if any(isinstance(item, str) for item in value):
      return value
  return None


def _names(text: str, category: Category) -> bool:
  """Whether a prompt names its category, in one or more."""
  plain, name = same(text), same(category.name)
  return re.search(rf'\b{re.escape(name)}(s|es)?\b', plain) is not None


def usage_of(values: Mapping[str, object]) -> tuple[int | None, int | None]:
  """Returns the tokens of question and answer that a reply says; None where it does not."""
  counts = values.get('usage')
  if not isinstance(counts, Mapping):
    return None, None
  prompt, completion = (counts.get(k) for k in ('prompt_tokens', 'completion_tokens'))
  return (prompt if is_count(prompt) else None, completion if is_count(completion) else None)


def is_count(value: object) -> TypeGuard[int]:
  """Whether it is a whole number, not below 0."""
  return isinstance(value, int) and not isinstance(value, bool) and value >= 0
