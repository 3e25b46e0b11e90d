"""Plain values become typed configs, and every mistake is named."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import pytest
from ml_collections import ConfigDict

from align_jax.config import build
from align_jax.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Inner:
  width: int
  rate: float = 0.5
  kind: Literal['a', 'b'] = 'a'


@dataclasses.dataclass(frozen=True)
class Outer:
  inner: Inner
  names: tuple[str, ...] = ()
  size: tuple[int, int] = (1, 2)
  rank: int | Literal['full'] = 4
  maybe: Inner | None = None
  free: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  several: tuple[Inner, ...] = ()


def test_builds_nested_dataclasses_from_a_config_dict():
  values = ConfigDict(
    {
      'inner': {'width': 3, 'rate': 1},
      'names': ('x', 'y'),
      'rank': 'full',
      'free': {'any': 1},
      'several': ({'width': 2},),
    }
  ).to_dict()
  built = build(Outer, values)
  assert built == Outer(
    Inner(3, 1.0), ('x', 'y'), rank='full', free={'any': 1}, several=(Inner(2),)
  )
  assert isinstance(built.inner.rate, float)


def test_builds_lists_of_groups_and_optional_groups():
  built = build(Outer, {'inner': {'width': 1}, 'maybe': None, 'several': [{'width': 2}]})
  assert built.maybe is None
  assert built.several == (Inner(2),)


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    ({'inner': {'widht': 3}}, "config.inner.widht: unknown field; did you mean 'width'"),
    ({}, 'config.inner: missing'),
    ({'inner': {'width': 'x'}}, "config.inner.width: expected int, got 'x'"),
    ({'inner': {'width': True}}, 'config.inner.width: expected int'),
    ({'inner': {'width': 1, 'kind': 'c'}}, "config.inner.kind: 'c' is not one of 'a', 'b'"),
    ({'inner': {'width': 1}, 'names': 'x'}, 'config.names: expected a list'),
    ({'inner': {'width': 1}, 'size': (1,)}, 'config.size: expected 2 values'),
    ({'inner': {'width': 1}, 'rank': 'half'}, 'config.rank: expected int'),
    ({'inner': 3}, 'config.inner: expected a group'),
  ],
)
def test_names_the_mistake(values, message):
  with pytest.raises(UserError, match=message.replace('.', r'\.')):
    build(Outer, values)


def test_did_you_mean_lists_what_is_known_when_nothing_is_near():
  assert did_you_mean('zzz', ['retrieval', 'gap']) == '; known: gap, retrieval'
