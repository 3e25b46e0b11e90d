"""The published sizes, by their published numbers of parameters."""

import dataclasses

import pytest

from align_jax.errors import UserError
from align_jax.models.flat import Skeleton, count
from align_jax.models.variants import VARIANTS, text_variant, vit_variant
from align_jax.models.vit import Vit, VitConfig


def _count(config: VitConfig) -> int:
  """Parameters, from one block and two: every block holds as many."""

  def shallow(depth):
    made = dataclasses.replace(config, depth=depth)
    return count(Skeleton(lambda rngs: Vit(made, None, rngs)).shapes)

  one = shallow(1)
  return one + (config.depth - 1) * (shallow(2) - one)


@pytest.mark.parametrize(
  ('name', 'patch', 'millions'),
  # Zhai et al. 2022, table 2 (without the map head); So400m: 400M by its name, 428M with the head
  [('Ti', 16, 5.5), ('S', 16, 22), ('B', 16, 86), ('L', 16, 303), ('H', 14, 630), ('g', 14, 1011)],
)
def test_sizes(name, patch, millions):
  config = vit_variant(name, patch=patch, image_size=224, pool='mean')
  assert _count(config) / 1e6 == pytest.approx(millions, rel=0.02)


def test_so400m_has_the_head_size_of_its_paper():
  config = vit_variant('So400m', patch=14, image_size=224, pool='map')
  assert config.width // config.heads == 72
  assert _count(config) / 1e6 == pytest.approx(428, rel=0.01)


def test_fields_pass_through_and_names_are_checked():
  assert text_variant('S', vocab_size=100, length=16, pool='last').pool == 'last'
  assert vit_variant('B', patch=16, image_size=224, eps=1e-5).eps == 1e-5
  assert all(v.width % v.heads == 0 for v in VARIANTS.values())
  with pytest.raises(UserError, match="did you mean 'So400m'"):
    text_variant('So400', vocab_size=100, length=16)
