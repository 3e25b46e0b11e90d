"""Scores of a finished run on held-out real images, kept beside it."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path

from align_jax.data.sources import open_source
from align_jax.data.sources.base import label_counts
from align_jax.encoder import load_run
from align_jax.evaluation.tasks import EvalData, Inference, evaluate
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
