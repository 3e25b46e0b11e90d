"""From a pair to one example of a batch, and from examples to the batch."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from align_jax.data.chat import Chat
from align_jax.data.chat_template import Turn
from align_jax.data.embed_prompt import Level, Role, embed_turns
from align_jax.data.examples import caption_group
from align_jax.data.images import ImageError
from align_jax.data.pair_record import Content
from align_jax.data.quarantine import Skipped
from align_jax.data.transforms import Transform, apply_to_bytes
from align_jax.errors import UserError

if TYPE_CHECKING:
  from align_jax.data.pair_record import PairSource
else:
  PairSource = Any  # the shape check of the tests cannot follow a name that exists for mypy only


@dataclasses.dataclass(frozen=True, slots=True)
class PairExample:
  """One pair, ready to be joined to a batch.

  Attributes:
    record_id: of the pair.
    query, candidate: what each side says, and its pixels; None: it has no image.
    group: equal for equal candidates.
  """

  record_id: str
  query: tuple[Sequence[Turn], np.ndarray | None]
  candidate: tuple[Sequence[Turn], np.ndarray | None]
  group: int
  partner_read: ClassVar[bool] = False
  partner_skipped: ClassVar[Skipped | None] = None


@dataclasses.dataclass(frozen=True)
class PairReader:
  """Makes the example at a position of a source; runs in Grain's threads.

  Attributes:
    source: the pairs; each side has one image at most.
    transform: of the images.
    level: see `data.embed_prompt.embed_turns`.
    max_pixels: see `decode_image`.
  """

  source: PairSource
  transform: Transform
  level: Level
  max_pixels: int

  def __call__(self, index: int, rng: np.random.Generator) -> PairExample | Skipped:
    spec = self.source.spec
    try:
      pair = self.source[index]
    except (UserError, OSError):
      return Skipped(f'pair {index}', spec, 'unreadable')
    sides = []
    role: Role
    for role, content, instruction in (
      ('query', pair.query, pair.instruction),
      ('candidate', pair.positive, pair.candidate_instruction),
    ):
      found = self._side(role, content, instruction, rng)
      if isinstance(found, str):
        return Skipped(pair.id, spec, found)
      sides.append(found)
    return PairExample(pair.id, sides[0], sides[1], caption_group(f'\0{pair.positive.id}'))

  def _side(
    self, role: Role, content: Content, instruction: str, rng: np.random.Generator
  ) -> tuple[Sequence[Turn], np.ndarray | None] | str:
    """What a side says and shows, or why it cannot be used."""
    if len(content.images) > 1:
      return 'several images'
    pixels = None
    if content.images:
      try:
        pixels = apply_to_bytes(self.transform, content.images[0], rng, self.max_pixels)
      except ImageError as error:
        return error.reason
    return embed_turns(content, role, instruction, self.level), pixels


@dataclasses.dataclass(frozen=True)
class PairCollate:
  """Joins pairs to a batch.

  For each side (`query`, `candidate`) it holds `SIDE_tokens` and `SIDE_segment`, int32 `[batch,
  length]`, padded on the left, and `SIDE_image`, uint8 `[batch, 1, size, size, 3]`, zeros where
  there is none; then `group`, int32 `[batch]`, and `ids`, str `[batch]`.
  """

  chat: Chat
  length: int
  image_size: int

  def __call__(self, examples: list[PairExample]) -> dict[str, np.ndarray]:
    batch = {
      'group': np.array([example.group for example in examples], np.int32),
      'ids': np.array([example.record_id for example in examples]),
    }
    for side in ('query', 'candidate'):
      both = [getattr(example, side) for example in examples]
      tokens = np.zeros((len(both), self.length), np.int32)
      segment = np.zeros_like(tokens)
      images = np.zeros((len(both), 1, self.image_size, self.image_size, 3), np.uint8)
      for count in (0, 1):
        rows = [i for i, (_, pixels) in enumerate(both) if (pixels is not None) == bool(count)]
        if rows:
          tokens[rows], segment[rows] = self.chat.prompts(
            [both[i][0] for i in rows], count, self.length
          )
      for i, (_, pixels) in enumerate(both):
        if pixels is not None:
          images[i, 0] = pixels
      batch |= {f'{side}_tokens': tokens, f'{side}_segment': segment, f'{side}_image': images}
    return batch
