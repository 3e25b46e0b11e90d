"""Generated images on disk: prompts in, shards of records with their provenance out."""

import dataclasses
import hashlib
import io
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from align_jax.data import shards as shards_lib
from align_jax.data.record import Record
from align_jax.errors import UserError


@runtime_checkable
class ImageSampler(Protocol):
  """What draws the images: `synth.sampler.Sampler`, or any other generator.

  Attributes:
    settings: JSON values that, with caption, seed and index, decide an image.
  """

  settings: Mapping[str, str | int | float]

  def __call__(
    self, captions: Sequence[str], indices: Sequence[int], seed: int
  ) -> UInt8[np.ndarray, 'batch size size 3']:
    """Draws one image for each caption."""
    ...


@dataclasses.dataclass(frozen=True)
class Prompt:
  """What to draw, and what to write of it.

  Attributes:
    text: what the generator is asked for.
    captions: of the record.
    labels: class names.
    pair_id: id of the real partner; '' if there is none.
    prompt_id: id of the record that the prompt is from.
    source_id: for attribution.
  """

  text: str
  captions: tuple[str, ...]
  labels: tuple[str, ...] = ()
  pair_id: str = ''
  prompt_id: str = ''
  source_id: str = ''

  @classmethod
  def of(cls, record: Record, *, paired: bool) -> 'Prompt':
    """Asks for the shortest caption of a record.

    Args:
      record: has at least one caption.
      paired: the record's image is the real partner; else only its text is used.

    Raises:
      UserError: the record has no caption.
    """
    if not record.captions:
      raise UserError(f'record {record.id}: no caption to prompt the generator with; add one')
    return cls(
      text=min(record.captions, key=len),
      captions=record.captions,
      labels=record.labels,
      pair_id=record.id if paired else '',
      prompt_id=record.id,
      source_id=record.source_id,
    )


