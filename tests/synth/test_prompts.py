import collections
import itertools

import numpy as np
import pytest

from align_jax.errors import UserError
from align_jax.synth.prompts.diversity import distinct, pairwise_distance, unlike
from align_jax.synth.prompts.make import (
  PromptConfig,
  diversity_values,
  make_prompts,
  measure_diversity,
  mix,
  quotas,
)
from align_jax.synth.prompts.words import GrammarConfig, Written, fill, from_grammar, shorten
from align_jax.synth.rows import Category, PromptRow

CAT = Category('cat', 'a small animal that purrs.')
OWL = Category('owl')


def embed(texts):
  """Unit vectors of the counts of words, hashed without chance."""
  out = np.zeros((len(texts), 64), np.float32)
  for row, text in zip(out, texts, strict=True):
    for word in text.lower().replace(',', '').split():
      row[sum(map(ord, word)) % 64] += 1
  return out / np.linalg.norm(out, axis=1, keepdims=True)


def make(tmp_path, categories=(CAT, OWL), seed=0, embedder=embed, **config):
  return make_prompts(
    PromptConfig(**config), list(categories), embedder, seed=seed, cache=tmp_path / 'answers'
  )


def test_templates_with_and_without_a_definition():
  template = 'a photo of a single {name}, {definition}, in a white background'
  assert fill(template, CAT, {}) == (
    'a photo of a single cat, a small animal that purrs, in a white background'
  )
  assert fill(template, OWL, {}) == 'a photo of a single owl, in a white background'
  assert fill('a {name}', OWL, {}) == 'an owl'
  assert fill('A {colour} {name}', OWL, {'colour': 'orange'}) == 'An orange owl'


@pytest.mark.parametrize(
  ('name', 'text'),
  [
    ('umbrella', 'an umbrella'),
    ('unicorn', 'a unicorn'),
    ('hourglass', 'an hourglass'),
    ('one-way sign', 'a one-way sign'),
    ('unidentified object', 'an unidentified object'),
    ('eucalyptus', 'a eucalyptus'),
    ('vitamin a icon', 'a vitamin a icon'),  # its own letters are as they are
    ('{definition} {x}', 'a {definition} {x}'),
  ],
)
def test_articles_go_by_sound_and_names_stay(name, text):
  assert fill('a {name}', Category(name), {}) == text


@pytest.mark.parametrize(
  ('name', 'definition', 'short'),
  [
    ('cat', '', ''),
    ('cat', 'a small animal that purrs.', 'a small animal that purrs'),
    ('dog', 'a member of the genus Canis (a wolf); of many breeds', 'a member of the genus Canis'),
    ('crane', 'A crane is a lifting machine. It lifts.', 'a lifting machine'),
    ('owls', 'Owls are birds of the night', 'birds of the night'),
    ('car', 'U.S. word for an auto', 'U.S. word for an auto'),
    (
      'fish',
      f'A fish with {"long " * 9}fins, {"small " * 9}scales',
      f'a fish with {"long " * 9}fins',
    ),
    ('fish', 'so ' * 90, ' '.join(['so'] * 20)),
  ],
)
def test_definitions_are_a_few_words(name, definition, short):
  assert shorten(Category(name, definition)) == short


def test_any_first_prompts_are_of_every_strategy():
  rows = [(s, Written(f'{s}{i}')) for s, n in (('a', 8), ('b', 4), ('c', 1)) for i in range(n)]
  mixed = mix(rows)
  assert sorted(mixed, key=rows.index) == rows
  for strategy, count in (('a', 8), ('b', 4), ('c', 1)):
    own = [written.text for name, written in mixed if name == strategy]
    assert own == [f'{strategy}{i}' for i in range(count)]
    for first in range(1, 14):
      given = sum(name == strategy for name, _ in mixed[:first])
      assert abs(given - first * count / 13) <= 1


def test_an_embedder_that_gives_no_numbers_is_named(tmp_path):
  with pytest.raises(UserError, match=r'config.embedder: .* not finite'):
    make(tmp_path, embedder=lambda texts: np.full((len(texts), 3), np.nan), alike=0.9)


