"""From a data config to the training batches: sources, tokenizer, checks, Grain iterator."""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax

from align_jax import storage
from align_jax.data.images import ImageError, decode_image
from align_jax.data.pipeline import Part, local_batch, train_iterator
from align_jax.data.quarantine import Quarantine
from align_jax.data.sources import (
  Source,
  is_following,
  open_as,
  open_source,
  pair_ids,
  pair_index,
  parse_spec,
)
from align_jax.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from align_jax.data.transforms import Transform
from align_jax.errors import UserError
from align_jax.modality import Modality
from align_jax.storage import AnyPath
from align_jax.train.config import DataConfig, TrainConfig
from align_jax.train.objective import Objective
from align_jax.train.snapshots import Folders, Snapshots

_TOKENIZER_CAPTIONS = 200_000  # enough for any vocabulary we train; a corpus need not be read whole
_MIN_SEEN = 100  # records, before a share of them says anything
_PEEK = 64  # records looked at before training, to find a source of the wrong kind early
_SAMPLE_SHARE = 0.1  # of them


@dataclasses.dataclass(frozen=True)
class Inputs:
  """What training reads.

  Attributes:
    parts: the mixture, as it is at the start of the run.
    tokenizer: of the captions.
    transform: of the images.
    snapshots: what is seen, from which step on, of sources that grow.
    open_parts: makes the mixture of what is seen.
  """

  parts: tuple[Part, ...]
  tokenizer: Tokenizer
  transform: Transform
  snapshots: Snapshots
  open_parts: Callable[[Folders], tuple[Part, ...]]


def open_inputs(
  config: TrainConfig, workdir: AnyPath, objective: Objective, model: Any, *, init: AnyPath | None
) -> Inputs:
  """Opens and checks everything that `config.data` names, before any device work.

  Args:
    config: the experiment.
    workdir: the run folder; a run under way there keeps its tokenizer, else one is put there.
    objective: says what the batches must hold.
    model: the model's config: image size, vocabulary, special tokens.
    init: the run folder whose weights (and tokenizer) training starts from.

  Raises:
    UserError: a source that is missing, empty, damaged, without captions or pairs; a tokenizer that
      does not fit the model.
  """
  data = config.data
  snapshots = Snapshots(workdir, _specs(data, objective), data.follow, is_under_way(workdir))
  opener = _Opener()
  parts = _open_parts(data, objective, opener, snapshots.at(0), check=True)
  tokenizer = _tokenizer(data, workdir, init, [p.source for p in parts])
  _check_tokenizer(tokenizer, model)
  if not is_under_way(workdir) and jax.process_index() == 0:
    tokenizer.save(workdir / 'tokenizer')
  transform = train_transform(data, model.image_size)
  open_parts = functools.partial(_open_parts, data, objective, opener, check=False)
  return Inputs(parts, tokenizer, transform, snapshots, open_parts)


def is_under_way(workdir: AnyPath) -> bool:
  """Whether a run has left a checkpoint (or begun one) in this folder."""
  checkpoints = workdir / 'checkpoints'
  if storage.is_remote(workdir):
    return storage.is_folder(checkpoints)  # a folder in a bucket is what is in it
  return checkpoints.is_dir() and any(checkpoints.iterdir())


def train_transform(data: DataConfig, image_size: int) -> Transform:
  """The transform of training images."""
  return Transform(
    image_size=image_size,
    mode='train',
    resize=data.resize,
    interpolation=data.interpolation,
    short_side=data.short_side,
    min_scale=data.min_scale,
    flip=data.flip,
    colour=data.colour,
  )


