"""The peer of the input pipeline: a PyTorch DataLoader over WebDataset, as its users write it.

Pictures are decoded by Pillow (`decode('pilrgb')`) and augmented as `torchvision.transforms` does
it with PIL pictures: crop, then `resize`, then mirror. Batches stay uint8 in the decoder's own
order of axes, which is less work than torchvision's float tensors.
"""

import functools
import math
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import webdataset as wds
from PIL import Image

from align_jax.data.tokenizer import load_tokenizer


def random_crop(width: int, height: int, min_scale: float) -> tuple[int, int, int, int]:
  """(left, top, width, height), drawn as by `torchvision.transforms.RandomResizedCrop`."""
  for _ in range(10):
    area = width * height * random.uniform(min_scale, 1.0)
    ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
    w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    if 0 < w <= width and 0 < h <= height:
      return random.randint(0, width - w), random.randint(0, height - h), w, h
  w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
  return (width - w) // 2, (height - h) // 2, w, h


def resized_crop(picture: Image.Image, box: tuple[int, int, int, int], size: int) -> Image.Image:
  """`torchvision.transforms.functional.resized_crop` of a PIL picture."""
  left, top, width, height = box
  cut = picture.crop((left, top, left + width, top + height))
  return cut.resize((size, size), Image.Resampling.BICUBIC)


def augment(picture: Image.Image, size: int, min_scale: float) -> np.ndarray:
  """A random crop, resized, and mirrored every second time."""
  cut = resized_crop(picture, random_crop(*picture.size, min_scale), size)
  if random.random() < 0.5:
    cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
  return np.asarray(cut)


def loader(
  tars: list[str],
  *,
  batch: int,
  workers: int,
  size: int,
  min_scale: float,
  tokenizer: str,
  length: int,
  ahead: int,
) -> Iterator[list[torch.Tensor]]:
  """Endless batches `[image, text]`.

  Args:
    tars: the shards.
    batch: examples of each.
    workers: processes.
    size, min_scale: of the pictures.
    tokenizer: its folder.
    length: tokens of a text.
    ahead: batches that each worker makes in advance.
  """
  dataset = (
    wds.WebDataset(tars, shardshuffle=len(tars), empty_check=False)
    .repeat()
    .shuffle(100)
    .decode('pilrgb')
    .to_tuple('jpg', 'txt')
    .map_tuple(functools.partial(augment, size=size, min_scale=min_scale), str)
    .batched(batch, collation_fn=functools.partial(_collate, tokenizer, length), partial=False)
  )
  context: Any = None
  if workers:
    # forked off a process of its own: this one has threads, which a fork would tear
    context = torch.multiprocessing.get_context('forkserver')
    context.set_forkserver_preload([__name__])
  return iter(
    wds.WebLoader(
      dataset,
      batch_size=None,
      num_workers=workers,
      prefetch_factor=ahead if workers else None,
      multiprocessing_context=context,
    )
  )


@functools.cache
def _tokenizer(folder: str) -> Any:
  return load_tokenizer(folder)


def _collate(
  folder: str, length: int, examples: list[tuple[np.ndarray, str]]
) -> list[torch.Tensor]:
  texts = _tokenizer(folder).encode([text for _, text in examples], length)
  images = np.stack([image for image, _ in examples])
  return [torch.from_numpy(images), torch.from_numpy(texts)]
