"""Evaluates a run on held-out real images.

  python -m align_jax.evaluate --checkpoint=runs/clip --data='emoji:scenes?split=test' \\
    --tasks=retrieval,zero_shot --output=scores.json [--report=report.html]
"""

import dataclasses
import json
import sys
import time
from typing import cast

from absl import flags

from align_jax import cli
from align_jax.data.quarantine import Quarantine
from align_jax.data.sources import open_as
from align_jax.encoder import load_run
from align_jax.evaluation import sections
from align_jax.evaluation.report import Curve, Curves, Report, Section, metric_table, write_report
from align_jax.evaluation.speed import speed_section
from align_jax.evaluation.tasks import NAMES, READINGS, Embedded, EvalData, Inference, measure
from align_jax.files import write_file
from align_jax.storage import AnyPath, open_path
from align_jax.train.metrics import read_metrics
from align_jax.train.run_config import read_run_config
from align_jax.train.timing import read_starts

_CHECKPOINT = flags.DEFINE_string('checkpoint', None, 'Run folder of training.', required=True)
_DATA = flags.DEFINE_string('data', None, 'Source spec of held-out real images.', required=True)
_GENERATED = flags.DEFINE_string('generated', '', 'Source spec of generated images (probe, gap).')
_PARTNERS = flags.DEFINE_string('partners', '', 'Where their real partners are; empty: --data.')
_TASKS = flags.DEFINE_list('tasks', list(NAMES), f'Any of {",".join(NAMES)}.')
_OUTPUT = flags.DEFINE_string('output', None, 'JSON file for the numbers.', required=True)
_REPORT = flags.DEFINE_string('report', '', 'HTML page to write as well.')
_INFERENCE = flags.DEFINE_enum(
  'inference', 'clip_flow', list(READINGS), 'How real images are read.'
)
_TEMPLATES = flags.DEFINE_string('templates', 'photo', 'Prompt templates of zero-shot.')
_LIMIT = flags.DEFINE_integer('limit', None, 'At most so many records of each source.')
_STEP = flags.DEFINE_integer('step', None, 'Which checkpoint; default: the newest.')


def main() -> None:
  """Loads the run, measures, writes the numbers and the page."""
  began = time.monotonic()
  run, output = open_path(_CHECKPOINT.value), open_path(_OUTPUT.value)
  data = EvalData(
    test=open_as('real', _DATA.value),
    generated=open_as('generated', _GENERATED.value) if _GENERATED.value else None,
    partners=open_as('real', _PARTNERS.value) if _PARTNERS.value else None,
    limit=_LIMIT.value,
    templates=_TEMPLATES.value,
  )
  quarantine = Quarantine(
    None, max_share=1.0, min_seen=1
  )  # counts, and leaves the judging to people
  encoder = load_run(run, step=_STEP.value)
  embedded = Embedded(encoder, data, cast(Inference, _INFERENCE.value), quarantine)
  scores = measure(embedded, _TASKS.value)
  content = {
    'scores': scores,
    'skipped': quarantine.counts,
    'command': sys.orig_argv,
    'versions': sections.versions(),
  }
  write_file(output, json.dumps(content, indent=1) + '\n')
  for name, value in scores.items():
    print(f'{name:32s} {value:.4f}')
  if quarantine.counts:
    print(f'skipped: {quarantine.describe()}')
  if _REPORT.value:
    timings = {'evaluation': time.monotonic() - began}
    write_report(_REPORT.value, _report(run, embedded, scores, timings))
    print(f'report: {_REPORT.value}')


def _report(run: AnyPath, embedded: Embedded, scores: dict[str, float], timings) -> Report:
  config = read_run_config(run)
  lines = read_metrics(run)
  loss = [(m['step'], m['loss']) for m in lines if m.get('loss') is not None]
  parts: list[Section] = [
    metric_table('Scores', {run.name: scores}, keys=list(scores)),
    Curves('Training', (Curve({run.name: loss}, 'Training loss.', y_label='nats'),)),
    speed_section(lines, read_starts(run)),
  ]
  test = embedded.data.test
  if embedded.test.texts:
    parts += sections.retrieval_sections(embedded.test, test)
  if 'gap' in _TASKS.value and embedded.data.generated is not None:
    partners = embedded.data.partners or test
    pairs = {run.name: embedded.pairs}
    parts += [
      sections.sample_section(embedded.data.generated, partners, embedded.pairs),
      sections.umap_section(pairs),
      sections.cosine_section(pairs),
      sections.neighbour_section(pairs, partners, embedded.data.generated),
    ]
  licences = {s.spec: s.licence for s in (test, embedded.data.generated) if s is not None}
  parts.append(sections.run_details(sys.orig_argv, dataclasses.asdict(config), licences, timings))
  shown = ', '.join(f'{k} {v:.3f}' for k, v in list(scores.items())[:3])
  return Report(
    f'Evaluation of {run.name}', shown, tuple(parts), f'{len(embedded.test.ids):,} real images.'
  )


if __name__ == '__main__':
  cli.run(main)