def make_iterator(inputs: Inputs, config: TrainConfig, workdir: AnyPath) -> Any:
  """The endless, resumable iterator over this process's share of every global batch."""
  process = jax.process_index()
  return train_iterator(
    inputs.parts,
    batch_size=local_batch(config.batch_size, jax.process_count()),
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


class _Opener:
  """Opens the sources of a run; those that do not grow once."""

  def __init__(self) -> None:
    self._kept: dict[tuple[str, str], Source] = {}

  def open(self, spec: str, seen: Folders, modality: Modality | None = None) -> Source:
    key = (spec, modality or '')
    source = self._kept.get(key)
    if source is None:
      source = open_as(modality, spec, seen) if modality else open_source(spec, seen)
      if not is_following(parse_spec(spec)):
        self._kept[key] = source
    return source


def _specs(data: DataConfig, objective: Objective) -> list[str]:
  """The specs of all sources that `_open_parts` opens."""
  named = [data.real, data.generated, *(more.spec for more in data.more)]
  return [spec for spec in [*named, *([data.partners] if objective.generated_only else [])] if spec]


def _open_parts(
  data: DataConfig, objective: Objective, opener: _Opener, seen: Folders, *, check: bool
) -> tuple[Part, ...]:
  """Opens the mixture; of sources that grow, what is seen."""
  real = opener.open(data.real, seen, 'real') if data.real else None
  generated = opener.open(data.generated, seen, 'generated') if data.generated else None
  if objective.generated_only:
    # only generated images can be aligned; the real ones come in as partners
    if generated is None:
      raise UserError('config.data.generated: empty, but the objective aligns generated images')
    if data.more:
      raise UserError('config.data.more: this objective takes generated images alone; leave it ()')
    partners = opener.open(data.partners, seen, 'real') if data.partners else real
    if check:
      if objective.needs_partner:
        _check_pairs(generated, partners, data)
      _check(generated, 'generated', data)
    return (Part(generated, 1.0, partners if objective.needs_partner else None),)
  named = [
    ('real', real, data.real_weight),
    ('generated', generated, data.generated_weight),
    *((f'more[{i}]', opener.open(m.spec, seen), m.weight) for i, m in enumerate(data.more)),
  ]
  parts = []
  for name, source, weight in named:
    if source is not None and weight > 0:
      if check:
        _check(source, name, data)
      parts.append(Part(source, weight))
  if not parts:
    raise UserError('config.data: neither real nor generated names a source with a positive weight')
  return tuple(parts)


def _check(source: Source, field: str, data: DataConfig) -> None:
  """Looks at records all over the source: are there captions, can the images be decoded?"""
  seen, reasons = 0, collections.Counter[str]()
  captions = False
  for index in _spread(source):
    seen += 1
    try:
      record = source[index]
      decode_image(record.image, data.max_pixels)
    except (UserError, ImageError) as error:
      reasons[f'{error}' if isinstance(error, UserError) else error.reason] += 1
      continue
    captions = captions or bool(record.captions)
  # a sample says little of a small share: only a source looked at whole is held to the very limit
  allowed = data.max_skipped if seen == len(source) else max(data.max_skipped, _SAMPLE_SHARE)
  if sum(reasons.values()) > allowed * seen:
    said = ', '.join(f'{count} {reason}' for reason, count in reasons.most_common(3))
    raise UserError(
      f'config.data.{field}: of {seen} records looked at in {source.spec} cannot be used: {said}; '
      'mend or remove them, or raise config.data.max_skipped'
    )
  if not captions:
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
  pairs = pair_ids(generated)
  if not any(pairs[index] in known for index in _spread(generated)):
    raise UserError(
      f'config.data.generated: no record of {data.generated} has a pair_id found in '
      f'{data.partners or data.real}, but the real-pair term is on; {mend}'
    )


def _spread(source: Source) -> range:
  """Positions of a few records, all over the source."""
  return range(0, len(source), max(1, len(source) // _PEEK))


def _tokenizer(
  data: DataConfig, workdir: AnyPath, init: AnyPath | None, sources: list[Source]
) -> Tokenizer:
  if is_under_way(workdir):
    return load_tokenizer(workdir / 'tokenizer')
  if data.tokenizer:
    return load_tokenizer(storage.open_path(data.tokenizer))
  if init is not None:
    return load_tokenizer(init / 'tokenizer')
  return train_tokenizer(_captions(sources), data.vocab_size)


def _check_tokenizer(tokenizer: Tokenizer, model: Any) -> None:
  """The model reads special tokens by their ids: others would be read without a sign."""
  if tokenizer.vocab_size > model.vocab_size:
    raise UserError(
      f'config.model: vocab_size is {model.vocab_size}, but the tokenizer has '
      f'{tokenizer.vocab_size} tokens; raise it, or lower config.data.vocab_size'
    )
  for name in ('pad_id', 'eot_id'):
    wanted, has = getattr(model, name), getattr(tokenizer, name)
    if wanted is not None and wanted != has:
      raise UserError(
        f'config.model: {name} is {wanted}, but {has} in the tokenizer; set it to {has}'
      )


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
