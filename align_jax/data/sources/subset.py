"""The options every scheme understands: `split`, `shuffle`, `limit`, `modality`."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np

from align_jax.data.record import Record
from align_jax.data.sources.base import Source, check_index, pair_ids, record_ids
from align_jax.data.sources.fields import modality
from align_jax.data.sources.spec import ParsedSpec
from align_jax.errors import UserError, did_you_mean
from align_jax.modality import Modality

Split = Literal['train', 'extra', 'test']
TEST_SHARE = 0.2
EXTRA_SHARE = 0.2
_SPLITS = ('all', 'train', 'extra', 'test')


def split_of(name: str) -> Split:
  """Returns the split that a record id belongs to, for ever: a hash of the id alone decides."""
  digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
  share = int.from_bytes(digest, 'big') / 2**64
  if share < TEST_SHARE:
    return 'test'
  return 'extra' if share < TEST_SHARE + EXTRA_SHARE else 'train'


def select(source: Source, spec: ParsedSpec) -> Source:
  """Applies the generic options of `spec` to the source that it opened.

  A generated record goes where its real partner goes (its `pair_id` is hashed in place of its
  own id), so that no generated twin of a test image is ever trained on.

  Raises:
    UserError: a wrong value, or options that leave nothing.
  """
  options = spec.options
  split = options.get('split', 'all')
  if split not in _SPLITS:
    raise UserError(f'{spec.text}: split={split}{did_you_mean(split, _SPLITS)}')
  if 'modality' in options:
    modality(options['modality'], spec.text)
  limit, seed = _whole(spec, 'limit', 1), _whole(spec, 'shuffle', 0)
  positions = np.arange(len(source))
  if split != 'all':
    keys = [p or i for i, p in zip(record_ids(source), pair_ids(source), strict=True)]
    positions = np.flatnonzero([split_of(key) == split for key in keys])
  if seed is not None:
    positions = np.random.default_rng(seed).permutation(positions)
  positions = positions[:limit]
  if not len(positions):
    raise UserError(f'{spec.text}: no records left; choose another split or add data')
  if len(positions) == len(source) and seed is None and 'modality' not in options:
    return source
  return Subset(source, spec.text, positions, options.get('modality'))  # type: ignore[arg-type]


def spread_positions(total: int, count: int) -> np.ndarray:
  """Returns at most `count` positions, evenly over `total`: of sorted classes, some of each."""
  return np.linspace(0, total - 1, min(count, total)).round().astype(np.int64)


def _whole(spec: ParsedSpec, option: str, least: int) -> int | None:
  text = spec.options.get(option)
  if text is None:
    return None
  if not text.isdecimal() or int(text) < least:
    raise UserError(f'{spec.text}: {option}={text} is no whole number from {least} on')
  return int(text)


class Subset:
  """Chosen positions of a source, optionally under another modality."""

  def __init__(
    self, source: Source, spec: str, positions: np.ndarray, modality: Modality | None = None
  ):
    self.spec = spec
    self.licence = source.licence
    self._source = source
    self._positions = positions
    self._modality = modality

  def __len__(self) -> int:
    return len(self._positions)

  def __getitem__(self, index: int) -> Record:
    check_index(index, len(self))
    record = self._source[int(self._positions[index])]
    return dataclasses.replace(record, modality=self._modality) if self._modality else record

  def ids(self) -> Sequence[str]:
    every = record_ids(self._source)
    return [every[i] for i in self._positions]

  def pair_ids(self) -> Sequence[str]:
    every = pair_ids(self._source)
    return [every[i] for i in self._positions]