def generate(
  sampler: ImageSampler,
  prompts: Sequence[Prompt],
  directory: str | os.PathLike[str],
  *,
  batch_size: int,
  seed: int,
  generator_id: str,
  shards: int,
  licence: str,
  images_per_prompt: int = 1,
  progress: bool = True,
) -> shards_lib.Manifest:
  """Draws images into shards; killed at any moment, the same call goes on after the last shard.

  Image i belongs to prompt `i % len(prompts)`, so that the first images cover all prompts, and
  shard k holds the k-th of `shards` contiguous ranges of images.

  Args:
    sampler: draws.
    prompts: what.
    directory: a folder of its own, made if missing.
    batch_size: most images at a time; ranges are cut into equal batches of at most so many.
    seed: of the noise.
    generator_id: names the generator in the records, with its version.
    shards: number of files.
    licence: of the images.
    images_per_prompt: how many different images of each prompt.
    progress: shows rate and time left on standard error.

  Returns: the manifest.

  Raises:
    UserError: bad arguments, a folder that holds something else, a full disk (finished shards
      stay), or what the sampler raises.
  """
  directory = os.fspath(directory)
  total = len(prompts) * images_per_prompt
  if not total:
    raise UserError(f'{directory}: nothing to generate; give prompts and images_per_prompt >= 1')
  if not 1 <= shards <= total:
    raise UserError(f'sampling.shards: {shards} for {total} images; choose 1 to as many')
  if batch_size < 1:
    raise UserError(f'sampling.batch_size: {batch_size} must be at least 1')
  if not 0 <= seed < 2**32:
    raise UserError(f'sampling.seed: {seed} must be within 0 and 2**32 - 1')
  job = _Job(sampler, prompts, batch_size, seed, generator_id)
  manifest = _start(directory, job, total, shards, licence)
  done = {shard.file: shard.count for shard in manifest.shards}
  if manifest.complete:
    return manifest
  ends = [total * i // shards for i in range(shards + 1)]
  # one batch size for all shards, so that the sampler compiles once
  largest = max(stop - start for start, stop in itertools.pairwise(ends))
  size = -(-largest // -(-largest // batch_size))
  bar = tqdm(
    total=total,
    initial=sum(done.values()),
    unit=' images',
    desc='generate',
    mininterval=0.5,
    disable=not progress,
  )
  try:
    with bar:
      for index in range(shards):
        if shards_lib.shard_name(index, shards) in done:
          continue
        with shards_lib.ShardWriter(directory, index, shards) as writer:
          for start in range(ends[index], ends[index + 1], size):
            stop = min(start + size, ends[index + 1])
            for record in job.draw(start, stop, size):
              writer.add(record)
            bar.update(stop - start)
          entries = sorted([*manifest.shards, writer.commit()], key=lambda s: s.file)
        manifest = dataclasses.replace(manifest, shards=tuple(entries))
        shards_lib.save_manifest(directory, manifest)
  finally:
    shards_lib.remove_temporaries(directory)
  manifest = dataclasses.replace(manifest, complete=True)
  shards_lib.save_manifest(directory, manifest)
  return manifest


def encode_png(image: UInt8[np.ndarray, 'height width 3']) -> bytes:
  """Returns the picture as PNG."""
  out = io.BytesIO()
  Image.fromarray(image).save(out, 'PNG', compress_level=1)  # quick rather than small
  return out.getvalue()


@dataclasses.dataclass(frozen=True)
class _Job:
  """What decides every image and its record."""

  sampler: ImageSampler
  prompts: Sequence[Prompt]
  batch_size: int
  seed: int
  generator_id: str

  def spec(self) -> str:
    """Tells this job from any other: the generator, its settings and the prompts."""
    digest = hashlib.blake2b(digest_size=6)
    for prompt in self.prompts:
      digest.update(json.dumps(dataclasses.astuple(prompt)).encode())
    settings = {**self.sampler.settings, 'seed': self.seed, 'prompts': digest.hexdigest()}
    return f'generate:{self.generator_id}?' + '&'.join(f'{k}={v}' for k, v in settings.items())

  def draw(self, start: int, stop: int, size: int) -> Iterator[Record]:
    """Yields records `start` to `stop`, drawn in one batch of `size`."""
    # a short batch repeats its last image: another shape would compile again
    indices = [min(i, stop - 1) for i in range(start, start + size)]
    prompts = [self.prompts[i % len(self.prompts)] for i in indices]
    images = self.sampler([p.text for p in prompts], indices, self.seed)
    for index, prompt, image in zip(indices[: stop - start], prompts, images, strict=False):
      provenance = {
        **self.sampler.settings,
        'seed': self.seed,
        'index': index,
        'prompt_id': prompt.prompt_id,
      }
      yield Record(
        id=f'generated-{self.seed}-{index:08d}',
        image=encode_png(image),
        captions=prompt.captions,
        modality='generated',
        pair_id=prompt.pair_id,
        labels=prompt.labels,
        generator_id=self.generator_id,
        prompt=prompt.text,
        source_id=prompt.source_id,
        truth={'provenance': provenance},
      )


def _start(directory: str, job: _Job, total: int, shards: int, licence: str) -> shards_lib.Manifest:
  """Returns the manifest to go on from, with the shards that are intact."""
  spec = job.spec()
  manifest = shards_lib.load_manifest(directory)
  if manifest is None:
    shards_lib.check_target(directory, None, spec)
    manifest = shards_lib.Manifest(
      spec=spec, licence=licence, shard_count=shards, source_records=total
    )
  was = (manifest.spec, manifest.shard_count, manifest.source_records)
  if was != (spec, shards, total):
    raise UserError(
      f'{directory}: holds {was[2]} images in {was[1]} shards of {was[0]}, not {total} in {shards} '
      f'of {spec}; choose an empty folder'
    )
  kept = tuple(s for s in manifest.shards if shards_lib.is_intact(directory, s))
  if manifest.complete and len(kept) == shards:
    return manifest  # untouched: it names the versions that drew the images
  manifest = dataclasses.replace(
    manifest,
    complete=False,
    shards=kept,
    versions=shards_lib.versions(),
  )
  # before the first shard: a rerun then knows a shard without an entry for its own
  shards_lib.save_manifest(directory, manifest)
  shards_lib.remove_temporaries(directory)
  return manifest
