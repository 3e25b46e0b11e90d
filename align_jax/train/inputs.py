"""From a data config to the training batches: sources, tokenizer, checks, Grain iterator."""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

from align_jax.data.pipeline import Part, train_iterator
from align_jax.data.quarantine import Quarantine
from align_jax.data.sources import Source, open_source, pair_index
from align_jax.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from align_jax.data.transforms import Transform
from align_jax.errors import UserError
from align_jax.train.config import DataConfig, TrainConfig

_TOKENIZER_CAPTIONS = 200_000  # enough for any vocabulary we train; a corpus need not be read whole
_MIN_SEEN = 100  # records, before a share of them says anything
_PEEK = 64  # records looked at before training, to find a source of the wrong kind early


@dataclasses.dataclass(frozen=True)
class Inputs:
  """What training reads.

  Attributes:
    parts: the mixture.
    tokenizer: of the captions.
    transform: of the images.
  """

  parts: tuple[Part, ...]
  tokenizer: Tokenizer
  transform: Transform


def open_inputs(
  config: TrainConfig, workdir: Path, *, image_size: int, needs_partner: bool, init: Path | None
) -> Inputs:
  """Opens and checks everything that `config.data` names, before any device work.

  Args:
    config: the experiment.
    workdir: the run folder; its tokenizer is used if it is there, else one is put there.
    image_size: of the model, pixels.
    needs_partner: the objective reads real partners of generated images.
    init: the run folder whose weights (and tokenizer) training starts from.

  Raises:
    UserError: a source that is missing, empty, without captions, or without pairs.
  """
  data = config.data
  parts = _open_parts(data, needs_partner=needs_partner)
  tokenizer = _tokenizer(data, workdir, init, [p.source for p in parts])
  return Inputs(parts, tokenizer, train_transform(data, image_size))


def train_transform(data: DataConfig, image_size: int) -> Transform:
  """The transform of training images."""
  return Transform(
    image_size=image_size,
    mode='train',
    resize=data.resize,
    interpolation=data.interpolation,
    min_scale=data.min_scale,
    flip=data.flip,
    colour=data.colour,
  )


def make_iterator(inputs: Inputs, config: TrainConfig, workdir: Path) -> Any:
  """The endless, resumable iterator over this process's share of every global batch."""
  process = jax.process_index()
  return train_iterator(
    inputs.parts,
    batch_size=config.batch_size // jax.process_count(),
    length=config.data.length,
    tokenizer=inputs.tokenizer,
    transform=inputs.transform,
    seed=config.seed,
    process_index=process,
    process_count=jax.process_count(),
    threads=config.data.threads,
    quarantine=Quarantine(
      workdir / ('quarantine.jsonl' if jax.process_count() == 1 else f'quarantine-{process}.jsonl'),
      max_share=config.data.max_skipped,
      min_seen=_MIN_SEEN,
    ),
    max_pixels=config.data.max_pixels,
  )


def _open_parts(data: DataConfig, *, needs_partner: bool) -> tuple[Part, ...]:
  real = open_source(data.real) if data.real else None
  generated = open_source(data.generated) if data.generated else None
  partners = open_source(data.partners) if data.partners else real
  if needs_partner:
    # only generated images can be aligned; the real ones come in as partners
    if generated is None:
      raise UserError('config.data.generated: empty, but the objective aligns generated images')
    _check_pairs(generated, partners, data)
    _check_captions(generated, 'generated')
    return (Part(generated, 1.0, partners),)
  named = [
    ('real', real, data.real_weight),
    ('generated', generated, data.generated_weight),
    *((f'more[{i}]', open_source(m.spec), m.weight) for i, m in enumerate(data.more)),
  ]
  parts = []
  for name, source, weight in named:
    if source is not None and weight > 0:
      _check_captions(source, name)
      parts.append(Part(source, weight))
  if not parts:
    raise UserError('config.data: neither real nor generated names a source with a positive weight')
  return tuple(parts)


def _check_captions(source: Source, field: str) -> None:
  if not any(record.captions for record in _peek(source)):
    raise UserError(
      f'config.data.{field}: none of the records looked at in {source.spec} has a caption; add '
      'captions (a captions.jsonl, or class subfolders with a template)'
    )


def _check_pairs(generated: Source, partners: Source | None, data: DataConfig) -> None:
  mend = 'set config.objective.pair_weight=0 and text_weight=1, or name the partners'
  if partners is None:
    raise UserError(
      'config.data.partners: empty, and so is config.data.real, but the real-pair term is on; '
      + mend
    )
  known = pair_index(partners)
  if not any(record.pair_id in known for record in _peek(generated)):
    raise UserError(
      f'config.data.generated: no record of {data.generated} has a pair_id found in '
      f'{data.partners or data.real}, but the real-pair term is on; {mend}'
    )


def _peek(source: Source) -> Iterator[Any]:
  """A few records from all over the source; unreadable ones are the pipeline's to count."""
  stride = max(1, len(source) // _PEEK)
  for index in range(0, len(source), stride):
    try:
      yield source[index]
    except UserError:
      continue


def _tokenizer(
  data: DataConfig, workdir: Path, init: Path | None, sources: list[Source]
) -> Tokenizer:
  kept = workdir / 'tokenizer'
  if kept.exists():
    return load_tokenizer(kept)
  given = Path(data.tokenizer) if data.tokenizer else (init / 'tokenizer' if init else None)
  if given is not None:
    tokenizer = load_tokenizer(given)
    tokenizer.save(kept)
    return tokenizer
  tokenizer = train_tokenizer(_captions(sources), data.vocab_size)
  tokenizer.save(kept)
  return tokenizer


def _captions(sources: list[Source]) -> Iterable[str]:
  seen = 0
  for source in sources:
    for index in range(len(source)):
      try:
        captions = source[index].captions
      except UserError:
        continue
      yield from captions
      seen += len(captions)
      if seen >= _TOKENIZER_CAPTIONS:
        return
