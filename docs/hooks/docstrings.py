"""Reads our docstrings as Google's: an extension of griffe, mkdocstrings' reader (mkdocs.yml).

Ours differ in two points: `Returns:` goes on in the same line, and parameters that are described
together stand together (`queries, candidates: unit-norm embeddings.`).
"""

import re
from typing import Any

import griffe

_RETURNS = re.compile(r'^Returns: (?=\S)', re.M)
_TOGETHER = re.compile(r'^  (\w+(?:, \w+)+): (.*(?:\n    .*)*)', re.M)


class HouseDocstrings(griffe.Extension):
  """Rewrites each docstring before it is parsed."""

  def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
    if obj.docstring:
      obj.docstring.value = to_google(obj.docstring.value)


def to_google(text: str) -> str:
  """A docstring without its outer indentation, in the form that griffe parses."""
  return _TOGETHER.sub(_apart, _RETURNS.sub('Returns:\n  ', text))


def _apart(item: re.Match[str]) -> str:
  return '\n'.join(f'  {name}: {item[2]}' for name in item[1].split(', '))
