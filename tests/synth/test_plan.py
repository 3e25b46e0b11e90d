import collections

import pytest

from align_jax.errors import UserError
from align_jax.synth.plan import ImageConfig, Share, allocate, make_plan
from align_jax.synth.rows import Category, PromptRow


def prompts(category: str, count: int, strategy: str = 'template') -> list[PromptRow]:
  return [
    PromptRow(f'{strategy}-{category}-{i}', category, f'{category} {i}', strategy)
    for i in range(count)
  ]


CATS = [Category('cat'), Category('dog'), Category('owl', extra=True)]
PROMPTS = [p for c in CATS for p in prompts(c.name, 4)]
FREE = [Share('flow', 1.0)]


def everything(plan):
  return [request for part in plan for request in part]


def test_counts_are_kept_and_parts_hold_all_categories():
  plan = make_plan(ImageConfig(count=50, part_size=12), CATS, PROMPTS, FREE, {})
  assert [len(part) for part in plan] == [12, 12, 12, 12, 2]
  assert len(plan) == ImageConfig(count=50, part_size=12).parts
  counts = collections.Counter(r.prompt.category for r in everything(plan))
  assert counts == {'cat': 20, 'dog': 20, 'owl': 10}
  assert {r.prompt.category for r in plan[0]} == {'cat', 'dog', 'owl'}


def test_ids_and_seeds_differ_and_follow_from_the_seed():
  config = ImageConfig(count=60, part_size=7)
  first, again = (everything(make_plan(config, CATS, PROMPTS, FREE, {})) for _ in range(2))
  assert first == again
  assert len({r.id for r in first}) == len({r.seed for r in first}) == 60
  assert all(0 <= r.seed < 2**63 for r in first)
  other = everything(make_plan(ImageConfig(count=60, part_size=7, seed=1), CATS, PROMPTS, FREE, {}))
  assert not {r.seed for r in first} & {r.seed for r in other}
  # prompts take turns before any repeats
  cat = [r.prompt.id for r in first if r.prompt.category == 'cat']
  assert len(set(cat[:4])) == 4 and cat[:4] == cat[4:8]


def test_more_images_keep_those_of_a_smaller_plan():
  few = everything(make_plan(ImageConfig(count=30), CATS, PROMPTS, FREE, {}))
  many = everything(make_plan(ImageConfig(count=90), CATS, PROMPTS, FREE, {}))
  assert {r.id for r in few} <= {r.id for r in many}


def test_generators_share_by_weight():
  shares = [Share('flow', 3.0), Share('cvae', 1.0)]
  plan = everything(make_plan(ImageConfig(count=400), CATS, PROMPTS, shares, {}))
  counts = collections.Counter(r.generator for r in plan)
  assert abs(counts['flow'] - 300) <= 3
  many = [Category(f'c{i}') for i in range(200)]  # two images each
  rows = [p for c in many for p in prompts(c.name, 2)]
  counts = collections.Counter(
    r.generator
    for r in everything(make_plan(ImageConfig(count=400, extra_share=0.0), many, rows, shares, {}))
  )
  assert abs(counts['flow'] - 300) <= 40


def test_rare_categories_get_what_the_frequent_have():
  config = ImageConfig(count=100, allocation='rare', extra_share=0.0)
  counts = allocate(config, CATS[:2], {'cat': 80, 'dog': 10})
  assert counts == {'cat': 15, 'dog': 85}  # 95 each
  assert allocate(config, CATS[:2], {'cat': 500, 'dog': 10}) == {'cat': 0, 'dog': 100}
  assert sum(allocate(config, CATS, {'cat': 3}).values()) == 100


def test_images_that_are_there_are_given_once():
  there = tuple(prompts('cat', 3, 'external'))
  shares = [Share('flow', 1.0), Share('folder', 1.0, there)]
  plan = everything(
    make_plan(ImageConfig(count=20, extra_share=0.0), CATS[:2], PROMPTS, shares, {})
  )
  given = [r.prompt for r in plan if r.generator == 'folder']
  assert sorted(p.id for p in given) == sorted(p.id for p in there)
  assert all(r.generator == 'flow' for r in plan if r.prompt.category == 'dog')


def test_all_that_is_there_can_be_used_however_uneven():
  there = tuple([*prompts('cat', 30, 'folder'), *prompts('dog', 4, 'folder')])
  shares = [Share('folder', 1.0, there)]
  for count, cats in ((34, 30), (20, 16), (6, 3)):
    config = ImageConfig(count=count, extra_share=0.0)
    plan = everything(make_plan(config, CATS[:2], [], shares, {}))
    assert len(plan) == count and len({r.prompt.id for r in plan}) == count
    assert sum(r.prompt.category == 'cat' for r in plan) == cats
  both = Category('fox', extra=True)
  room = {'cat': 30, 'dog': 4, 'fox': 5}
  counts = allocate(ImageConfig(count=39, extra_share=0.5), [*CATS[:2], both], {}, room)
  assert counts == room


def test_what_cannot_be_drawn_is_said():
  with pytest.raises(UserError, match="category 'dog': no prompts"):
    make_plan(ImageConfig(count=8), CATS[:2], prompts('cat', 2), FREE, {})
  with pytest.raises(UserError, match=r'config.images.count: 4 images asked for, but .* have 3'):
    make_plan(
      ImageConfig(count=4), CATS[:1], [], [Share('f', 1.0, tuple(prompts('cat', 3, 'e')))], {}
    )
  with pytest.raises(UserError, match=r'config.images.count: 0'):
    ImageConfig(count=0)
