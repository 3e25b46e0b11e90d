"""The images that were kept, as shards for the main job; the folder grows part by part."""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from align_jax.data import shards as shards_lib
from align_jax.data.record import Record
from align_jax.errors import UserError
from align_jax.synth.rows import AnnotationRow, DecisionRow, ScoreRow, to_json


def open_shards(directory: str, spec: str, parts: int, images: int, licence: str) -> None:
  """Makes the folder of shards ready: its manifest says that it is not complete.

  Raises:
    UserError: it holds the shards of something else.
  """
  manifest = shards_lib.load_manifest(directory)
  if manifest is not None and manifest.spec != spec and manifest.shards:
    raise UserError(
      f'{directory}: holds the shards of {manifest.spec}; --redo=shards makes them anew'
    )
  if manifest is None:
    shards_lib.check_target(directory, None, spec)
  if manifest is None or manifest.spec != spec:
    manifest = shards_lib.Manifest(
      spec=spec,
      licence=licence,
      shard_count=parts,
      source_records=images,
      versions=shards_lib.versions(),
    )
    shards_lib.save_manifest(directory, manifest)


def is_packed(directory: str, part: int, parts: int) -> bool:
  """Whether the shard of a part is there and intact."""
  manifest = shards_lib.load_manifest(directory)
  name = shards_lib.shard_name(part, parts)
  entries = () if manifest is None else manifest.shards
  return any(s.file == name and shards_lib.is_intact(directory, s) for s in entries)


def pack_part(
  directory: str,
  part: int,
  parts: int,
  records: Sequence[Record],
  annotations: Iterable[AnnotationRow],
  scores: Iterable[ScoreRow],
  decisions: Iterable[DecisionRow],
) -> shards_lib.Shard:
  """Writes the kept images of a part into its shard; `enter_part` then makes it known.

  Args:
    directory: see `open_shards`.
    part, parts: its number, and how many there are.
    records: of the images that were drawn.
    annotations, scores, decisions: of the same images, in any order.

  Returns: its entry of the manifest; skipped are those dropped, by their first reason.

  Raises:
    UserError: a full disk (finished shards stay).
  """
  decided = {row.id: row for row in decisions}
  dropped = collections.Counter(
    row.reasons[0].split(' ')[0] for row in decided.values() if not row.kept
  )
  with shards_lib.ShardWriter(directory, part, parts) as writer:
    for record in with_provenance(records, annotations, scores, decided):
      writer.add(record)
    return writer.commit(dict(sorted(dropped.items())))


def enter_part(directory: str, entry: shards_lib.Shard) -> None:
  """Enters a shard in the manifest; the last one completes it."""
  manifest = shards_lib.load_manifest(directory)
  if manifest is None:
    raise UserError(f'{directory}: no manifest; run the same command again')
  others = [s for s in manifest.shards if s.file != entry.file]
  entries = tuple(sorted([*others, entry], key=lambda s: s.file))
  complete = len(entries) == manifest.shard_count
  manifest = dataclasses.replace(manifest, shards=entries, complete=complete)
  shards_lib.save_manifest(directory, manifest)


def with_provenance(
  records: Sequence[Record],
  annotations: Iterable[AnnotationRow],
  scores: Iterable[ScoreRow],
  decisions: Mapping[str, DecisionRow],
) -> Iterator[Record]:
  """Yields the kept records with their mask, their scores and why they were kept."""
  masks = {row.id: row for row in annotations}
  values = {row.id: row for row in scores}
  for record in records:
    decision = decisions[record.id]
    if not decision.kept:
      continue
    truth: dict[str, Any] = dict(record.truth)
    mask = masks.get(record.id)
    if mask is not None and not mask.failure:
      truth['annotation'] = {
        'rle': mask.rle,
        'box': list(mask.box),
        'area': mask.area,
        'size': [mask.height, mask.width],
      }
    if record.id in values:
      truth['scores'] = {k: v for k, v in to_json(values[record.id]).items() if k != 'id'}
    truth['decision'] = {'kept': True, 'notes': list(decision.notes)}
    yield dataclasses.replace(record, truth=truth)
