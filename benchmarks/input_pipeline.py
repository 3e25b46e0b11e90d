"""From JPEG records to training batches, against a PyTorch DataLoader over WebDataset.

  python -m benchmarks.input_pipeline [--sizes=500x375,1600x1200] [--batch=64] [--workers=2]
    [--rounds=4] [--min_scale=0.08]

The same JPEGs (made up, quality 90, see `benchmarks.photos`) lie in ArrayRecord shards for us and
in tar files for the peer: once as large as those of ImageNet, once as cameras make them. Both draw
Inception's random crop, resize it to 224 px with bicubic antialiasing, mirror every second picture,
tokenise the caption and yield uint8 batches. We have as many threads as the peer has worker
processes.

Beside the rates: the share of a step that waits for data, where the step is an accelerator's that
leaves the host alone (a sleep) and takes as long as our pipeline needs for a batch, and a quarter.
"""

import dataclasses
import io
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from align_jax.data.pipeline import Part, train_iterator
from align_jax.data.quarantine import Quarantine
from align_jax.data.record import Record
from align_jax.data.shards import write_shards
from align_jax.data.sources import open_source
from align_jax.data.tokenizer import load_tokenizer, train_tokenizer
from align_jax.data.transforms import Transform
from benchmarks import common
from benchmarks.photos import jpeg, photograph

SHARDS = 4
AHEAD = 2  # batches in advance, of the peer's every worker
LENGTH = 32


@dataclasses.dataclass(frozen=True)
class Options:
  """What is measured.

  Attributes:
    sizes: of the pictures, widths and heights.
    pictures: different ones, of each size.
    records: that they are repeated to.
    size: of the training pictures.
    batch: pictures of a batch.
    batches: that a turn counts.
    workers: our threads; the peer's processes.
    rounds: turns of each side.
    min_scale: smallest share of the area that a crop takes.
  """

  sizes: str = '500x375,1600x1200'
  pictures: int = 48
  records: int = 1536
  size: int = 224
  batch: int = 64
  batches: int = 8
  workers: int = 2
  rounds: int = 4
  min_scale: float = 0.08


def write_data(folder: Path, options: Options, size: str) -> dict[str, Any]:
  """Writes the pictures of a size in both forms, and a tokenizer; returns what they weigh."""
  width, height = (int(side) for side in size.split('x'))
  captions = [f'photograph {i} of a scene with {i % 7} things' for i in range(options.records)]
  train_tokenizer(captions, 400).save(folder / 'tokenizer')
  images = [jpeg(photograph(i, width, height)) for i in range(options.pictures)]
  records = [
    Record(id=f'{i:05d}', image=images[i % len(images)], captions=(caption,))
    for i, caption in enumerate(captions)
  ]
  write_shards(records, str(folder / 'records'), SHARDS, 'CC0', 'benchmarks.photos')
  for number in range(SHARDS):
    with tarfile.open(folder / f'{number}.tar', 'w') as tar:
      for record in records[number::SHARDS]:
        for suffix, data in (('jpg', record.image), ('txt', record.captions[0].encode())):
          member = tarfile.TarInfo(f'{record.id}.{suffix}')
          member.size = len(data)
          tar.addfile(member, io.BytesIO(data))
  mean = sum(len(image) for image in images) / len(images)
  return {'jpeg_bytes': round(mean), 'pictures': len(images), 'records': len(records)}


def our_batches(folder: Path, options: Options) -> Any:
  """The iterator that training reads from."""
  return train_iterator(
    [Part(open_source(f'arrayrecord:{folder / "records"}'))],
    batch_size=options.batch,
    length=LENGTH,
    tokenizer=load_tokenizer(folder / 'tokenizer'),
    transform=Transform(options.size, 'train', min_scale=options.min_scale, flip=True),
    seed=0,
    threads=options.workers,
    quarantine=Quarantine(None, 0.0, 1),
  )


def peer_batches(folder: Path, options: Options) -> Iterator[Any]:
  """The peer's loader."""
  from benchmarks.loader_torch import loader  # its packages come with an extra

  return loader(
    sorted(str(path) for path in folder.glob('*.tar')),
    batch=options.batch,
    workers=options.workers,
    size=options.size,
    min_scale=options.min_scale,
    tokenizer=str(folder / 'tokenizer'),
    length=LENGTH,
    ahead=AHEAD,
  )


def turn(
  batches: Callable[[], Iterator[Any]], options: Options, step: float = 0.0
) -> tuple[float, float]:
  """Runs a fresh iterator, so that none works while the other is measured.

  Args:
    batches: makes it.
    options: how many batches count; those that were made in advance do not.
    step: seconds that a training step on an accelerator takes of each batch.

  Returns: seconds of a batch, and the share of them that was spent waiting for it.
  """
  iterator = batches()
  for _ in range(AHEAD * max(1, options.workers) + 1):
    next(iterator)
  waited = 0.0
  start = time.perf_counter()
  for _ in range(options.batches):
    before = time.perf_counter()
    next(iterator)
    waited += time.perf_counter() - before
    if step:
      time.sleep(step)
  seconds = time.perf_counter() - start
  if hasattr(iterator, 'close'):
    iterator.close()
  return seconds / options.batches, waited / seconds


def measure(options: Options, size: str) -> dict[str, Any]:
  """Measures both sides in turns on pictures of one size."""
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    common.say(f'drawing {options.pictures} pictures of {size}')
    data = write_data(folder, options, size)
    sides = {
      'ours': lambda: our_batches(folder, options),
      'peer': lambda: peer_batches(folder, options),
    }
    seconds = common.in_turns(
      {side: lambda make=make: turn(make, options)[0] for side, make in sides.items()},
      options.rounds,
    )
    step = 1.25 * common.spread(seconds['ours'])['median']
    waits = {side: turn(make, options, step)[1] for side, make in sides.items()}

  def side(name: str) -> dict[str, Any]:
    batch = common.spread(seconds[name])
    return {
      'images_per_second': common.rounded(options.batch / batch['median']),
      'batch_seconds': batch,
      'waiting_share_of_a_step': common.rounded(waits[name]),
    }

  return {
    **data,
    'step_seconds': common.rounded(step),
    'ours': side('ours'),
    'peer': side('peer'),
    'ratio': common.ratios(seconds, target=1.5),
  }


def run(options: Options) -> dict[str, Any]:
  """Measures every size."""
  for package in ('torch', 'webdataset'):
    common.need(package)
  return {
    'benchmark': 'input_pipeline',
    **common.machine(),
    'workers': options.workers,
    'data': 'JPEG, quality 90, 4:2:0',
    'size': options.size,
    'batch': options.batch,
    'min_scale': options.min_scale,
    'peer_name': 'torch DataLoader over webdataset, PIL, worker processes',
    'by_size': {size: measure(options, size) for size in options.sizes.split(',')},
  }


if __name__ == '__main__':
  common.command(Options, run, __doc__.splitlines()[0])
