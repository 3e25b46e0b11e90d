"""Prompts from words alone: templates, and a grammar over attributes."""

import dataclasses
import math
import random
import re
from collections.abc import Iterator, Mapping

from align_jax.errors import require
from align_jax.synth.rows import Category

# DiverGen, arXiv 2405.10185, section 3.2
DIVERGEN = 'a photo of a single {name}, {definition}, in a white background'
_TRIES = 50  # for each prompt wanted, before the grammar counts as exhausted
_FIELD = re.compile(r'{(\w+)}')
_WORDS = 20  # of a definition within a prompt
_MARK = '\0'
_ARTICLE = re.compile(r'\b([Aa]) +(?={)')
# by sound, as far as letters tell: an umbrella, an hour; a unicorn, a used car, a one-way sign
_VOWEL = re.compile(
  rf'{_MARK}(?= (?!eu|one\b|uni(?![ndm])|us[ae]|ut[ei]|uk)([aeiou]|hour|honest|heir))', re.I
)

COLOURS = ('red', 'orange', 'yellow', 'green', 'blue', 'purple', 'pink', 'brown', 'black', 'white')
MATERIALS = ('wood', 'metal', 'glass', 'plastic', 'paper', 'cloth', 'stone', 'leather')
ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
  'style': ('photo', 'close-up photo', 'studio photo', 'drawing', 'painting', '3d rendering'),
  'size': ('tiny', 'small', 'large', 'huge'),
  'colour': COLOURS,
  'material': MATERIALS,
  'place': ('in a white background', 'on a table', 'on grass', 'on sand', 'in the snow'),
  'view': ('seen from the front', 'seen from the side', 'seen from above', 'seen from behind'),
}


@dataclasses.dataclass(frozen=True)
class Written:
  """A prompt, and what was varied in it."""

  text: str
  attributes: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class GrammarConfig:
  """A grammar: patterns with one `{name}` and attributes, and the words of each attribute.

  Attributes:
    patterns: each is used as often as the others.
    attributes: name to words.
  """

  patterns: tuple[str, ...] = (
    'a {style} of a single {size} {colour} {name}, {view}, {place}',
    'a {style} of one {colour} {name} made of {material}, {place}',
  )
  attributes: Mapping[str, tuple[str, ...]] = dataclasses.field(
    default_factory=lambda: dict(ATTRIBUTES)
  )

  def __post_init__(self) -> None:
    where = 'config.prompts.grammar'
    require(bool(self.patterns), f'{where}.patterns', 'none; write at least one')
    for pattern in self.patterns:
      check_fields(pattern, {'name', 'definition', *self.attributes}, f'{where}.patterns')
    for name, words in self.attributes.items():
      require(bool(words), f'{where}.attributes.{name}', 'has no words')


def check_fields(template: str, known: set[str], where: str) -> None:
  """Raises a UserError for a template without `{name}` or with a field that is not known."""
  fields = _FIELD.findall(template)
  require(fields.count('name') == 1, where, f'{template!r} needs one {{name}}')
  rest = _FIELD.sub('', template)
  require(
    '{' not in rest and '}' not in rest, where, f'{template!r} has other braces than {{field}}'
  )
  for field in fields:
    require(
      field in known,
      where,
      f'{template!r}: {{{field}}} is unknown; known: {", ".join(sorted(known))}',
    )


def fill(template: str, category: Category, attributes: Mapping[str, str]) -> str:
  """Puts words into a template; without a definition its commas close up, `a` becomes `an`."""
  values = {**attributes, 'name': category.name, 'definition': shorten(category)}
  # the template's own articles alone: names and definitions are as they are
  text = _ARTICLE.sub(rf'\1{_MARK} ', template)
  text = _FIELD.sub(lambda found: values[found[1]], text)
  text = re.sub(r'\s*,(\s*,)+', ',', ' '.join(text.split()))
  return _VOWEL.sub('n', text).replace(_MARK, '').strip(' ,')


def shorten(category: Category) -> str:
  """Returns the definition in a few words: CLIP reads 77 tokens, and what follows counts too.

  The first sentence, up to a semicolon; of a long one up to a comma; without `A cat is …` and what
  is in parentheses.
  """
  text = re.sub(r'\s*\([^()]*\)', '', ' '.join(category.definition.split()))
  text = re.split(r'(?<=[^.]{3})[.;](?:\s|$)', text, maxsplit=1)[0]
  name = re.escape(category.name)
  text = re.sub(rf'^(?:(?:an?|the)\s+)?{name}(?:s|es)?\s+(?:is|are)\s+', '', text, flags=re.I)
  words = text.rstrip('. ').split()
  if len(words) > _WORDS:
    words = words[:_WORDS]
    commas = [i for i, word in enumerate(words) if word.endswith(',') and i >= _WORDS // 4]
    words = words[: commas[-1] + 1] if commas else words
  text = ' '.join(words).rstrip(', ')
  return re.sub(r'^(?:An?|The)\b', lambda found: found[0].lower(), text)


def from_templates(templates: tuple[str, ...], category: Category) -> Iterator[Written]:
  """Yields one prompt for each template."""
  for template in templates:
    yield Written(fill(template, category, {}))


def from_grammar(config: GrammarConfig, category: Category, seed: int) -> Iterator[Written]:
  """Yields different prompts in an order that follows from the seed; ends when there are no more.

  Words are drawn evenly: every word of an attribute is used before any is used again.
  """
  rng = random.Random(f'{seed}\0{category.name}')
  decks: dict[str, list[str]] = {}

  def draw(attribute: str) -> str:
    if not decks.get(attribute):
      words = config.attributes[attribute]
      decks[attribute] = rng.sample(words, len(words))
    return decks[attribute].pop()

  seen: set[str] = set()
  total = sum(
    math.prod(len(config.attributes[f]) for f in _FIELD.findall(p) if f in config.attributes)
    for p in config.patterns
  )
  turn = failures = 0
  while len(seen) < total and failures < _TRIES * (len(seen) + 1):
    pattern = config.patterns[turn % len(config.patterns)]
    turn += 1
    fields = [f for f in _FIELD.findall(pattern) if f in config.attributes]
    attributes = {field: draw(field) for field in fields}
    text = fill(pattern, category, attributes)
    if text in seen:
      failures += 1
      continue
    seen.add(text)
    yield Written(text, attributes)
