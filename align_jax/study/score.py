"""Scores of a finished run on held-out real images, kept beside it."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path

from align_jax.answerer import load_answerer
from align_jax.data.sources import open_source
from align_jax.data.sources.base import label_counts
from align_jax.encoder import load_run
from align_jax.evaluation.captions import caption_all, limited, score_captions
from align_jax.evaluation.tasks import READINGS, EvalData, Inference, evaluate
from align_jax.evaluation.zero_shot import Frequency
from align_jax.files import write_file
from align_jax.study.config import StudyConfig
from align_jax.study.specs import Specs

Scores = Mapping[Inference, Mapping[str, float]]


def score_run(
  config: StudyConfig, specs: Specs, readings: tuple[Inference, ...], run: Path, kept: Path
) -> Scores:
  """Evaluates a run under each reading of inference, or reads what an earlier call kept.

  Args:
    config: the study.
    specs: its sources.
    readings: how real images are embedded.
    run: the run folder.
    kept: JSON file of the scores.

  Returns: reading -> flat metric name -> value. Further held-out sets are prefixed by their name:
    `compositions.retrieval.t2i.r1`.
  """
  judged = {
    'sources': [specs.test, specs.generated, specs.gap, *config.data.held_out.values()],
    'names': list(config.data.held_out),
    'sampling': dataclasses.asdict(config.sampling) if config.sampling else None,
    'frequency': list(config.frequency or ()),
    'tasks': list(config.tasks),
    'templates': config.templates,
    'limit': config.eval_limit,
    'readings': list(readings),
  }
  found = json.loads(kept.read_text()) if kept.exists() else {}
  if found.get('judged') == judged:  # other tasks or test images ask for a new judgement
    return found['scores']
  encoder = load_run(run)
  out = {}
  for reading in readings:
    judge = functools.partial(evaluate, encoder, inference=reading)
    probe_data, gap_data = eval_data(config, specs)
    scores = judge(probe_data, [t for t in config.tasks if t != 'gap'])
    if 'gap' in config.tasks:
      scores |= judge(gap_data, ['gap'])
    for name, spec in config.data.held_out.items():
      data = EvalData(open_source(spec), limit=config.eval_limit)
      more = judge(data, [t for t in config.tasks if t == 'retrieval'])
      scores |= {f'{name}.{key}': value for key, value in more.items()}
    out[reading] = scores
  write_file(kept, json.dumps({'judged': judged, 'scores': out}, indent=1))
  return out


def score_captioner(
  config: StudyConfig,
  specs: Specs,
  readings: tuple[Inference, ...],
  run: Path,
  judge: Path,
  kept: Path,
) -> Scores:
  """Has a captioner describe held-out real images under each reading, or reads what was kept.

  Args:
    config, specs, readings: see `score_run`; the track of a reading is all that matters here.
    run: the run folder of the captioner.
    judge: that of the encoder of CLIPScore.
    kept: JSON file of the scores, and of what was said of the test images by the first reading.

  Returns: see `score_run`.
  """
  sources = {'': specs.test, **config.data.held_out}
  judged = {
    'sources': list(sources.items()),
    'limit': config.eval_limit,
    'readings': list(readings),
    'judge': str(judge),
  }
  judged = json.loads(json.dumps(judged))  # as it comes back
  found = json.loads(kept.read_text()) if kept.exists() else {}
  if found.get('judged') == judged:
    return found['scores']
  writer, encoder = load_answerer(run), load_run(judge)
  out: dict[Inference, dict[str, float]] = {reading: {} for reading in readings}
  said: dict[str, str] = {}
  for reading in readings:
    for name, spec in sources.items():
      source = limited(open_source(spec), config.eval_limit)
      captioned = caption_all(writer, source, modality=READINGS[reading][0] or 'real')
      scores = score_captions(captioned, source, encoder)
      out[reading] |= {f'{name}.{k}' if name else k: value for k, value in scores.items()}
      said = said or {each.record_id: each.said for each in captioned}
  write_file(kept, json.dumps({'judged': judged, 'scores': out, 'said': said}, indent=1))
  return out


def eval_data(config: StudyConfig, specs: Specs) -> tuple[EvalData, EvalData]:
  """What the tasks read: generated images to train probes on; those of held-out captions."""
  test = open_source(specs.test)
  data = EvalData(test, limit=config.eval_limit, templates=config.templates)
  if config.frequency is not None:
    counts = label_counts(open_source(specs.real))
    # the classes of the real data: extra categories of generated images are cut off again
    data = dataclasses.replace(
      data, frequency=Frequency(counts, *config.frequency), class_names=tuple(sorted(counts))
    )
  if config.sampling is None:
    return data, data
  return (
    dataclasses.replace(data, generated=open_source(specs.generated)),
    dataclasses.replace(data, generated=open_source(specs.gap), partners=test),
  )
