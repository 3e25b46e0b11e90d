"""BLEU-4 and CIDEr-D against numbers of pycocoevalcap 1.2, and words against CoreNLP's."""

import collections
import math
import sys

import numpy as np
import pytest

from align_jax.errors import UserError
from align_jax.evaluation import caption_metrics

SAID = [
  'a man riding a wave on top of a surfboard',
  'two dogs play in the snow',
  'a red bus parked near the curb',
  'a cat',
  'the kitchen has a white stove and white cabinets in it',
]
KNOWN = [
  [
    'a man rides a wave on a surfboard',
    'a surfer riding a big wave',
    'the man is surfing a wave in the ocean',
  ],
  ['two brown dogs are playing in the snow', 'dogs run through snow'],
  [
    'a red double decker bus is parked on the street',
    'a bus parked near a curb',
    'a red bus on a city street',
    'the bus is red',
  ],
  ['a black cat is sleeping on a sofa', 'a cat lies on a couch with a cat toy'],
  [
    'a kitchen with a white stove and cabinets',
    'the kitchen has white cabinets and a white stove in it',
  ],
]
# pycocoevalcap 1.2, cider.Cider and bleu.Bleu(4), of the lists above
CIDER = [
  1.8320252834253115,
  1.8580294006887987,
  2.255484791169733,
  1.0917939549464428,
  3.919642411778841,
]
BLEU = 0.26493243585127185


def split(texts):
  return [[t.split() for t in part] if isinstance(part, list) else part.split() for part in texts]


def reference_cider(said, known, sigma=6.0):
  """CIDEr-D by its formula, with dense float64 vectors."""

  def grams(words, n):
    return collections.Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

  out = []
  for caption, texts in zip(said, known, strict=True):
    total = 0.0
    for n in range(1, 5):
      sets = [{g for t in refs for g in grams(t, n)} for refs in known]
      every = sorted({g for s in sets for g in s} | set(grams(caption, n)))
      idf = np.array(
        [math.log(len(known)) - math.log(max(1, sum(g in s for s in sets))) for g in every]
      )
      for text in texts:
        a, b = (idf * [grams(words, n)[g] for g in every] for words in (caption, text))
        norms = np.linalg.norm(a) * np.linalg.norm(b)
        cosine = np.minimum(a, b) @ b / norms if norms else 0.0
        delta = max(len(caption) - 1, 0) - max(len(text) - 1, 0)
        total += cosine * math.exp(-(delta**2) / (2 * sigma**2)) / len(texts)
    out.append(10 * total / 4)
  return out


def test_cider_is_that_of_the_coco_evaluation():
  found = caption_metrics.cider(split(SAID), split(KNOWN))
  np.testing.assert_allclose(found, CIDER, rtol=1e-12)


def test_cider_by_its_formula():
  rng = np.random.default_rng(0)
  words = [f'w{i}' for i in range(9)]

  def draw():
    return [words[i] for i in rng.integers(0, 9, rng.integers(1, 10))]

  known = [[draw() for _ in range(rng.integers(1, 4))] for _ in range(8)]
  said = [refs[0] if i % 2 else draw() for i, refs in enumerate(known)]
  np.testing.assert_allclose(
    caption_metrics.cider(said, known), reference_cider(said, known), rtol=1e-9, atol=1e-12
  )


def test_bleu_is_that_of_the_coco_evaluation():
  assert caption_metrics.bleu4(split(SAID), split(KNOWN)) == pytest.approx(BLEU, rel=1e-6)
  assert caption_metrics.bleu4([['a', 'b']], [[['c', 'd'], ['e']]]) == 0


def test_scores_of_texts():
  found = caption_metrics.caption_scores([f'{t.upper()}.' for t in SAID], KNOWN)
  assert found['bleu4'] == pytest.approx(BLEU, rel=1e-6)
  assert found['cider'] == pytest.approx(np.mean(CIDER), rel=1e-12)
  same = caption_metrics.caption_scores([refs[0] for refs in KNOWN], [refs[:1] for refs in KNOWN])
  assert same['bleu4'] == pytest.approx(1) and same['cider'] == pytest.approx(10)
  assert caption_metrics.caption_scores(['a b'], [['a b']])['cider'] == 0  # nothing is rare


# What Stanford CoreNLP 3.4.1's PTBTokenizer and the COCO evaluation make of captions. Of 528, these
# and 500 long captions of emoji scenes, all came out equal.
TOKENS = [
  (
    'Frisbee in the air, a dog squatting looking up at it.',
    'frisbee in the air a dog squatting looking up at it',
  ),
  (
    "A dog catching a purple Frisbee in it's mouth; a rainbow-colored one",
    "a dog catching a purple frisbee in it 's mouth a rainbow-colored one",
  ),
  (
    "The man's hat isn't on the table: it's on the bed!",
    "the man 's hat is n't on the table it 's on the bed",
  ),
  (
    'A "no parking" sign (bent) next to a stop sign...',
    'a no parking sign -lrb- bent -rrb- next to a stop sign',
  ),
  ('Two peanut butter & jelly sandwiches', 'two peanut butter & jelly sandwiches'),
  ("Children's toys and the dogs' bowls", "children 's toys and the dogs bowls"),
  (
    'A clock reading 3:45 p.m. on the U.S. Capitol',
    'a clock reading 3:45 p.m. on the u.s. capitol',
  ),
  ("A woman can't find her e-mail / paper", "a woman ca n't find her e-mail / paper"),
  ('a 42nd street corner, 2.5 inches, 1,000', 'a 42nd street corner 2.5 inches 1,000'),
  ('He gonna cannot eat the ice-cream', 'he gon na can not eat the ice-cream'),
  ('A $5 bill and a 50% off sign', 'a $ 5 bill and a 50 % off sign'),
  ("St. John's church and Mr. Smith", "st. john 's church and mr. smith"),
  ("We'll see, I'm sure you're right", "we 'll see i 'm sure you 're right"),
  ('a café with a naïve décor', 'a café with a naïve décor'),
]


@pytest.mark.parametrize(('text', 'tokens'), TOKENS)
def test_words(text, tokens):
  assert caption_metrics.words(text) == tokens.split()


def test_what_goes_wrong(monkeypatch):
  for said, known, message in (
    ([], [], 'none to score'),
    (['a'], [], '1 of them, references of 0'),
    (['a', 'b'], [['a'], []], '1 images have no reference, first number 1'),
  ):
    with pytest.raises(UserError, match=message):
      caption_metrics.caption_scores(said, known)
  monkeypatch.setitem(sys.modules, 'sacrebleu', None)
  with pytest.raises(UserError, match='sacrebleu is missing'):
    caption_metrics.caption_scores(SAID, KNOWN)
