"""One-word summaries, so that prompts which ask for one mean something (`data.embed_prompt`).

Large models can follow such a prompt from what they have learnt elsewhere; one that is trained here
from scratch learns it from these.
"""

from collections.abc import Callable, Mapping
from typing import get_args

from align_jax.data.chat_template import Turn
from align_jax.data.embed_prompt import Role, embed_turns
from align_jax.data.pair_record import Content
from align_jax.data.record import Record

Turns = tuple[Turn, ...]


def one_words(record: Record) -> list[str]:
  """Returns the things that an emoji scene shows, each as the last word of its name."""
  objects = record.truth.get('objects') or ()
  labels = [item.get('label') for item in objects if isinstance(item, Mapping)]
  return [label.split()[-1] for label in labels if isinstance(label, str) and label.strip()]


def draw_summaries(
  record: Record, words: list[str], draw: Callable[[], float]
) -> tuple[Turns, tuple[Turns, ...]]:
  """Draws how an image and its caption alone are summarised, each in one of the words.

  Args:
    record: with an image; without a caption there is no summary of one.
    words: see `one_words`, at least one.
    draw: returns numbers in [0, 1).

  Returns: the conversation about the image, and those about text alone, none or one.
  """

  def summary(content: Content) -> Turns:
    level = 'user' if draw() < 0.5 else 'hierarchical'
    role = get_args(Role)[int(2 * draw())]
    asked = embed_turns(content, role, '', level)  # type: ignore[arg-type]
    return (*asked, Turn('assistant', words[int(draw() * len(words))]))

  image = summary(Content(images=(record.image,), id=record.id))
  captions = [caption for caption in record.captions if caption.strip()]
  texts = captions[int(draw() * len(captions)) :][:1]
  return image, tuple(summary(Content(text, id=record.id)) for text in texts)
