import numpy as np
import pytest

from align_jax.errors import UserError
from align_jax.synth.categories import CategoryConfig, cut_extra, make_categories
from align_jax.synth.rows import Category
from align_jax.synth.wordlists import read_words
from tests import tiny

# lines of WordNet 3.0
DATA = """  1 This software and database is being provided to you
00015388 05 n 02 animal 0 beast 0 001 @ 00004475 n 0000 | a living organism; "it eats"
02084071 05 n 01 dog 0 001 @ 02083346 n 0000 | a member of the genus Canis; "the dog barked"
02691156 06 n 01 airplane 0 001 @ 03510583 n 0000 | an aircraft that has a fixed wing
10926380 18 n 01 Crane 0 001 @i 10794014 n 0000 | United States writer (1871-1900)
02017213 05 n 01 crane 0 001 @ 02007558 n 0000 | large long-necked wading bird
09117351 15 n 01 Alaska 0 001 @i 08654360 n 0000 | a state in northwestern North America
04692908 07 n 01 red 0 001 @ 04692157 n 0000 | the quality of a color
"""
INDEX = """  1 This software and database is being provided to you
airplane n 1 1 @ 1 1 02691156
alaska n 1 1 @i 1 0 09117351
crane n 2 2 @ @i 2 0 10926380 02017213
dog n 2 1 @ 2 1 02084071 00015388
living_animal n 1 0 1 0 00015388
red n 1 1 @ 1 0 04692908
"""


def embed(texts):
  """Texts by the share of each letter: alike words have alike letters."""
  out = np.zeros((len(texts), 26), np.float32)
  for row, text in zip(out, texts, strict=True):
    for letter in text.lower():
      if 'a' <= letter <= 'z':
        row[ord(letter) - 97] += 1
  return out / np.linalg.norm(out, axis=1, keepdims=True)


def config(**changes) -> CategoryConfig:
  return CategoryConfig(**{'names': ('cat', 'dog'), 'template': '{name}', **changes})


def test_own_names_alone():
  categories, notes = make_categories(config(), None)
  assert categories == [Category('cat'), Category('dog')] and not notes


def test_extra_ones_lie_under_the_threshold_least_alike_first(tmp_path):
  names = ['fly', 'Dog', 'god', 'sun\ta star', 'bus', 'tac', '# no', '', 'FLY', 'act']
  (tmp_path / 'list.txt').write_text('\n'.join(names))
  categories, notes = make_categories(
    config(extra=f'file:{tmp_path}/list.txt', extra_count=3, threshold=0.5), embed
  )
  extra = categories[2:]
  assert [c.name for c in extra] == ['fly', 'sun', 'bus']  # god, tac and act are cat and dog again
  assert extra[1] == Category('sun', 'a star', True, 0.0, 'file')
  similarity = (embed(['fly', 'sun', 'bus']) @ embed(['cat', 'dog']).T).max(axis=1)
  np.testing.assert_allclose([c.similarity for c in extra], similarity, atol=1e-4)
  assert notes == [f'1 names of file:{tmp_path}/list.txt are base categories']


def test_too_few_are_noted_or_an_error(tmp_path):
  (tmp_path / 'list.txt').write_text('fly\ngod\n')
  wanted = {'extra': f'file:{tmp_path}/list.txt', 'extra_count': 2, 'threshold': 0.5}
  categories, notes = make_categories(config(**wanted), embed)
  assert [c.name for c in categories] == ['cat', 'dog', 'fly']
  assert notes == [
    '1 of 2 extra categories have a similarity of at most 0.5 to the base, 2 are wanted'
  ]
  with pytest.raises(UserError, match=r'threshold: 1 of 2 .*; 1.00 would give 2'):
    make_categories(config(**wanted, shortfall='error'), embed)
  with pytest.raises(UserError, match='needs an embedder'):
    make_categories(config(**wanted), None)
  with pytest.raises(UserError, match='not finite'):
    make_categories(config(**wanted), lambda texts: np.full((len(texts), 3), np.nan))