def test_greedy_choice_against_plain_loops():
  rng = np.random.default_rng(0)
  vectors = rng.normal(size=(200, 6))
  vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
  expected: list[int] = []
  for i in range(200):
    pairs = (
      sum(float(a) * float(b) for a, b in zip(vectors[i], vectors[j], strict=True))
      for j in expected
    )
    if all(cosine <= 0.8 for cosine in pairs):
      expected.append(i)
  assert 20 < len(expected) < 180
  np.testing.assert_array_equal(unlike(vectors, 0.8, 200), expected)


def test_the_report_knows_the_figures(tmp_path):
  rows, _ = make(tmp_path, (CAT,), per_category=3)
  values = diversity_values(measure_diversity(rows, None))
  assert values['grammar'].keys() == {'mean_pairwise_distance', 'distinct_1', 'distinct_2'}
  assert values['grammar']['mean_pairwise_distance'] is None
  values = diversity_values(measure_diversity(rows, embed))
  pairs = itertools.combinations(embed([r.text for r in rows]).astype(np.float64), 2)
  expected = np.mean([1 - a @ b for a, b in pairs])
  assert values['grammar']['mean_pairwise_distance'] == pytest.approx(expected, abs=1e-6)


def test_one_template_gives_one_prompt(tmp_path):
  rows, notes = make(tmp_path, per_category=1, strategies={'template': 1.0})
  assert [r.category for r in rows] == ['cat', 'owl'] and not notes
  rows, notes = make(tmp_path, per_category=3, strategies={'template': 1.0})
  assert len(rows) == 2 and notes == ['4 × prompt missing: the strategies have no more']


def test_the_grammar_is_exhausted_without_repeats():
  grammar = GrammarConfig(
    ('a {size} {colour} {name}',), {'size': ('small', 'large'), 'colour': ('red', 'blue', 'green')}
  )
  texts = [w.text for w in from_grammar(grammar, OWL, 0)]
  assert len(texts) == len(set(texts)) == 6
  assert texts == [w.text for w in from_grammar(grammar, OWL, 0)]
  assert texts != [w.text for w in from_grammar(grammar, OWL, 1)]
  # the first three use each colour once
  first = list(itertools.islice(from_grammar(grammar, OWL, 0), 3))
  assert {w.attributes['colour'] for w in first} == {'red', 'blue', 'green'}


def test_strategies_share_the_prompts(tmp_path):
  rows, notes = make(
    tmp_path,
    per_category=8,
    strategies={'template': 1.0, 'grammar': 3.0},
    templates=('a {name}', 'one {name}', 'the {name}'),
  )
  counts = collections.Counter((r.category, r.strategy) for r in rows)
  assert counts == {
    ('cat', 'template'): 2,
    ('cat', 'grammar'): 6,
    ('owl', 'template'): 2,
    ('owl', 'grammar'): 6,
  }
  assert not notes
  assert len({r.id for r in rows}) == 16 == len({(r.category, r.text) for r in rows})
  again, _ = make(
    tmp_path,
    per_category=8,
    strategies={'template': 1.0, 'grammar': 3.0},
    templates=('a {name}', 'one {name}', 'the {name}'),
  )
  assert rows == again


def test_what_one_strategy_lacks_the_others_give(tmp_path):
  for strategies in ({'template': 1.0, 'grammar': 1.0}, {'grammar': 1.0, 'template': 1.0}):
    rows, notes = make(tmp_path, (CAT,), per_category=10, strategies=strategies)
    assert collections.Counter(r.strategy for r in rows) == {'template': 1, 'grammar': 9}
    assert not notes


def test_alike_prompts_are_left_out(tmp_path):
  templates = ('a photo of a {name}', 'a photo of the {name}', 'one {name} drawn in chalk')
  rows, notes = make(
    tmp_path, (CAT,), per_category=3, strategies={'template': 1.0}, templates=templates, alike=0.7
  )
  assert [r.text for r in rows] == ['a photo of a cat', 'one cat drawn in chalk']
  assert '1 × prompt left out: too much like another' in notes
  vectors = embed([r.text for r in make(tmp_path, (CAT,), per_category=8, alike=0.8)[0]])
  cosine = vectors @ vectors.T - 2 * np.eye(len(vectors))
  assert len(vectors) == 8 and cosine.max() <= 0.8 + 1e-6
  with pytest.raises(UserError, match='alike: needs an embedder'):
    make(tmp_path, embedder=None, alike=0.9)


