"""What a checkpoint must hold: a digest of every array, sealed with the data position.

The digest of an array is 64 bits: two sums over its bits as 32-bit words,

    a[i] = mix(word[i] ^ mix(i)),   b[i] = mix(a[i]);   sum of a, sum of b,   modulo 2**32.

Integer sums have no order: the digest is the same on every mesh and with any number of processes,
and it is computed where the array is, shard by shard, no copy on a host. `mix` is one to one, so
that a single word that changes, by one bit or by many, always changes both sums; and it spreads
every bit over the word, so that changes to several words do not cancel (as flipped signs do in
pairs, where words are only multiplied by something): damage goes unseen about once in 2**64.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from align_jax.train.damage import Damaged

_GOLDEN = 0x9E3779B9  # keeps `mix` away from 0, which it leaves as it is
_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}
_POSITION, _ARRAYS, _SEAL = 'position', 'arrays', 'sha256'


def flat(tree: Any) -> dict[str, Any]:
  """The leaves of a tree by path, `train/optimizer/3`."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(p, simple=True, separator='/'): leaf for p, leaf in leaves}


def kinds(arrays: Mapping[str, Any]) -> dict[str, str]:
  """Type and shape of arrays (or of their descriptions) by name: `float32[8,16]`."""
  return {n: f'{x.dtype}[{",".join(map(str, x.shape))}]' for n, x in arrays.items()}


def entries(arrays: Mapping[str, Array]) -> dict[str, str]:
  """Type, shape and digest of each array: `float32[8,16] 0123456789abcdef`."""
  digests = digest(arrays)
  return {name: f'{kind} {digests[name]}' for name, kind in kinds(arrays).items()}


def kind_of(entry: str) -> str:
  """The type and shape in an entry."""
  return entry.rpartition(' ')[0]


def digest(arrays: Mapping[str, Array]) -> dict[str, str]:
  """The digests of arrays, 16 hexadecimal digits each.

  All processes that hold a part of an array must call it, with the same names; all get the same
  answer. It waits until the arrays are computed.

  Args:
    arrays: by name, of any shapes, types of 1, 2, 4 or 8 bytes, and shardings; keys by their data.
  """
  groups: dict[frozenset[jax.Device], dict[str, Array]] = {}
  for name in sorted(arrays):
    groups.setdefault(frozenset(arrays[name].sharding.device_set), {})[name] = arrays[name]
  # all are begun before the first is waited for
  sums = [jax.jit(_sums, out_shardings=_everywhere(group))(group) for group in groups.values()]
  out: dict[str, str] = {}
  for group, values in zip(groups.values(), jax.device_get(sums), strict=True):
    out |= {n: ''.join(f'{v:08x}' for v in row) for n, row in zip(group, values, strict=True)}
  return out


def seal(position: Mapping[str, Any], arrays: Mapping[str, str]) -> dict[str, Any]:
  """The data position and the entries of all arrays as one JSON object that protects itself."""
  body = {_POSITION: dict(position), _ARRAYS: dict(arrays)}
  return {**body, _SEAL: _hash(body)}


def unseal(item: Any) -> tuple[dict[str, Any], dict[str, str] | None]:
  """Returns the data position and the entries; None for these in what was written before seals.

  Raises:
    Damaged: not what was sealed.
  """
  if not isinstance(item, dict):
    raise Damaged('its data position is no JSON object')
  # one damaged name must not make a sealed object pass for an old one
  if len({_POSITION, _ARRAYS, _SEAL} & item.keys()) < 2:
    return item, None
  body = {name: value for name, value in item.items() if name != _SEAL}
  if body.keys() != {_POSITION, _ARRAYS} or item.get(_SEAL) != _hash(body):
    raise Damaged('its data position is not as saved')
  return body[_POSITION], body[_ARRAYS]


def _hash(body: Mapping[str, Any]) -> str:
  as_read = json.loads(json.dumps(body))  # tuples become lists, and keys texts
  return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


def _everywhere(arrays: Mapping[str, Array]) -> Sharding:
  """A sharding that gives every device of these arrays the whole result."""
  found = [x.sharding for x in arrays.values()]
  for sharding in found:
    if isinstance(sharding, NamedSharding):
      return NamedSharding(sharding.mesh, PartitionSpec())
  return found[0]  # a single device's


def _sums(arrays: dict[str, Array]) -> Array:
  """The two sums of each array, `[arrays, 2]`, in the order of their names."""
  return jnp.stack([_sum(arrays[name]) for name in sorted(arrays)])


def _sum(x: Array) -> Array:
  words = _words(x)
  place = jnp.zeros(words.shape, jnp.uint32)  # begins again after 2**32 words
  for axis in range(words.ndim):
    place = place * words.shape[axis] + lax.broadcasted_iota(jnp.uint32, words.shape, axis)
  first = _mix(words ^ _mix(place))
  return jnp.stack([jnp.sum(mixed, dtype=jnp.uint32) for mixed in (first, _mix(first))])


def _words(x: Array) -> Array:
  """The bits of an array, one word an element, two for types of 8 bytes (a last axis)."""
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    x = jax.random.key_data(x)
  if x.dtype == jnp.bool_:
    return x.astype(jnp.uint32)
  return lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize]).astype(jnp.uint32)


def _mix(word: Array) -> Array:
  """A one-to-one hash of words: the finaliser of MurmurHash3 by Austin Appleby."""
  word = word + jnp.uint32(_GOLDEN)
  word = (word ^ (word >> 16)) * jnp.uint32(0x85EBCA6B)
  word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
  return word ^ (word >> 16)