def test_lists_of_names(tmp_path):
  words = read_words('imagenet')
  assert len(words) == 1000 and words[1].name == 'goldfish' and words[0].definition
  (tmp_path / 'data.noun').write_text(DATA)
  (tmp_path / 'index.noun').write_text(INDEX)
  nouns = {w.name: w.definition for w in read_words(f'wordnet:{tmp_path}')}
  assert nouns == {
    'airplane': 'an aircraft that has a fixed wing',
    'crane': 'large long-necked wading bird',  # rather than the writer, who has no article
    'dog': 'a member of the genus Canis',
    'living animal': 'a living organism',
  }
  tiny.photo_folder(tmp_path / 'photos', each=3)
  labels = read_words(f'source:folder:{tmp_path}/photos')
  assert len(labels) == 6 and all(w.count == 3 for w in labels)
  own, _ = make_categories(CategoryConfig(base=f'source:folder:{tmp_path}/photos'), None)
  assert own[0].real_images == 3 and not own[0].extra


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    ('imagnet', "did you mean 'imagenet'"),
    ('file', 'write imagenet'),
    ('file:{path}/lst.txt', r"no such file; did you mean 'list.txt'"),
    ('file:{path}/empty.txt', 'holds no names'),
    ('file:{path}/tab.txt', r'tab.txt:2: a definition without a name'),
    ('file:{path}/prose.txt', r'prose.txt:1: .* too long for a name'),
    ('file:{path}/bytes.txt', 'cannot be read'),
    ('wordnet:{path}', 'data.noun: no such file'),
    ('wordnet:{path}/other', "index.noun: 'dog' has no sense in"),
    ('wordnet:{path}/prose', 'data.noun: no WordNet file'),
    ('source:folder:{path}/none', 'no folder'),
  ],
)
def test_bad_lists(tmp_path, spec, message):
  (tmp_path / 'list.txt').write_text('cat\n')
  (tmp_path / 'empty.txt').write_text('\n# nothing\n')
  (tmp_path / 'tab.txt').write_text('cat\n\ta dog\n')
  (tmp_path / 'prose.txt').write_text('long ' * 60)
  (tmp_path / 'bytes.txt').write_bytes(b'\xff\xfe\xff')
  for folder, data in (('other', DATA), ('prose', 'a dog | is a dog')):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / 'data.noun').write_text(data)
    (tmp_path / folder / 'index.noun').write_text('dog n 1 1 @ 1 1 12345678\n')
  with pytest.raises(UserError, match=message):
    read_words(spec.format(path=tmp_path))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'names': ()}, 'set either names or base'),
    ({'base': 'imagenet'}, 'set either names or base'),
    ({'names': ('cat', 'Cat')}, 'is there twice'),
    ({'names': ('cat', ' ')}, 'empty name'),
    ({'threshold': 1.5}, 'threshold: 1.5'),
    ({'template': 'a photo'}, 'template'),
    ({'extra_count': -1}, 'extra_count'),
  ],
)
def test_bad_configs(changes, message):
  with pytest.raises(UserError, match=message):
    config(**changes)


def test_extra_categories_are_cut_off_again():
  categories = [Category('cat'), Category('sun', extra=True), Category('dog')]
  head = np.arange(6.0).reshape(3, 2)
  names, (vectors, bias) = cut_extra(['sun', 'dog', 'cat'], categories, head, np.arange(3.0))
  assert names == ['dog', 'cat']
  np.testing.assert_array_equal(vectors, head[1:])
  np.testing.assert_array_equal(bias, [1, 2])
  with pytest.raises(UserError, match='2 rows for 3 classes'):
    cut_extra(['sun', 'dog', 'cat'], categories, head[:2])
  with pytest.raises(UserError, match='nothing would be left'):
    cut_extra(['sun'], categories)
