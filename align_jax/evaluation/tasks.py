"""The evaluation tasks: a checkpoint's encoder and some sources in, named numbers out."""

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from align_jax.data.quarantine import Quarantine
from align_jax.data.sources.base import Source, pair_index
from align_jax.data.sources.subset import Subset
from align_jax.errors import UserError, did_you_mean
from align_jax.evaluation import gap, probes, retrieval, zero_shot
from align_jax.evaluation.features import (
  Features,
  ImageTextEncoder,
  embed_source,
  single_labels,
)
from align_jax.modality import Modality

Inference = Literal['clip_flow', 'aligned_encoder']
# How real images are read: track and projection. The paper says both (algorithm 1, section 3.2).
READINGS: Mapping[str, tuple[Modality | None, Modality | None]] = {
  'clip_flow': (None, None),
  'aligned_encoder': ('generated', 'real'),
}
NAMES = ('retrieval', 'zero_shot', 'probe', 'gap')


def evaluate(
  encoder: ImageTextEncoder,
  data: 'EvalData',
  tasks: Sequence['str | Task'] = NAMES,
  *,
  inference: Inference = 'clip_flow',
  quarantine: Quarantine | None = None,
) -> dict[str, float]:
  """Runs the tasks and returns their numbers under flat keys such as `retrieval.t2i.r1`.

  Each source is embedded once, however many tasks read it, and not before every task has said
  that it has the data it needs.

  Args:
    inference: the track that reads real images: `clip_flow` the real one; `aligned_encoder` the
      generated one with the projection for real images.
    quarantine: counts and names the images that cannot be decoded and are left out.

  Raises:
    UserError: an unknown task, or data missing for one (the message names the flag).
  """
  return measure(Embedded(encoder, data, inference, quarantine), tasks)


def measure(embedded: 'Embedded', tasks: Sequence['str | Task'] = NAMES) -> dict[str, float]:
  """`evaluate` on features that the caller goes on using, for instance for a report's pictures."""
  chosen = [find_task(task) if isinstance(task, str) else task for task in tasks]
  for task in chosen:
    task.check(embedded.data)
  out: dict[str, float] = {}
  for task in chosen:
    out.update(task.run(embedded))
  return out


def find_task(name: str) -> 'Task':
  """Returns the task of that name with its default settings.

  Raises:
    UserError: no task has that name.
  """
  known: dict[str, Task] = {
    'retrieval': Retrieval(),
    'zero_shot': ZeroShot(),
    'probe': Probe(),
    'gap': Gap(),
  }
  if name not in known:
    raise UserError(f'tasks: unknown task {name!r}{did_you_mean(name, known)}')
  return known[name]


