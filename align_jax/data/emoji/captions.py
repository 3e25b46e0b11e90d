"""What is said of a scene: a short caption and a long one, both true to the last detail."""

from collections.abc import Sequence

from align_jax.data.emoji.colours import NATURAL
from align_jax.data.emoji.concepts import Concept, article
from align_jax.data.emoji.layout import position_word, size_word
from align_jax.data.emoji.scenes import Background, Item, Scene

_NUMBERS = {2: 'two', 3: 'three'}
_PLACES = {'left': 'on the left', 'right': 'on the right', 'centre': 'in the centre'}


def short_caption(scene: Scene) -> str:
  """Returns every object with count and colour: 'a blue banana and two foxes'."""
  return join_words([noun_phrase(item.concept, item.count, item.colour) for item in scene.items])


def long_caption(scene: Scene) -> str:
  """Returns size, count, colour and place of every object, and the background."""
  if scene.plain_portrait:
    (item,) = scene.items
    colour = '' if item.colour == NATURAL else f'{item.colour} '
    return f'a drawing of {colour}{item.concept.name} on a white background'
  told = [f'{_sized(item)} {places(item.centres)}' for item in scene.items]
  return f'{join_words(told, ", and ")}, on {background_phrase(scene.background)}'


def noun_phrase(concept: Concept, count: int, colour: str, size: str = '') -> str:
  """Returns 'a small red apple', 'two red apples' or 'a bunch of red grapes'."""
  paint = '' if colour == NATURAL else colour
  if concept.measure:
    head = f'{concept.measure}{"es" if concept.measure.endswith("ch") else "s"}'
    head = head if count > 1 else concept.measure
    words = f'{size} {head} of {paint} {concept.name}'
  else:
    words = f'{size} {paint} {concept.plural if count > 1 else concept.name}'
  words = ' '.join(words.split())
  return f'{_NUMBERS[count]} {words}' if count > 1 else article(words)


def singular(concept: Concept) -> str:
  """Returns 'cat' or 'bunch of grapes'."""
  return noun_phrase(concept, 1, NATURAL).split(' ', 1)[1]


def plural(concept: Concept) -> str:
  """Returns 'cats' or 'bunches of grapes'."""
  return noun_phrase(concept, 2, NATURAL).split(' ', 1)[1]


def places(centres: Sequence[tuple[float, float]]) -> str:
  """Returns 'at the top left', or several places joined, each told once."""
  names = dict.fromkeys(position_word(x, y) for x, y in centres)
  return join_words([_PLACES.get(name, f'at the {name}') for name in names])


def background_phrase(background: Background) -> str:
  """Returns 'a beige background', or from which colour to which it fades, and whither."""
  if background.plain:
    return f'{article(background.first)} background'
  way = 'from left to right' if background.across else 'from top to bottom'
  return f'a background that fades from {background.first} to {background.second} {way}'


def join_words(words: Sequence[str], last: str = ' and ') -> str:
  """Returns the words as a list in a sentence: 'a, b and c'."""
  return last.join([', '.join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _sized(item: Item) -> str:
  word = size_word(item.size)
  return noun_phrase(item.concept, item.count, item.colour, '' if word == 'medium' else word)
