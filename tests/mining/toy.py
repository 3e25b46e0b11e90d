"""Pairs whose hidden matches are known: each is made from a meaning, which others may have too."""

import dataclasses

import numpy as np

from align_jax.mining.pairs import Pairs


@dataclasses.dataclass(frozen=True)
class Toy:
  """How pairs are made.

  Attributes:
    pairs, meanings, topics: how many; a meaning is of a topic, a pair of a meaning.
    spread: of meanings about their topic, whose own coordinates are of size 1.
    query_noise, candidate_noise: of each about its meaning.
    cone: what all embeddings share; gap: what all candidates share besides.
  """

  pairs: int = 1000
  meanings: int = 375
  topics: int = 15
  spread: float = 0.6
  query_noise: float = 0.25
  candidate_noise: float = 0.5
  cone: float = 0.0
  gap: float = 0.0


def unit(x):
  return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def make_toy(toy, seed, dim=32):
  """Returns pairs and the meaning of each."""
  rng = np.random.default_rng(seed)
  some = rng.standard_normal((toy.topics, dim))[rng.integers(0, toy.topics, toy.meanings)]
  some = some + toy.spread * rng.standard_normal((toy.meanings, dim))
  meaning = rng.integers(0, toy.meanings, toy.pairs)
  cone, gap = toy.cone * rng.standard_normal(dim), toy.gap * rng.standard_normal(dim)
  queries = some[meaning] + toy.query_noise * rng.standard_normal((toy.pairs, dim)) + cone
  candidates = some[meaning] + toy.candidate_noise * rng.standard_normal((toy.pairs, dim))
  number = np.arange(toy.pairs, dtype=np.int32)
  return Pairs(unit(queries), unit(candidates + cone + gap), number, number), meaning


def judge(clusters, pairs, meaning):
  """Returns the share of hidden matches among negatives, and how hard the true negatives are."""
  products = pairs.queries[pairs.query] @ pairs.candidates[pairs.candidate].T
  left, right = clusters[:, :, None], clusters[:, None, :]
  there = (left >= 0) & (right >= 0) & (left != right)
  false = there & (meaning[left] == meaning[right])
  left, right = np.broadcast_arrays(left, right)
  true = there & ~false
  return false.sum() / there.sum(), products[left[true], right[true]].mean()


def some_pairs(rng, queries, candidates, pairs, dim=5, whole=True):
  """Random pairs of so many queries and candidates, each in one at least.

  `whole` makes embeddings of whole numbers, whose products are exact and often equal.
  """

  def vectors(count):
    if whole:
      return rng.integers(-2, 3, (count, dim)).astype(np.float32)
    return rng.standard_normal((count, dim)).astype(np.float32)

  longer = max(queries, candidates)
  least = rng.permutation(longer) % queries, rng.permutation(longer) % candidates
  both = list(dict.fromkeys(zip(*(x.tolist() for x in least), strict=True)))
  others = rng.permutation(queries * candidates).tolist()
  both = list(dict.fromkeys([*both, *((i // candidates, i % candidates) for i in others)]))[:pairs]
  query, candidate = np.asarray(both, np.int32)[rng.permutation(pairs)].T
  return Pairs(vectors(queries), vectors(candidates), query, candidate)