@dataclasses.dataclass(frozen=True)
class EvalData:
  """What the tasks may read.

  Attributes:
    test: held-out real images with captions and labels.
    generated: generated images: the probes learn on them, the gap is measured from them.
    partners: the real images that `generated` pairs point to; None: `test` holds them.
    limit: at most so many records of each source; None: all.
    class_names: the classes of zero-shot classification; (): the labels found in `test`.
    templates: its prompts: a name in `zero_shot.TEMPLATES`, or templates with one `{}` each.
    frequency: which classes are rare in training; None: not told apart.
  """

  test: Source
  generated: Source | None = None
  partners: Source | None = None
  limit: int | None = None
  class_names: tuple[str, ...] = ()
  templates: str | tuple[str, ...] = 'photo'
  frequency: zero_shot.Frequency | None = None


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Generated images beside their real partners, row by row.

  Attributes:
    real: features of the partners, each once.
    generated: features of all generated images, with or without a partner.
    real_rows, generated_rows: row i of one is the partner of row i of the other.
  """

  real: Features
  generated: Features
  real_rows: np.ndarray
  generated_rows: np.ndarray


@dataclasses.dataclass(frozen=True)
class Embedded:
  """The features of an `EvalData`, each computed when a task first asks for it, and kept."""

  encoder: ImageTextEncoder
  data: EvalData
  inference: Inference = 'clip_flow'
  quarantine: Quarantine | None = None

  @functools.cached_property
  def test(self) -> Features:
    return self._real(self.data.test, self.data.limit)

  @functools.cached_property
  def generated(self) -> Features:
    if self.data.generated is None:
      raise UserError('generated images are needed: --generated=SPEC')
    return embed_source(
      self.encoder, self.data.generated, limit=self.data.limit, quarantine=self.quarantine
    )

  @functools.cached_property
  def pairs(self) -> Pairs:
    """Raises UserError where not two generated images have a partner among the real ones."""
    source = self.data.test if self.data.partners is None else self.data.partners
    wanted = dict.fromkeys(pair for pair in self.generated.pair_ids if pair)
    where = pair_index(source)
    positions = np.asarray([where[pair] for pair in wanted if pair in where], np.int64)
    few = (
      f'gap: of {len(self.generated.ids)} generated images {{}} have a real partner in '
      f'{source.spec}; give the real images that their pair_id names: --partners=SPEC'
    )
    if len(positions) < 2:
      raise UserError(few.format(len(positions)))
    real = self._real(Subset(source, source.spec, positions), None)
    row = {id_: i for i, id_ in enumerate(real.ids)}
    both = [(row[p], i) for i, p in enumerate(self.generated.pair_ids) if p in row]
    if len({r for r, _ in both}) < 2:
      raise UserError(few.format(len(both)))
    real_rows, generated_rows = np.asarray(both, np.int64).T
    return Pairs(real, self.generated, real_rows, generated_rows)

  def _real(self, source: Source, limit: int | None) -> Features:
    modality, projection = READINGS[self.inference]
    return embed_source(
      self.encoder,
      source,
      modality=modality,
      projection=projection,
      limit=limit,
      quarantine=self.quarantine,
    )


@runtime_checkable
class Task(Protocol):
  """One kind of judgement."""

  def check(self, data: EvalData) -> None:
    """Raises UserError, with the mend, if `data` lacks what `run` needs."""
    ...

  def run(self, embedded: Embedded) -> Iterator[tuple[str, float]]:
    """Yields `(key, value)`."""
    ...


@dataclasses.dataclass(frozen=True)
class Retrieval:
  """Captions find images and images find captions, among the held-out real ones."""

  same_caption: bool = True

  def check(self, data: EvalData) -> None:
    """Captions are found only by reading the records: `run` says if there are none."""

  def run(self, embedded: Embedded) -> Iterator[tuple[str, float]]:
    if not embedded.test.texts:
      raise UserError(
        f'retrieval: {embedded.data.test.spec} has no captions; add some, or leave the task out'
      )
    scores = retrieval.retrieve(embedded.test, same_caption=self.same_caption)
    yield from ((f'retrieval.{name}', value) for name, value in scores.items())


@dataclasses.dataclass(frozen=True)
class ZeroShot:
  """Held-out real images are named by class descriptions."""

  def check(self, data: EvalData) -> None:
    templates = _templates(data.templates)
    for template in templates:
      if len(re.findall(r'{}', template)) != 1 or re.sub(r'{}', '', template).count('{'):
        raise UserError(f"zero_shot: template {template!r} needs one '{{}}' for the class name")

  def run(self, embedded: Embedded) -> Iterator[tuple[str, float]]:
    data, test = embedded.data, embedded.test
    names = list(data.class_names) or sorted(set(single_labels(test)[1]))
    if len(names) < 2 or not set(names) & set(single_labels(test)[1]):
      raise UserError(
        f'zero_shot: {data.test.spec} has no images with exactly one label of two or more classes; '
        'add labels, or leave the task out'
      )
    vectors = zero_shot.class_vectors(embedded.encoder, names, _templates(data.templates))
    scores = zero_shot.classify(test, names, vectors, frequency=data.frequency)
    keys = ('top1', 'top5', 'balanced', *zero_shot.Frequency.GROUPS)
    yield from ((f'zero_shot.{k}', scores[k]) for k in keys if k in scores)


@dataclasses.dataclass(frozen=True)
class Probe:
  """Classifiers fitted to generated images are tested on held-out real ones."""

  def check(self, data: EvalData) -> None:
    if data.generated is None:
      raise UserError('probe needs generated images to learn on: --generated=SPEC')

  def run(self, embedded: Embedded) -> Iterator[tuple[str, float]]:
    test, generated = embedded.test, embedded.generated
    if not single_labels(test)[1] or len(set(single_labels(generated)[1])) < 2:
      raise UserError(
        'probe: needs images with exactly one label, of two or more classes, in both '
        f'{embedded.data.test.spec} and the generated source; add labels, or leave the task out'
      )
    data = probes.probe_data(generated, test)
    yield 'probe.linear', probes.linear_probe(data)
    yield 'probe.knn', probes.knn_probe(data)
    yield 'probe.unknown', data.unknown / len(data.test_y)


@dataclasses.dataclass(frozen=True)
class Gap:
  """How far generated images lie from their real partners."""

  def check(self, data: EvalData) -> None:
    if data.generated is None:
      raise UserError('gap needs generated images: --generated=SPEC')

  def run(self, embedded: Embedded) -> Iterator[tuple[str, float]]:
    pairs, test = embedded.pairs, embedded.test
    real = pairs.real.image[pairs.real_rows]
    generated = pairs.generated.image[pairs.generated_rows]
    names = [pairs.generated.pair_ids[i] for i in pairs.generated_rows]
    yield 'gap.auc', gap.separability_auc(pairs.real.image, generated, pairs.real.ids, names)
    yield 'gap.paired_cosine', float(gap.paired_cosines(real, generated).mean())
    yield 'gap.unpaired_cosine', gap.unpaired_cosine(real, generated, pairs.real_rows)
    yield 'gap.centroid_distance', gap.centroid_distance(pairs.real.image, generated)
    if test.texts:
      yield 'gap.alignment', gap.alignment(test.image[test.text_owner], test.text)
    if len(test.image) > 1:
      yield 'gap.uniformity', gap.uniformity(test.image)
    yield 'gap.uniformity_generated', gap.uniformity(generated)


def _templates(choice: str | tuple[str, ...]) -> tuple[str, ...]:
  if not isinstance(choice, str):
    return choice
  if choice not in zero_shot.TEMPLATES:
    raise UserError(
      f'zero_shot.templates: unknown set {choice!r}{did_you_mean(choice, zero_shot.TEMPLATES)}'
    )
  return zero_shot.TEMPLATES[choice]
