"""How a content is put to a generative model that is to embed it: the templates, in words.

The embedding is the hidden state of the last token of the prompt, from which the model would write
its answer. A request for one word makes that token gather what matters (E5-V, arXiv 2407.12580);
SaHa says the role once, in a system turn that is the same for queries and candidates, and repeats
the request for queries alone (arXiv 2508.00955, section 3.2).
"""

from typing import Literal

from align_jax.data.chat_template import Turn
from align_jax.data.pair_record import Content

Level = Literal['none', 'user', 'hierarchical']
Role = Literal['query', 'candidate']

SYSTEM = (
  'You are given an image, a text, or both. Summarise the image in one word; if there is only a '
  'text, describe it in one word.'
)
REQUEST = 'Represent the given {what} in one word.'


def embed_turns(content: Content, role: Role, instruction: str, level: Level) -> list[Turn]:
  """Returns the conversation whose answer would be the embedding.

  Args:
    content: what is embedded; its images come before all text.
    role: of the content.
    instruction: what the task asks for; '' for nothing.
    level: `none`: instruction and content alone. `user`: the request in the user turn, of queries
      and candidates. `hierarchical`: the role in a system turn, and the request after queries.
  """
  said = '\n'.join(part for part in (instruction, content.text) if part)
  request = ''
  if level == 'user' or (level == 'hierarchical' and role == 'query'):
    request = ('\n' if said else '') + REQUEST.format(what=_what(content))
  user = Turn('user', said + request, kept=len(request))  # a long text is cut, not the request
  return [Turn('system', SYSTEM), user] if level == 'hierarchical' else [user]


def _what(content: Content) -> str:
  if content.images:
    return 'text and image' if content.text else 'image'
  return 'text'
