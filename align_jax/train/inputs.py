"""From a data config to the training batches: sources, tokenizer, checks, Grain iterator."""

import collections
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import numpy as np

from align_jax.data.chat import Chat
from align_jax.data.examples import Clusters
from align_jax.data.fingerprint import fingerprint
from align_jax.data.images import ImageError, decode_image
from align_jax.data.pair_record import PairSource
from align_jax.data.pair_sources import open_pairs
from align_jax.data.pair_sources.records import RecordPairs
from align_jax.data.pipeline import Batches, Part, local_batch, train_iterator
from align_jax.data.quarantine import Quarantine
from align_jax.data.questions import questions
from align_jax.data.sources import (
  Source,
  is_following,
  open_as,
  open_source,
  pair_ids,
  pair_index,
  parse_spec,
  record_ids,
)
from align_jax.data.tokenizer import Tokenizer
from align_jax.data.transforms import Transform
from align_jax.errors import UserError
from align_jax.mining.plan import BatchPlan, check_plan, load_plan, plan_checksum
from align_jax.modality import Modality
from align_jax.models.multimodal import MultimodalConfig
from align_jax.storage import AnyPath
from align_jax.train.config import DataConfig, TrainConfig
from align_jax.train.objective import Objective
from align_jax.train.run_config import is_under_way
from align_jax.train.snapshots import Folders, Snapshots
from align_jax.train.tokenizers import check_chat, check_tokenizer, open_chat, open_tokenizer

_MIN_SEEN = 100  # records, before a share of them says anything
_PEEK = 64  # records looked at before training, to find a source of the wrong kind early
_SAMPLE_SHARE = 0.1  # of them


@dataclasses.dataclass(frozen=True)
class Inputs:
  """What training reads.

  Attributes:
    parts: the mixture, as it is at the start of the run, without a plan of `remine`.
    tokenizer: of the captions, or of chats.
    transform: of the images.
    snapshots: what is seen, from which step on, of sources that grow.
    open_parts: makes the mixture of what is seen, by a plan where one is given.
  """

  parts: tuple[Part, ...]
  tokenizer: Tokenizer | Chat
  transform: Transform
  snapshots: Snapshots
  open_parts: Callable[[Folders, BatchPlan | None], tuple[Part, ...]]


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
  if data.text not in objective.texts:
    said = ' or '.join(map(repr, objective.texts))
    raise UserError(f'config.data.text: {data.text!r}, but this objective reads {said}; set that')
  plan = load_plan(data.plan) if data.plan else None
  if plan is not None and config.remine.every and plan.size != config.remine.k + 1:
    raise UserError(
      f'config.remine.k: {config.remine.k}, but the clusters of {data.plan} are of {plan.size}; '
      f'set {plan.size - 1}, or begin with another plan'
    )
  snapshots = Snapshots(workdir, _specs(data, objective), data.follow, is_under_way(workdir))
  opener = _Opener()
  opened = functools.partial(_open_parts, data, objective, opener)
  parts = _planned(opened(snapshots.at(0), check=True), plan)
  sources = [p.source for p in parts]
  if config.remine.every and config.remine.data:
    _check_mined(config.remine.data, parts)
  tokenizer: Tokenizer | Chat
  if isinstance(model, MultimodalConfig):
    tokenizer = open_chat(data, workdir, init, sources, model.image.patches)
    check_chat(tokenizer, model, data)
  else:
    tokenizer = open_tokenizer(data, workdir, init, sources)
    check_tokenizer(tokenizer, model)
  if not is_under_way(workdir) and jax.process_index() == 0:
    tokenizer.save(workdir / 'tokenizer')
  transform = train_transform(data, model.image_size)

  def open_parts(seen: Folders, newer: BatchPlan | None) -> tuple[Part, ...]:
    return _planned(opened(seen, check=False), newer or plan)

  return Inputs(parts, tokenizer, transform, snapshots, open_parts)


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


