"""What a captioner says of images, and what it is worth by every measure that the data allow."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from align_jax.data.pipeline import eval_batches
from align_jax.data.quarantine import Quarantine
from align_jax.data.questions import DESCRIBE
from align_jax.data.record import Record
from align_jax.data.sources.base import Source
from align_jax.data.sources.subset import Subset, spread_positions
from align_jax.errors import UserError
from align_jax.evaluation.answers import TextWriter, answer_scores, ask_all
from align_jax.evaluation.caption_metrics import caption_scores
from align_jax.evaluation.clip_score import clip_score, ref_clip_score
from align_jax.evaluation.emoji_captions import caption_accuracy
from align_jax.evaluation.features import ImageTextEncoder, embed_source
from align_jax.modality import Modality

NAMES = ('answers', 'captions')  # tasks of a model that answers
_BATCH = 128


def check_tasks(tasks: Sequence[str] | None, where: str) -> None:
  """Raises a UserError, naming the field or flag, if tasks of other models are asked for."""
  unknown = [task for task in tasks or () if task not in NAMES]
  if unknown or (tasks is not None and not tasks):
    raise UserError(
      f'{where}: {", ".join(unknown) or "none"}; of a model that answers, set {" or ".join(NAMES)}'
    )


def evaluate_writer(
  writer: TextWriter,
  source: Source,
  tasks: Sequence[str] = ('answers',),
  *,
  judge: ImageTextEncoder | None = None,
  limit: int | None = None,
  quarantine: Quarantine | None = None,
) -> dict[str, float]:
  """Runs tasks of a model that answers; returns their numbers under flat keys.

  Args:
    writer: the model.
    source: held-out real images.
    tasks: any of `NAMES`.
    judge: an encoder for CLIPScore; None: that is left out.
    limit: at most so many records.
    quarantine: counts and names images that cannot be decoded.
  """
  scores: dict[str, float] = {}
  if 'answers' in tasks:
    scores |= answer_scores(ask_all(writer, source, limit=limit, quarantine=quarantine))
  if 'captions' in tasks:
    again = quarantine if 'answers' not in tasks else None  # each image is counted once
    part = limited(source, limit)
    scores |= score_captions(caption_all(writer, part, quarantine=again), part, judge)
  return scores


@dataclasses.dataclass(frozen=True)
class Captioned:
  """An image's caption.

  Attributes:
    record_id: of the image.
    said: by the model.
    references: what is known to be right.
    truth: of the record.
  """

  record_id: str
  said: str
  references: tuple[str, ...]
  truth: Mapping[str, Any]


def caption_all(
  writer: TextWriter,
  source: Source,
  *,
  modality: Modality = 'real',
  quarantine: Quarantine | None = None,
) -> list[Captioned]:
  """Has captions written of the images that have captions already.

  Args:
    writer: the model.
    source: the images.
    modality: the track that reads them: `real`, the plain tower; `generated`, with its adapters.
    quarantine: counts what cannot be read.

  Raises:
    UserError: not one image has a caption to compare with.
  """
  out = []
  for images, records in eval_batches(source, writer.transform, _BATCH, quarantine=quarantine):
    known = [_references(record) for record in records]
    rows = [i for i, references in enumerate(known) if references]
    if not rows:
      continue
    said = writer.answer(images[rows], [DESCRIBE] * len(rows), modality=modality)
    for i, text in zip(rows, said, strict=True):
      out.append(Captioned(records[i].id, text, known[i], records[i].truth))
  if not out:
    raise UserError(f'captions: no record of {source.spec} has a caption to compare with; add some')
  return out


def score_captions(
  captioned: Sequence[Captioned], source: Source, judge: ImageTextEncoder | None = None
) -> dict[str, float]:
  """Returns the scores of captions.

  Args:
    captioned: see `caption_all`.
    source: where the images are, for the judge.
    judge: an encoder of images and texts; best one that the captioner does not read with.

  Returns: `captions.bleu4` and `captions.cider` (see `caption_metrics`); with a judge
    `captions.clip_score` and `captions.ref_clip_score`, means over the images; of scenes with
    ground truth also shares, see `emoji_captions.caption_accuracy`; `captions.asked`, how many
    images.

  Raises:
    UserError: see `caption_metrics.caption_scores`.
  """
  said = [each.said for each in captioned]
  scores = dict(caption_scores(said, [each.references for each in captioned]))
  if judge is not None:
    scores |= _judged(captioned, source, judge)
  if all(each.truth.get('objects') for each in captioned):
    shares = caption_accuracy(said, [each.truth for each in captioned])
    scores |= {k: v for k, v in shares.items() if k not in ('objects', 'captions')}
  scores['asked'] = float(len(captioned))
  return {f'captions.{name}': value for name, value in scores.items()}


def _judged(
  captioned: Sequence[Captioned], source: Source, judge: ImageTextEncoder
) -> dict[str, float]:
  features = embed_source(judge, source, modality='real')
  place = {name: row for row, name in enumerate(features.ids)}
  image = features.image[[place[each.record_id] for each in captioned]]
  caption = _texts(judge, [each.said for each in captioned])
  reference = _texts(judge, [text for each in captioned for text in each.references])
  owner = np.repeat(np.arange(len(captioned)), [len(each.references) for each in captioned])
  return {
    'clip_score': float(clip_score(image, caption).mean()),
    'ref_clip_score': float(ref_clip_score(image, caption, reference, owner).mean()),
  }


def _texts(judge: ImageTextEncoder, texts: Sequence[str]) -> np.ndarray:
  """Embeds texts, each distinct one once."""
  place = {text: row for row, text in enumerate(dict.fromkeys(texts))}
  return np.asarray(judge.embed_texts(list(place)))[[place[text] for text in texts]]


def _references(record: Record) -> tuple[str, ...]:
  """What answers `DESCRIBE`: the long caption of a scene, that is asked for otherwise, does not."""
  known = tuple(dict.fromkeys(caption for caption in record.captions if caption.strip()))
  short = tuple(caption for caption in known if caption != record.truth.get('caption_long'))
  return short or known


def limited(source: Source, limit: int | None) -> Source:
  """Returns at most so many records, evenly over the source."""
  if limit is None or limit >= len(source):
    return source
  return Subset(source, source.spec, spread_positions(len(source), limit))
