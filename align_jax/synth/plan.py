"""Which images to draw: for each its category, prompt, generator and seed, in parts.

Everything follows from the config and the rows before, so any process knows the whole plan.
"""

import collections
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal

from align_jax.errors import UserError, require
from align_jax.synth.rows import Category, PromptRow


@dataclasses.dataclass(frozen=True)
class ImageConfig:
  """How many images are drawn, of what.

  Attributes:
    count: images to draw in all, before filtration.
    allocation: `equal`: as many of each category; `rare`: more of those with fewer real images, so
      that real and generated together come as near to equal as they can.
    extra_share: of all images, those of extra categories; the rest is for the user's own. Without
      extra categories all are of the user's own.
    part_size: images of a part: the most that a kill can lose, and what a shard holds before
      filtration.
    seed: of everything that is drawn by lot.
  """

  count: int
  allocation: Literal['equal', 'rare'] = 'equal'
  extra_share: float = 0.2
  part_size: int = 256
  seed: int = 0

  def __post_init__(self) -> None:
    require(self.count >= 1, 'config.images.count', f'{self.count} must be at least 1')
    require(self.part_size >= 1, 'config.images.part_size', f'{self.part_size} must be at least 1')
    require(
      0 <= self.extra_share <= 1, 'config.images.extra_share', f'{self.extra_share} is no share'
    )
    require(0 <= self.seed < 2**32, 'config.images.seed', f'{self.seed} is outside 0 to 2**32 - 1')

  @property
  def parts(self) -> int:
    return -(-self.count // self.part_size)


@dataclasses.dataclass(frozen=True)
class Request:
  """An image to be drawn.

  Attributes:
    id: of its record.
    prompt: what of.
    generator: name of the generator.
    seed: of the image, 0 to 2**63 - 1.
  """

  id: str
  prompt: PromptRow
  generator: str
  seed: int


@dataclasses.dataclass(frozen=True)
class Share:
  """A generator's part of the images.

  Attributes:
    name: of the generator.
    weight: its share, relative to those of the others.
    prompts: those it has images of; None: it draws whatever it is asked for.
  """

  name: str
  weight: float
  prompts: tuple[PromptRow, ...] | None = None


def make_plan(
  config: ImageConfig,
  categories: Sequence[Category],
  prompts: Sequence[PromptRow],
  shares: Sequence[Share],
  real_counts: Mapping[str, int],
) -> list[list[Request]]:
  """Returns the images of each part.

  Categories take turns, so that any first parts hold some of each. Of a category, prompts take
  turns, and generators by weight. A generator with images of its own gives each once; what it
  lacks the others draw.

  Args:
    config: how many.
    categories: all.
    prompts: any number of each category.
    shares: of the generators.
    real_counts: real images of each category, for `allocation='rare'`.

  Raises:
    UserError: a category without prompts that no generator has images of; too few images.
  """
  drawn = collections.defaultdict(list)
  for prompt in prompts:
    drawn[prompt.category].append(prompt)
  room = None
  if all(share.prompts is not None for share in shares):
    given = [prompt.category for share in shares for prompt in share.prompts or ()]
    room = collections.Counter(given)
  counts = allocate(config, categories, real_counts, room)
  lanes: list[list[Request]] = []
  for category in categories:
    if counts[category.name]:
      lanes.append(
        _lane(config.seed, category.name, counts[category.name], drawn[category.name], shares)
      )
  images = [lane[i] for i in range(max(map(len, lanes))) for lane in lanes if i < len(lane)]
  size = config.part_size
  return [images[start : start + size] for start in range(0, len(images), size)]


def allocate(
  config: ImageConfig,
  categories: Sequence[Category],
  real_counts: Mapping[str, int],
  room: Mapping[str, int] | None = None,
) -> dict[str, int]:
  """Returns how many images each category gets; they sum to `config.count`.

  Args:
    config, categories, real_counts: see `make_plan`.
    room: how many images there are of each, where none are drawn; None: any number.

  Raises:
    UserError: more images than there is room for.
  """
  own = [c.name for c in categories if not c.extra]
  extra = [c.name for c in categories if c.extra]
  spaces = {c.name: config.count if room is None else room.get(c.name, 0) for c in categories}
  if config.count > sum(spaces.values()):
    raise UserError(
      f'config.images.count: {config.count} images asked for, but no generator draws and those '
      f'with images of their own have {sum(spaces.values())} of these categories; lower it'
    )
  wanted = round(config.count * config.extra_share) if own else config.count
  extra_count = min(wanted, sum(spaces[name] for name in extra))
  own_count = min(config.count - extra_count, sum(spaces[name] for name in own))
  have = [real_counts.get(name, 0) if config.allocation == 'rare' else 0 for name in own]
  counts = dict(zip(own, _fill(have, [spaces[n] for n in own], own_count), strict=True))
  rest = _fill([0] * len(extra), [spaces[n] for n in extra], config.count - own_count)
  return counts | dict(zip(extra, rest, strict=True))


def _fill(have: Sequence[int], room: Sequence[int], total: int) -> list[int]:
  """Pours `total` onto levels so that the lowest rise first (water filling), in whole numbers.

  None rises by more than its `room`; together they have enough of it.
  """

  def poured(level: int) -> list[int]:
    return [min(r, max(0, level - h)) for h, r in zip(have, room, strict=True)]

  low, high = 0, max(have, default=0) + total
  while low < high:  # the highest level that `total` reaches everywhere below it
    middle = (low + high + 1) // 2
    if sum(poured(middle)) <= total:
      low = middle
    else:
      high = middle - 1
  out = poured(low)
  more = [i for i, (now, then) in enumerate(zip(out, poured(low + 1), strict=True)) if then > now]
  for i in more[: total - sum(out)]:
    out[i] += 1
  return out


def _lane(
  seed: int, category: str, count: int, prompts: Sequence[PromptRow], shares: Sequence[Share]
) -> list[Request]:
  """The images of one category, in the order of drawing."""
  own: dict[str, list[PromptRow]] = {
    share.name: [p for p in share.prompts if p.category == category]
    for share in shares
    if share.prompts is not None
  }
  free = [share for share in shares if share.prompts is None]
  if free and not prompts and sum(map(len, own.values())) < count:
    raise UserError(f'category {category!r}: no prompts; give it some, or leave it out')
  given = dict.fromkeys((share.name for share in shares), 0)
  # who comes first differs by category: else of few images each, all were of the same generator
  luck = {s.name: _unit(f'{seed}\0{category}\0{s.name}') for s in shares}
  turn = 0  # of the prompts
  out = []
  for _ in range(count):
    open_shares = [s for s in shares if s.prompts is None or given[s.name] < len(own[s.name])]
    # the one that is furthest behind its weight
    share = min(open_shares, key=lambda s: (given[s.name] + luck[s.name]) / s.weight)
    if share.prompts is None:
      prompt, repeat = prompts[turn % len(prompts)], turn // len(prompts)
      turn += 1
    else:
      prompt, repeat = own[share.name][given[share.name]], 0
    given[share.name] += 1
    out.append(_request(seed, prompt, share.name, repeat))
  return out


def _request(seed: int, prompt: PromptRow, generator: str, repeat: int) -> Request:
  text = f'{seed}\0{generator}\0{prompt.id}\0{prompt.text}\0{repeat}'
  digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
  return Request(
    id=f'{generator}-{digest[8:].hex()}',
    prompt=prompt,
    generator=generator,
    seed=int.from_bytes(digest[:8], 'big') >> 1,
  )


def _unit(text: str) -> float:
  """A number above 0 and up to 1 that follows from a text."""
  return (int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), 'big') + 1) / 2**32