def make_iterator(
  inputs: Inputs, config: TrainConfig, workdir: AnyPath, parts: tuple[Part, ...] | None = None
) -> Batches:
  """The endless, resumable iterator over this process's share of every global batch.

  Args:
    parts: the mixture to begin with; None: that of the inputs.
  """
  process = jax.process_index()
  return train_iterator(
    inputs.parts if parts is None else parts,
    batch_size=local_batch(config.batch_size, jax.process_count()),
    length=config.data.length,
    tokenizer=inputs.tokenizer,
    transform=inputs.transform,
    seed=config.seed,
    text=config.data.text,
    level=config.data.level,
    questions=config.data.questions,
    summaries=config.data.summaries,
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
    self._pairs: dict[str, PairSource] = {}

  def pairs(self, spec: str) -> PairSource:
    if spec not in self._pairs:
      self._pairs[spec] = open_pairs(spec)
    return self._pairs[spec]

  def open(self, spec: str, seen: Folders, modality: Modality | None = None) -> Source:
    key = (spec, modality or '')
    source = self._kept.get(key)
    if source is None:
      source = open_as(modality, spec, seen) if modality else open_source(spec, seen)
      if not is_following(parse_spec(spec)):
        self._kept[key] = source
    return source


def _planned(parts: tuple[Part, ...], plan: BatchPlan | None) -> tuple[Part, ...]:
  """The same parts, in the clusters of a plan."""
  if plan is None:
    return parts
  if len(parts) > 1:
    raise UserError(
      'config.data.plan: a plan is of one source, this mixture has several; leave the others out'
    )
  ids = record_ids(parts[0].source)
  if not plan.clusters:
    raise UserError(f'config.data.plan: the plan of {plan.data} has no clusters; mine again')
  check_plan(plan, ids, fingerprint(parts[0].source) if plan.content else '')
  position = {name: i for i, name in enumerate(ids)}
  found = [[position[name] for name in cluster] for cluster in plan.clusters]
  clusters = Clusters(np.asarray(found, np.int64), plan_checksum(plan))
  return (dataclasses.replace(parts[0], clusters=clusters),)


def _check_mined(spec: str, parts: tuple[Part, ...]) -> None:
  """What is mined while training names the records that training reads."""
  if len(parts) > 1:
    raise UserError('config.remine.every: plans are of one source, this mixture has several; set 0')
  pairs, ids = open_pairs(spec), record_ids(parts[0].source)
  unknown = set(pairs.ids()) - set(ids)
  if unknown or (len(pairs) != len(ids) and not isinstance(pairs, RecordPairs)):
    raise UserError(
      f'config.remine.data: of {len(pairs)} pairs of {spec} {len(unknown)} are none of the records '
      f'of {parts[0].source.spec}; name the same records'
    )


def _specs(data: DataConfig, objective: Objective) -> list[str]:
  """The specs of all sources that `_open_parts` opens."""
  if data.text == 'pairs':
    return []  # none of them grows
  named = [data.real, data.generated, *(more.spec for more in data.more)]
  return [spec for spec in [*named, *([data.partners] if objective.generated_only else [])] if spec]


def _open_parts(
  data: DataConfig, objective: Objective, opener: _Opener, seen: Folders, *, check: bool
) -> tuple[Part, ...]:
  """Opens the mixture; of sources that grow, what is seen."""
  if data.text == 'pairs':
    pairs = opener.pairs(data.real)
    if check:
      _check_readable(pairs, data)
    return (Part(cast(Any, pairs)),)
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
    captions = captions or bool(questions(record) if data.text == 'questions' else record.captions)
  _judge(source.spec, field, len(source), seen, reasons, data)
  if not captions:
    raise UserError(
      f'config.data.{field}: none of the records looked at in {source.spec} has a caption; add '
      'captions (a captions.jsonl, or class subfolders with a template)'
    )


def _check_readable(pairs: PairSource, data: DataConfig) -> None:
  """Looks at pairs all over the source, as `_check` does at records."""
  seen, wrong = 0, collections.Counter[str]()
  for index in _spread(pairs):
    seen += 1
    try:
      pair = pairs[index]
      for image in (*pair.query.images, *pair.positive.images):
        decode_image(image, data.max_pixels)
    except (UserError, ImageError) as error:
      wrong[f'{error}' if isinstance(error, UserError) else error.reason] += 1
  _judge(pairs.spec, 'real', len(pairs), seen, wrong, data)


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


def _judge(
  spec: str, field: str, count: int, seen: int, reasons: collections.Counter[str], data: DataConfig
) -> None:
  """Refuses a source of which too many that were looked at cannot be used."""
  # a sample says little of a small share: only a source looked at whole is held to the very limit
  allowed = data.max_skipped if seen == count else max(data.max_skipped, _SAMPLE_SHARE)
  if sum(reasons.values()) > allowed * seen:
    said = ', '.join(f'{count} {reason}' for reason, count in reasons.most_common(3))
    raise UserError(
      f'config.data.{field}: of {seen} records looked at in {spec} cannot be used: {said}; '
      'mend or remove them, or raise config.data.max_skipped'
    )


def _spread(source: Source | PairSource) -> range:
  """Positions of a few records, all over the source."""
  return range(0, len(source), max(1, len(source) // _PEEK))
