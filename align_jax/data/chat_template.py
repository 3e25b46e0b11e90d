"""A tokenizer's chat template: turns of a conversation to the text that its model knows."""

import functools
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jinja2

from align_jax.errors import UserError

IMAGE = '<image>'
# ChatML, images first as in the templates of LLaVA
CHATML = """
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] if part['type'] == 'image' -%}{{- '<image>\\n' -}}{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
""".strip()
_REMEMBERED = 4096  # rendered conversations
_SOUGHT = 'zebra'  # a word that no template writes by itself


class Turn(NamedTuple):
  """What one side says.

  Attributes:
    kept: so many last characters stay, where a text is too long and cut.
  """

  role: Literal['system', 'user', 'assistant']
  text: str
  kept: int = 0


class Template:
  """Renders turns.

  Texts of turns are texts: a control token that is spelt out in one (`<image>`) gets a space after
  its first character, so that nobody's caption ends a turn.

  Attributes:
    source: Jinja's; it runs in the sandbox of `transformers`.
    image_token: what it writes for an image; '' for none.
    has_system: it shows what a system turn says.
    where: the folder it is of, for messages.
  """

  def __init__(self, hf: Any, source: str, image_token: str, where: str):
    """Wraps the template of a tokenizer of `transformers`.

    Raises:
      UserError: it shows no text.
    """
    self._hf = hf
    self.source, self.image_token, self.where = source, image_token, where
    added = {token.content for token in hf.added_tokens_decoder.values() if token.special}
    control = {t for t in {IMAGE, image_token, *hf.all_special_tokens, *added} if t.strip()}
    longest_first = sorted(control, key=lambda token: (-len(token), token))
    self._control = re.compile('|'.join(map(re.escape, longest_first)))
    # the same is asked of many images
    self._remembered = functools.lru_cache(_REMEMBERED)(self._render)
    self._in_parts = bool(image_token)
    self._in_parts = self._in_parts and self._takes_parts()
    self.has_system = self._shows([Turn('system', _SOUGHT), Turn('user', 'a')])
    if not self._shows([Turn('user', _SOUGHT)]):
      raise UserError(f'{where}: its chat template does not show what a user turn says')

  def render(self, turns: Sequence[Turn], images: int, *, ask: bool) -> str:
    """Renders a conversation.

    Args:
      turns: of the user and of the assistant by turns, a system turn first if any.
      images: that come first in the first user turn.
      ask: ends where the assistant is to write.

    Raises:
      UserError: the template has no system role, or refuses these turns.
    """
    if any(turn.role == 'system' for turn in turns) and not self.has_system:
      raise UserError(
        f'{self.where}: its chat template has no system role, but a system turn is given; put its '
        'text into the user turn, or take another template'
      )
    return self._remembered(tuple(turns), images, ask)

  def _render(self, turns: Sequence[Turn], images: int, ask: bool = False) -> str:
    messages: list[dict[str, Any]] = []
    for turn in turns:
      here, text = images if turn.role == 'user' else 0, self._harmless(turn.text)
      images -= here
      content: Any = f'{self.image_token}\n' * here + text
      if self._in_parts:
        said = [{'type': 'text', 'text': text}] if text or not here else []
        content = [{'type': 'image'}] * here + said
      messages.append({'role': turn.role, 'content': content})
    try:
      return self._hf.apply_chat_template(
        messages, chat_template=self.source, tokenize=False, add_generation_prompt=ask
      )
    except jinja2.TemplateError as error:
      raise UserError(
        f'{self.where}: its chat template refuses these turns ({" ".join(str(error).split())})'
      ) from error

  def _harmless(self, text: str) -> str:
    while self._control.search(text):
      text = self._control.sub(_broken, text)
    return text

  def _takes_parts(self) -> bool:
    """Whether it takes contents as lists of images and texts."""
    try:
      text = self._render([Turn('user', _SOUGHT)], 1)
    except (UserError, TypeError):  # it adds texts up, and finds a list
      return False
    return text.count(_SOUGHT) == 1 and text.count(self.image_token) == 1 and "'type'" not in text

  def _shows(self, turns: Sequence[Turn]) -> bool:
    try:
      return _SOUGHT in self._render(turns, 0)
    except UserError:
      return False


def _broken(match: re.Match[str]) -> str:
  token = match[0]
  return f'{token[0]} {token[1:]}' if len(token) > 1 else ''
