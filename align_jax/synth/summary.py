"""What a run of the engine came to: the rows of its stages, gathered for the report."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float

from align_jax.data import shards as shards_lib
from align_jax.data.images import ImageError, decode_image, decode_picture
from align_jax.data.record import Record
from align_jax.data.transforms import apply_to_picture
from align_jax.evaluation.pictures import thumbnail
from align_jax.evaluation.sections import run_details
from align_jax.synth.filtration.decide import real_scores
from align_jax.synth.report.data import ReportData, Threshold, draw
from align_jax.synth.report.page import write_report
from align_jax.synth.report.samples import wanted_pictures
from align_jax.synth.rows import AnnotationRow, DecisionRow, ImageRow, ScoreRow
from align_jax.synth.run import Run
from align_jax.synth.settings import SHARDS, STAGES

T = TypeVar('T')
REPORT = 'report.html'
_THUMBNAIL = 64  # pixels
_BATCH = 256


def write_summary(run: Run, command: Sequence[str]) -> None:
  """Writes `report.html` and `report.json` into the work folder, of what there is so far.

  Args:
    run: whose first stages are done.
    command: the words of the command line.

  Raises:
    UserError: a full disk, or rows that are damaged.
  """
  write_report(gather(run, command), run.workdir / REPORT, run.config.report)


def summary_lines(run: Run) -> list[str]:
  """Says in a few lines what was done, what should be known of it, and where it is."""
  lines = []
  for name in ('categories', 'prompts'):
    if run.stage(name).is_complete():
      lines += [f'note: {note}' for note in run.notes(name)['notes']]
  manifest = shards_lib.load_manifest(str(run.workdir / SHARDS))
  if manifest is not None:
    dropped = ', '.join(f'{n} {reason}' for reason, n in sorted(manifest.skipped.items()))
    state = '' if manifest.complete else f' ({len(manifest.shards)} of {run.parts} parts so far)'
    lines.append(
      f'{run.workdir / SHARDS}: {manifest.total} of {manifest.source_records} images kept{state}'
      + (f'; dropped: {dropped}' if dropped else '')
    )
  else:
    done = [name for name in STAGES[:-1] if run.stage(name).is_complete()]
    lines.append(f'{run.workdir}: done so far: {", ".join(done) or "nothing"}')
  if run.stage('score').count_done():
    lines += [f'note: {note}' for note in run.references.notes]
    without = [name for name, count in run.references.counts.items() if not count]
    if run.real is not None and without:
      lines.append(
        f'note: no real image of {len(without)} categories ({", ".join(without[:3])}…): kept or '
        f'dropped as config.filtration.fallback={run.config.filtration.fallback} says'
      )
  if (run.workdir / REPORT).is_file():
    lines.append(f'report: {run.workdir / REPORT}')
  return lines


def gather(run: Run, command: Sequence[str]) -> ReportData:
  """Collects what the report shows."""
  config = run.config
  images = _rows(run, 'generate', ImageRow)
  places = {image.id: (part, i) for part, rows in enumerate(images) for i, image in enumerate(rows)}
  flat = [image for rows in images for image in rows]
  rng_seed, most = config.report.seed, config.report.metric_rows
  shown = [
    [image for image in flat if image.generator == generator.name and not image.failure]
    for generator in config.generators
  ]
  chosen = [
    own[i] for own in shown for i in sorted(draw([image.id for image in own], most, rng_seed))
  ]
  records = _records(run, [image.id for image in chosen], places)
  kept_ids, embeddings = _embed(run, records)
  real_records = _real_records(run, most)
  real_ids, real_embeddings = _embed(run, real_records)
  labels = {record.id: record.labels[0] for record in real_records}
  data = ReportData(
    categories=run.categories,
    prompts=run.prompts,
    images=flat,
    annotations=_flat(_rows(run, 'annotate', AnnotationRow)),
    scores=_flat(_rows(run, 'score', ScoreRow)),
    decisions=_flat(_rows(run, 'filter', DecisionRow)),
    embedded=kept_ids,
    embeddings=embeddings,
    real_ids=real_ids,
    real_categories=[labels[id_] for id_ in real_ids],
    real_embeddings=real_embeddings,
    prompt_diversity=run.notes('prompts')['diversity'],
    thresholds=_thresholds(run),
    title=f'Generated data: {run.workdir.name}',
    encoder=run.embedder_spec,
    details=run_details(command, config, _licences(run)),
  )
  wanted_real, wanted = wanted_pictures(data, config.report)
  by_id = {record.id: record for record in real_records}
  pictures = {r.id: r for r in _records(run, wanted, places)}
  return ReportData(
    **{
      **{field: getattr(data, field) for field in data.__dataclass_fields__},
      'thumbnails': _thumbnails(pictures.values()),
      'real_thumbnails': _thumbnails(by_id[id_] for id_ in wanted_real if id_ in by_id),
    }
  )


def _rows(run: Run, name: str, cls: type[T]) -> list[list[T]]:
  """The rows of each part that is done, one after another up to the first that is not."""
  stage = run.stage(name)
  out = []
  for part in range(stage.parts):
    if not stage.is_done(part):
      break
    out.append(stage.rows(part, cls))
  return out


def _flat(parts: Sequence[Sequence[T]]) -> list[T]:
  return [row for part in parts for row in part]


def _records(run: Run, ids: Sequence[str], places: dict[str, tuple[int, int]]) -> list[Record]:
  """The records of generated images, part by part; failures have none."""
  wanted, out = set(ids), []
  for part in sorted({places[id_][0] for id_ in ids}):
    out += [record for record in run.stage('generate').records(part) if record.id in wanted]
  return out


def _real_records(run: Run, most: int) -> list[Record]:
  """Real images of the categories, drawn at random."""
  if run.real is None:
    return []
  known = {category.name for category in run.categories}
  order = np.random.default_rng(run.config.report.seed).permutation(len(run.real))
  out: list[Record] = []
  for position in order:
    if len(out) == most:
      break
    record = run.real[int(position)]
    if record.labels and record.labels[0] in known:
      out.append(record)
  return out


def _embed(run: Run, records: Sequence[Record]) -> tuple[list[str], Float[np.ndarray, 'n dim']]:
  """Embeds whole images, real and generated alike; what cannot be decoded is left out."""
  rng = np.random.default_rng(0)  # the transform of evaluation draws nothing
  ids, parts = [], []
  for start in range(0, len(records), _BATCH):
    pixels = []
    for record in records[start : start + _BATCH]:
      try:
        picture = decode_picture(record.image)
      except ImageError:
        continue
      pixels.append(apply_to_picture(run.embedder.transform, picture, rng))
      ids.append(record.id)
    if pixels:
      parts.append(run.embedder.embed_images(np.stack(pixels)))
  return ids, np.concatenate(parts) if parts else np.zeros((0, run.embedder.dim), np.float32)


def _thumbnails(records: Iterable[Record]) -> dict[str, bytes]:
  out = {}
  for record in records:
    try:
      out[record.id] = thumbnail(decode_image(record.image), _THUMBNAIL)
    except ImageError:
      continue
  return out


def _thresholds(run: Run) -> list[Threshold]:
  """Where the filters cut."""
  config = run.config.filtration
  out = [
    Threshold('area', config.min_area or None, config.max_area if config.max_area < 1 else None)
  ]
  out.append(Threshold('spread', config.min_spread, config.max_spread))
  if not run.stage('score').is_complete() and not config.is_streaming:
    return out
  cuts = run.decider.thresholds
  similar, text = cuts.similarity, cuts.text
  near, told = (real_scores(config, run.references, score) for score in ('similarity', 'text'))
  out.append(
    Threshold('similarity', similar.pooled, None, dict(similar.own), near, config.similarity.kind)
  )
  out.append(Threshold('text', text.pooled, None, dict(text.own), told, config.text.kind))
  return out


def _licences(run: Run) -> dict[str, str]:
  out = {} if run.real is None else {run.real.spec: run.real.licence}
  return {**out, 'generated images': run.config.licence}
