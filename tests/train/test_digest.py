"""The digest is the formula's on any devices, and no flipped bit gets past it or the seal."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from align_jax.parallel.mesh import MeshConfig, make_mesh
from align_jax.train.damage import Damaged
from align_jax.train.digest import digest, entries, flat, kind_of, kinds, seal, unseal

TYPES = ('float32', 'int32', 'uint32', 'bfloat16', 'float16', 'int8', 'uint8', 'bool', 'float64')


def mix(word):
  word = word + np.uint32(0x9E3779B9)
  word = (word ^ (word >> np.uint32(16))) * np.uint32(0x85EBCA6B)
  word = (word ^ (word >> np.uint32(13))) * np.uint32(0xC2B2AE35)
  return word ^ (word >> np.uint32(16))


def reference(x):
  """The formula of the module's docstring, in NumPy."""
  size = x.dtype.itemsize
  words = x.reshape(-1).view({1: 'u1', 2: '<u2', 4: '<u4', 8: '<u4'}[size]).astype(np.uint32)
  first = mix(words ^ mix(np.arange(words.size, dtype=np.uint32)))
  return ''.join(f'{part.sum(dtype=np.uint32):08x}' for part in (first, mix(first)))


def values(dtype, shape):
  rng = np.random.default_rng(7)
  if dtype == 'bool':
    return rng.integers(0, 2, shape).astype(bool)
  if np.issubdtype(jnp.dtype(dtype), np.integer):
    return rng.integers(-100 if 'u' not in dtype else 0, 100, shape).astype(dtype)
  return rng.normal(size=shape).astype(jnp.dtype(dtype))


@pytest.mark.parametrize('dtype', TYPES)
def test_it_is_the_formula_for_every_type(dtype):
  with jax.enable_x64(dtype == 'float64'):
    arrays = {str(s): values(dtype, s) for s in ((), (7,), (3, 5), (2, 3, 4), (0, 4))}
    found = digest({n: jnp.asarray(x) for n, x in arrays.items()})
  assert found == {n: reference(x) for n, x in arrays.items()}


@pytest.mark.parametrize('shape', [(1, 1, 1), (8, 1, 1), (2, 2, 2), (1, 4, 2)])
def test_it_is_the_same_however_the_array_is_split(shape):
  mesh = make_mesh(MeshConfig(*shape), jax.devices()[: int(np.prod(shape))])
  x = values('float32', (16, 24, 8))
  specs = [(), ('data',), (None, ('fsdp', 'tensor')), ('fsdp', None, 'tensor'), ('tensor', 'data')]
  arrays = {str(s): jax.device_put(x, NamedSharding(mesh, PartitionSpec(*s))) for s in specs} | {
    'one device': jnp.asarray(x)
  }
  assert set(digest(arrays).values()) == {reference(x)}


def test_every_flipped_bit_changes_it():
  x = values('float32', (3, 5))
  before = digest({'x': jnp.asarray(x)})
  for word in range(x.size):
    for bit in range(32):
      flipped = x.copy()
      flipped.reshape(-1).view(np.uint32)[word] ^= np.uint32(1 << bit)
      after = digest({'x': jnp.asarray(flipped)})
      # both halves change
      assert after['x'][:8] != before['x'][:8]
      assert after['x'][8:] != before['x'][8:]


def test_changes_to_several_words_do_not_cancel():
  """Neither flipped signs, which any odd factors would let cancel in pairs, nor opposite steps."""
  x = values('float32', (64,))
  seen = {x.tobytes(): digest({'x': jnp.asarray(x)})['x']}
  rng = np.random.default_rng(0)
  for bit in range(32):
    for count in (2, 4, 16, 64):
      places = rng.permutation(64)[:count]
      for change in ('flip', 'add and take away'):
        words = x.copy().view(np.uint32)
        amount = np.uint32(1 << bit)
        if change == 'flip':
          words[places] ^= amount
        else:
          words[places[::2]] += amount
          words[places[1::2]] -= amount
        seen[words.tobytes()] = digest({'x': jnp.asarray(words.view(np.float32))})['x']
  assert len(seen) > 200
  for half in (slice(8), slice(8, 16)):
    assert len({found[half] for found in seen.values()}) == len(seen)


def test_places_count_and_so_do_signs_of_zero_and_kinds_of_nan():
  base = np.zeros((4, 4), np.float32)
  swapped, negative, nan, other = base.copy(), base.copy(), base.copy(), base.copy()
  base[0, 1] = swapped[1, 0] = 1.0
  negative[0, 0] = -0.0
  nan[0, 0] = np.nan
  other.view(np.uint32)[0, 0] = 0x7FC00001
  found = digest(
    {str(i): jnp.asarray(x) for i, x in enumerate((base, swapped, negative, nan, other))}
  )
  assert len(set(found.values())) == 5


def test_keys_go_by_their_data():
  key = jax.random.key(3)
  assert digest({'key': key}) == {'key': reference(np.asarray(jax.random.key_data(key)))}


def test_an_entry_says_type_and_shape_and_digest():
  tree = {'model': {'a/b': jnp.ones((2, 3))}, 'train': [jnp.zeros((), jnp.int32)]}
  found = entries(flat(tree))
  assert {n: kind_of(e) for n, e in found.items()} == kinds(flat(tree))
  assert kinds(flat(tree)) == {'model/a/b': 'float32[2,3]', 'train/0': 'int32[]'}
  assert found['train/0'] == f'int32[] {reference(np.zeros((), np.int32))}'


def test_what_is_sealed_comes_back_and_what_was_never_sealed_passes():
  arrays = {'model/kernel': 'float32[8,16] 0123456789abcdef'}
  sealed = json.loads(json.dumps(seal({'positions': [(3, 4), None]}, arrays)))
  assert unseal(sealed) == ({'positions': [[3, 4], None]}, arrays)
  assert unseal({'position': 7}) == ({'position': 7}, None)
  assert unseal({}) == ({}, None)


def test_no_flipped_byte_gets_past_the_seal():
  whole = seal({'start': 5, 'positions': [[3, 4]]}, {'model/x': 'float32[2] 0123456789abcdef'})
  text = json.dumps(whole).encode()
  passed = 0
  for at in range(len(text)):
    for flip in (*(1 << bit for bit in range(8)), 0xFF, 0x2A):
      try:
        read = json.loads(bytes([*text[:at], text[at] ^ flip, *text[at + 1 :]]).decode())
        got = unseal(read)
      except (ValueError, Damaged):
        continue
      assert got == unseal(whole)  # white space for white space
      passed += 1
  assert passed < len(text)
