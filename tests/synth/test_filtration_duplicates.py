"""Near-duplicates: equal to comparing all pairs one by one, in whatever parts they come."""

import itertools

import imagehash
import numpy as np
import pytest
from PIL import Image

from align_jax.errors import UserError
from align_jax.synth.filtration import duplicates as lib
from align_jax.synth.filtration.duplicates import DuplicateConfig, DuplicateIndex, is_alike
from align_jax.synth.hashes import hamming, perceptual_hash, to_bits


def pool(count: int = 240, seed: int = 0) -> tuple[list[str], list[str], list[str], np.ndarray]:
  """Ids, categories, hashes and embeddings, with chains of small steps."""
  rng = np.random.default_rng(seed)
  bits = [int(rng.integers(0, 2**63))]
  x = [rng.standard_normal(8)]
  for _ in range(count - 1):
    of = int(rng.integers(0, len(bits)))
    flips = rng.choice(64, rng.integers(0, 7), replace=False)
    same = rng.random() < 0.6
    bits.append(bits[of] ^ sum(1 << int(b) for b in flips) if same else int(rng.integers(0, 2**63)))
    x.append(x[of] + 0.3 * rng.standard_normal(8) if rng.random() < 0.6 else rng.standard_normal(8))
  vectors = np.asarray(x, np.float32)
  vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
  ids = [f'i{n}' for n in range(count)]
  categories = [f'c{n}' for n in rng.integers(0, 3, count)]
  return ids, categories, [f'{b:016x}' for b in bits], vectors


def brute_force(config: DuplicateConfig, ids, categories, hashes, x) -> list[str]:
  kept: list[int] = []
  out = []
  for i in range(len(ids)):
    of = ''
    for j in kept:
      here = config.scope == 'all' or categories[i] == categories[j]
      if here and is_alike(config, int(hashes[i], 16), x[i], int(hashes[j], 16), x[j]):
        of = ids[j]
        break
    out.append(of)
    if not of:
      kept.append(i)
  return out


@pytest.mark.parametrize(
  ('rule', 'scope'), itertools.product(('hash', 'embedding', 'either', 'both'), ('category', 'all'))
)
def test_equals_all_pairs_one_by_one(monkeypatch, rule, scope):
  config = DuplicateConfig(rule, distance=5, cosine=0.95, scope=scope)
  data = pool()
  want = brute_force(config, *data)
  assert 10 < sum(map(bool, want)) < 230
  monkeypatch.setattr(lib, '_ROWS', 16)  # so that kept images and blocks are several
  monkeypatch.setattr(lib, '_COLUMNS', 32)
  index = DuplicateIndex(config)
  assert index.feed(*data) == want
  assert len(index) == want.count('')


def test_parts_and_a_fresh_start_change_nothing(monkeypatch):
  config = DuplicateConfig('either', distance=4, cosine=0.96)
  ids, categories, hashes, x = pool()
  whole = DuplicateIndex(config).feed(ids, categories, hashes, x)
  found: list[str] = []
  for start in range(0, len(ids), 37):
    part = slice(start, start + 37)
    index = DuplicateIndex(config)  # as after a kill: from the rows of earlier parts
    kept = [i for i in range(start) if not found[i]]
    index.add(
      [ids[i] for i in kept], [categories[i] for i in kept], [hashes[i] for i in kept], x[kept]
    )
    found += index.feed(ids[part], categories[part], hashes[part], x[part])
  assert found == whole


def test_a_cosine_at_the_threshold_is_decided_by_the_pair_alone():
  rng = np.random.default_rng(3)
  x = rng.standard_normal((64, 32)).astype(np.float32)
  x /= np.linalg.norm(x, axis=1, keepdims=True)
  exact = float(np.cumsum(x[0].astype(np.float64) * x[1].astype(np.float64))[-1])
  ids, names, hashes = [f'{i}' for i in range(64)], ['a'] * 64, ['0' * 16] * 64
  for cosine, of in ((exact, '0'), (float(np.nextafter(exact, 1)), '')):
    for size in (2, 64):
      index = DuplicateIndex(DuplicateConfig('embedding', cosine=cosine))
      assert index.feed(ids[:size], names[:size], hashes[:size], x[:size])[1] == of


def test_a_chain_of_small_steps_is_not_one_image():
  hashes = [f'{(1 << n) - 1:016x}' for n in (0, 3, 6, 9)]
  found = DuplicateIndex(DuplicateConfig('hash', distance=4)).feed(
    ['a', 'b', 'c', 'd'], ['x'] * 4, hashes, np.zeros((4, 2), np.float32)
  )
  assert found == ['', 'a', '', 'c']


def test_no_rule_keeps_all_and_bad_input_is_named():
  ids, categories, hashes, x = pool(4)
  assert DuplicateIndex(DuplicateConfig('none')).feed(ids, categories, hashes, x) == [''] * 4
  index = DuplicateIndex(DuplicateConfig('either'))
  assert index.feed([], [], [], x[:0]) == []
  with pytest.raises(UserError, match='not finite'):
    index.feed(ids, categories, hashes, x * np.nan)
  with pytest.raises(UserError, match='not 16 hexadecimal digits'):
    index.feed(ids, categories, ['xyz'] * 4, x)
  index.feed(ids, categories, hashes, x)
  with pytest.raises(UserError, match='dimensions'):
    index.feed(ids, categories, hashes, x[:, :5])
  for bad in ({'distance': 64}, {'cosine': 1.5}):
    with pytest.raises(UserError, match=r'config\.filtration\.duplicates'):
      DuplicateConfig(**bad)


def test_hash_is_that_of_imagehash_and_survives_scaling():
  rng = np.random.default_rng(0)
  small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
  image = small.resize((96, 96), Image.Resampling.BICUBIC)
  other = np.asarray(small.transpose(Image.Transpose.ROTATE_90).resize((96, 96)))
  text = perceptual_hash(np.asarray(image))
  assert text == str(imagehash.phash(image)) and len(text) == 16
  scaled = perceptual_hash(np.asarray(image.resize((64, 64))))
  distances = hamming(to_bits([text]), to_bits([text, scaled, perceptual_hash(other)]))[0]
  assert distances[0] == 0 and distances[1] <= 4 < distances[2]
  assert distances[2] == imagehash.phash(image) - imagehash.phash(Image.fromarray(other))
