import numpy as np
import pytest

from align_jax.evaluation import retrieval


def brute_force(features, same_caption):
  """Ranks by sorting, one query at a time, ties against the model."""
  near = features.text.astype(np.float64) @ features.image.astype(np.float64).T
  owner, texts = features.text_owner, features.texts
  t2i = []
  for q, text in enumerate(texts):
    right = {owner[j] for j in range(len(texts)) if (texts[j] == text if same_caption else j == q)}
    best = max(near[q, i] for i in right)
    wrong = [near[q, i] for i in range(len(features.ids)) if i not in right]
    t2i.append(1 + sum(w >= best - retrieval.TIE for w in wrong))
  i2t = []
  for i in sorted(set(owner)):
    mine = {texts[j] if same_caption else j for j in range(len(texts)) if owner[j] == i}
    seen = {}
    for j, text in enumerate(texts):
      seen.setdefault(text if same_caption else j, near[j, i])
    best = max(seen[m] for m in mine)
    i2t.append(1 + sum(v >= best - retrieval.TIE for k, v in seen.items() if k not in mine))
  return np.asarray(t2i), np.asarray(i2t)


@pytest.mark.parametrize('same_caption', [True, False])
def test_ranks_equal_brute_force(make_features, unit, same_caption, monkeypatch):
  monkeypatch.setattr(retrieval, '_BLOCK', 64)  # several blocks
  rng = np.random.default_rng(1)
  owner = np.sort(rng.integers(0, 12, 30))  # some images have no caption, most have several
  names = [f'caption {k}' for k in rng.integers(0, 18, 30)]
  distinct = unit(18, seed=2)
  text = distinct[[int(n.split()[1]) for n in names]]
  features = make_features(unit(12), text, owner, names)
  t2i, i2t = brute_force(features, same_caption)
  np.testing.assert_array_equal(retrieval.text_to_image_ranks(features, same_caption), t2i)
  np.testing.assert_array_equal(retrieval.image_to_text_ranks(features, same_caption), i2t)
  scores = retrieval.retrieve(features, same_caption=same_caption)
  assert scores['t2i.r5'] == np.mean(t2i <= 5)
  assert scores['i2t.median_rank'] == np.median(i2t)


def test_a_perfect_model_scores_one(make_features):
  same = np.eye(4, dtype=np.float32)
  scores = retrieval.retrieve(make_features(same, same))
  assert set(scores.values()) == {1.0}
  assert set(scores) == {
    f'{way}.{name}' for way in ('t2i', 'i2t') for name in ('r1', 'r5', 'r10', 'median_rank')
  }


def test_constant_embeddings_score_nothing(make_features, unit):
  same = np.repeat(unit(1, 37), 301, axis=0)
  scores = retrieval.retrieve(make_features(same, same))
  assert scores['t2i.r10'] == scores['i2t.r10'] == 0
  assert scores['t2i.median_rank'] == 301


def test_any_image_with_that_very_caption_is_right(make_features):
  image = np.eye(3, dtype=np.float32)
  features = make_features(image, image[[0, 0, 2]], texts=['a cat', 'a cat', 'a dog'])
  assert retrieval.text_to_image_ranks(features).tolist() == [1, 1, 1]
  assert retrieval.text_to_image_ranks(features, same_caption=False).tolist() == [1, 3, 1]


def test_any_caption_of_an_image_is_a_hit(make_features):
  image = np.eye(2, dtype=np.float32)
  text = np.float32([[0, 1], [1, 0], [0, 1]])  # image 0: a wrong and a right one
  features = make_features(image, text, owner=[0, 0, 1])
  assert retrieval.image_to_text_ranks(features)[0] == 1


def test_no_captions(make_features, unit):
  with pytest.raises(ValueError, match='no captions'):
    retrieval.retrieve(make_features(unit(3)))


def test_nearest_orders_and_keeps_to_what_there_is(unit):
  query, candidates = unit(5), unit(3, seed=1)
  rows, cosines = retrieval.nearest(query, candidates, 10)
  near = query @ candidates.T
  np.testing.assert_array_equal(rows, np.argsort(-near, axis=1))
  np.testing.assert_allclose(cosines, -np.sort(-near, axis=1), rtol=1e-6)
