"""Draws the images of a part: requests in, records with their provenance out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from align_jax.data.record import Record
from align_jax.synth.generate import encode_png
from align_jax.synth.generators.make import check_images
from align_jax.synth.plan import Request
from align_jax.synth.rows import Generator, ImageRow, to_json

NOT_FINITE = 'not_finite'
MISSING = 'missing'


@runtime_checkable
class Given(Protocol):
  """Images that are there already, in place of a generator: `generators.external`."""

  generator_id: str
  settings: Mapping[str, Any]

  def image(self, prompt_id: str) -> UInt8[np.ndarray, 'height width 3'] | None: ...

  def failure(self, prompt_id: str) -> str: ...


def draw_part(
  requests: Sequence[Request],
  generators: Mapping[str, Generator | Given],
  seen: Callable[[int], None] = lambda count: None,
) -> tuple[list[ImageRow], list[Record]]:
  """Draws all images of a part.

  Args:
    requests: what to draw.
    generators: by name.
    seen: is told of so many more images.

  Returns: a row for each request, in order, and a record for each that gave an image.

  Raises:
    UserError: a generator that returns no images of uint8 pixels.
  """
  images: dict[str, np.ndarray | None] = {}
  for name, generator in generators.items():
    asked = [r for r in requests if r.generator == name]
    size = generator.batch_size if isinstance(generator, Generator) else 1
    for start in range(0, len(asked), size):
      batch = asked[start : start + size]
      for request, image in zip(batch, _images(name, generator, batch), strict=True):
        images[request.id] = image
      seen(len(batch))
  rows, records = [], []
  for request in requests:
    generator, image = generators[request.generator], images[request.id]
    failure = NOT_FINITE
    if image is None and not isinstance(generator, Generator):
      failure = generator.failure(request.prompt.id) or MISSING
    row = ImageRow(
      id=request.id,
      category=request.prompt.category,
      prompt_id=request.prompt.id,
      prompt=request.prompt.text,
      strategy=request.prompt.strategy,
      generator=request.generator,
      generator_id=generator.generator_id,
      seed=request.seed,
      settings=generator.settings,
      failure='' if image is not None else failure,
    )
    rows.append(row)
    if image is not None:
      records.append(_record(row, image))
  return rows, records


def _images(
  name: str, generator: Generator | Given, batch: Sequence[Request]
) -> Sequence[np.ndarray | None]:
  if not isinstance(generator, Generator):
    return [generator.image(r.prompt.id) for r in batch]
  images = generator.generate([r.prompt.text for r in batch], [r.seed for r in batch])
  check_images(name, images, len(batch))
  return images


def _record(row: ImageRow, image: UInt8[np.ndarray, 'height width 3']) -> Record:
  return Record(
    id=row.id,
    image=encode_png(np.ascontiguousarray(image)),
    captions=(row.prompt,),
    modality='generated',
    labels=(row.category,),
    generator_id=row.generator_id,
    prompt=row.prompt,
    truth={'provenance': to_json(row)},
  )
