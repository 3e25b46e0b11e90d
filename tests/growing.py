"""A folder of shards that grows when a test says so."""

import dataclasses
import os
from collections.abc import Sequence

from align_jax.data import shards as shards_lib
from align_jax.data.record import Record
from tests import tiny


def records(start: int, stop: int, prefix: str = 'g', **fields) -> list[Record]:
  """Records `start` to `stop` of an endless list."""
  kinds = [(colour, shape) for colour in tiny.COLOURS for shape in tiny.SHAPES]
  out = []
  for i in range(start, stop):
    colour, shape = kinds[i % len(kinds)]
    caption = f'a photo of a {colour} {shape}'
    image = tiny.png(tiny.picture(colour, shape, 7000 + i))
    out.append(Record(f'{prefix}{i}', image, (caption,), **{'modality': 'generated', **fields}))
  return out


class Growing:
  """A folder that will hold `parts`, a shard each."""

  def __init__(self, folder: str | os.PathLike[str], parts: Sequence[Sequence[Record]]):
    self.folder, self.parts = folder, parts
    self.manifest = shards_lib.Manifest('growing', 'CC0', len(parts))

  @property
  def spec(self) -> str:
    return f'arrayrecord:{self.folder}?follow=1&wait=0'

  def write(self, *numbers: int) -> None:
    """Adds the shards of these parts, one by one; the last one completes the folder."""
    for number in numbers:
      with shards_lib.ShardWriter(str(self.folder), number, len(self.parts)) as writer:
        for record in self.parts[number]:
          writer.add(record)
        entry = writer.commit()
      others = [s for s in self.manifest.shards if s.file != entry.file]
      entries = tuple(sorted([*others, entry], key=lambda s: s.file))
      complete = len(entries) == len(self.parts)
      self.manifest = dataclasses.replace(self.manifest, shards=entries, complete=complete)
      shards_lib.save_manifest(str(self.folder), self.manifest)


def growing(folder: str | os.PathLike[str], sizes: Sequence[int], **fields) -> Growing:
  """A folder that will hold so many records in each shard."""
  ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
  parts = [records(end - size, end, **fields) for size, end in zip(sizes, ends, strict=True)]
  return Growing(folder, parts)