def test_diversity_against_every_pair():
  vectors = embed(['a red cat', 'a blue cat', 'one large owl on grass', 'a red cat'])
  pairs = [1 - a @ b for a, b in itertools.combinations(vectors.astype(np.float64), 2)]
  assert pairwise_distance(vectors) == pytest.approx(np.mean(pairs), abs=1e-6)
  assert np.isnan(pairwise_distance(vectors[:1]))
  assert distinct(['a red cat', 'A blue cat'], 1) == 4 / 6
  assert distinct(['a red cat', 'a red dog'], 2) == 3 / 4
  assert np.isnan(distinct(['cat'], 2))
  np.testing.assert_array_equal(unlike(vectors, 0.999, 9), [0, 1, 2])
  np.testing.assert_array_equal(unlike(vectors, 0.999, 2), [0, 1])


def test_the_grammar_is_more_diverse_than_templates(tmp_path):
  rows, _ = make(
    tmp_path,
    per_category=12,
    strategies={'template': 1.0, 'grammar': 1.0},
    templates=tuple(
      f'a photo of {word} {{name}}' for word in ('a', 'the', 'one', 'my', 'our', 'no')
    ),
  )
  found = measure_diversity(rows, embed)
  assert found['grammar'].distance > found['template'].distance
  assert found['grammar'].prompts == found['template'].prompts == 12
  assert found['grammar'].distinct2 > found['template'].distinct2
  assert np.isnan(measure_diversity(rows, None)['grammar'].distance)


def test_distinct_n_compares_as_many_of_each():
  texts = ('a red cat', 'a blue cat', 'one tiny cat', 'my old cat')
  rows = [PromptRow(str(i), 'cat', text, 'llm') for i, text in enumerate(texts)]
  rows += [PromptRow(f'g{i}', 'cat', text, 'grammar') for i, text in enumerate(texts[:2])]
  rows += [PromptRow(f'o{i}', 'owl', text, 'llm') for i, text in enumerate(texts[:3])]
  rows += [PromptRow('t', 'cat', 'a cat', 'template')]
  found = measure_diversity(rows, embed)
  assert found['grammar'].distinct1 == 4 / 6
  assert found['llm'].distinct1 == pytest.approx((4 / 6 + 6 / 9) / 2)
  assert found['llm'].distinct2 == pytest.approx((4 / 4 + 6 / 6) / 2)
  distances = []
  for some in (texts, texts[:3]):
    pairs = itertools.combinations(embed(some).astype(np.float64), 2)
    distances.append(np.mean([1 - a @ b for a, b in pairs]))
  assert found['llm'].distance == pytest.approx(np.mean(distances), abs=1e-6)
  one = found['template']
  assert one.prompts == 1 and all(map(np.isnan, (one.distance, one.distinct1, one.distinct2)))


def test_quotas_sum_up():
  assert quotas({'a': 1.0, 'b': 1.0, 'c': 1.0}, 8) == {'a': 3, 'b': 3, 'c': 2}
  assert quotas({'a': 0.1, 'b': 9.9}, 5) == {'a': 0, 'b': 5}


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'per_category': 0}, 'per_category'),
    ({'strategies': {}}, 'strategies: none'),
    ({'strategies': {'gramar': 1.0}}, "did you mean 'grammar'"),
    ({'strategies': {'grammar': 0.0}}, 'is not above 0'),
    ({'templates': ('a photo',)}, r"'a photo' needs one {name}"),
    ({'templates': ('{name} {colour}',)}, r'{colour} is unknown'),
    ({'templates': ('{name',)}, r'needs one {name}'),
    ({'templates': ('{name} {',)}, r'other braces'),
    ({'templates': ('{name} {definition!r}',)}, r'other braces'),
    ({'templates': ('{name} and {name}',)}, r'needs one {name}'),
    ({'alike': 0.0}, 'alike'),
  ],
)
def test_bad_configs(changes, message):
  with pytest.raises(UserError, match=message):
    PromptConfig(**changes)


def test_bad_grammars():
  with pytest.raises(UserError, match=r'{kind} is unknown'):
    GrammarConfig(('a {kind} {name}',))
  with pytest.raises(UserError, match=r'attributes.colour: has no words'):
    GrammarConfig(attributes={'colour': ()}, patterns=('a {colour} {name}',))
