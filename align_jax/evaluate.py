"""Evaluates a run on held-out real images, on answers, or as an embedder on benchmarks of pairs.

  python -m align_jax.evaluate --checkpoint=runs/clip --data='emoji:scenes?split=test' \\
    --tasks=retrieval,zero_shot --output=scores.json [--report=report.html]
  python -m align_jax.evaluate --checkpoint=runs/saha --data=mmeb:MMEB-eval --output=mmeb.json

With pairs (`mmeb:`, `sugarcrepe:`, `emojitasks:`) any run that embeds is measured as an embedder.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Mapping
from pathlib import PurePath
from typing import cast

import jax
from absl import flags

from align_jax import cli
from align_jax.answerer import load_answerer
from align_jax.data.embed_prompt import Level
from align_jax.data.quarantine import Quarantine
from align_jax.data.sources import open_as
from align_jax.encoder import load_run
from align_jax.errors import UserError
from align_jax.evaluation import captions, sections
from align_jax.evaluation.pair_scores import PairBenchmark, is_pair_spec
from align_jax.evaluation.report import Curve, Curves, Report, Section, metric_table, write_report
from align_jax.evaluation.speed import speed_section
from align_jax.evaluation.tasks import NAMES, READINGS, Embedded, EvalData, Inference, measure
from align_jax.files import write_file
from align_jax.open_embedder import open_embedder
from align_jax.parallel.mesh import MeshConfig, make_mesh
from align_jax.storage import AnyPath, open_path
from align_jax.tower_embedder import LEVELS
from align_jax.train.metrics import read_metrics
from align_jax.train.run_config import read_run_config
from align_jax.train.timing import read_starts

_CHECKPOINT = flags.DEFINE_string(
  'checkpoint',
  None,
  'Run folder of training; for pairs also hf: and the folder of a model.',
  required=True,
)
_DATA = flags.DEFINE_string(
  'data', None, 'Source spec of held-out real images, or of pairs.', required=True
)
_LEVEL = flags.DEFINE_enum(
  'level', None, LEVELS, 'Prompt of a multimodal model for pairs; default: as it was trained.'
)
_GENERATED = flags.DEFINE_string('generated', '', 'Source spec of generated images (probe, gap).')
_PARTNERS = flags.DEFINE_string('partners', '', 'Where their real partners are; empty: --data.')
_TASKS = flags.DEFINE_list(
  'tasks',
  None,
  f'Any of {",".join(NAMES)}, all by default; of a model that answers any of '
  f'{",".join(captions.NAMES)}, by default answers.',
)
_JUDGE = flags.DEFINE_string(
  'judge', '', 'Run folder of an image-text model: captions are given a CLIPScore by it.'
)
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
  output = open_path(_OUTPUT.value)
  if is_pair_spec(_DATA.value):
    _main_pairs(_CHECKPOINT.value, output, began)
    return
  if _CHECKPOINT.value.startswith('hf:'):
    raise UserError(
      f'--checkpoint={_CHECKPOINT.value}: is evaluated on pairs; for records name a run, such as '
      'one that starts from it (config.model.init)'
    )
  run = open_path(_CHECKPOINT.value)
  if _LEVEL.value is not None:
    raise UserError('--level: is of the prompts for pairs, and --data names none; leave it out')
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
  embedded = None
  if read_run_config(run).answers:
    captions.check_tasks(_TASKS.value, '--tasks')
    scores = captions.evaluate_writer(
      load_answerer(run, step=_STEP.value),
      data.test,
      _TASKS.value or ('answers',),
      judge=load_run(open_path(_JUDGE.value)) if _JUDGE.value else None,
      limit=data.limit,
      quarantine=quarantine,
    )
  else:
    encoder = load_run(run, step=_STEP.value)
    embedded = Embedded(encoder, data, cast(Inference, _INFERENCE.value), quarantine)
    scores = measure(embedded, _tasks())
  _write(output, scores, quarantine.counts)
  for name, value in scores.items():
    print(f'{name:32s} {value:.4f}')
  if quarantine.counts:
    print(f'skipped: {quarantine.describe()}')
  if _REPORT.value:
    timings = {'evaluation': time.monotonic() - began}
    write_report(_REPORT.value, _report(run, data, embedded, scores, timings))
    print(f'report: {_REPORT.value}')


def _main_pairs(run: str, output: AnyPath, began: float) -> None:
  """The same for pairs."""
  for flag in (_TASKS, _GENERATED, _PARTNERS, _LIMIT, _JUDGE):
    if flag.value:
      raise UserError(f'--{flag.name}: is not for pairs, which {_DATA.value} names; leave it out')
  benchmark = PairBenchmark(_DATA.value)
  mesh = make_mesh(MeshConfig()) if len(jax.devices()) > 1 else None
  embed = open_embedder(run, cast(Level, _LEVEL.value or ''), step=_STEP.value, mesh=mesh)
  scores = benchmark.scores(embed)
  _write(output, scores, benchmark.skipped)
  print(benchmark.table(scores))
  lead = benchmark.spec
  if benchmark.skipped:
    skipped = ', '.join(f'{count} {reason}' for reason, count in benchmark.skipped.items())
    print(f'skipped: {skipped}')
    lead += f'. Skipped: {skipped}.'
  if _REPORT.value:
    timings = {'evaluation': time.monotonic() - began}
    name, imported = PurePath(run.removeprefix('hf:')).name, run.startswith('hf:')
    config = {} if imported else dataclasses.asdict(read_run_config(open_path(run)))
    parts: list[Section] = [
      metric_table('Scores', {name: scores}, keys=list(scores)),
      sections.run_details(sys.orig_argv, config, benchmark.licences, timings),
    ]
    shown = f'average {scores["average"]:.3f}' if 'average' in scores else benchmark.spec
    write_report(_REPORT.value, Report(f'{name} as an embedder', shown, tuple(parts), lead))
    print(f'report: {_REPORT.value}')


def _write(output: AnyPath, scores: Mapping[str, float], skipped: Mapping[str, int]) -> None:
  content = {
    'scores': scores,
    'skipped': skipped,
    'command': sys.orig_argv,
    'versions': sections.versions(),
  }
  write_file(output, json.dumps(content, indent=1) + '\n')


def _tasks() -> list[str]:
  return list(NAMES) if _TASKS.value is None else _TASKS.value


def _report(
  run: AnyPath, data: EvalData, embedded: Embedded | None, scores: dict[str, float], timings
) -> Report:
  config = read_run_config(run)
  lines = read_metrics(run)
  loss = [(m['step'], m['loss']) for m in lines if m.get('loss') is not None]
  parts: list[Section] = [
    metric_table('Scores', {run.name: scores}, keys=list(scores)),
    Curves('Training', (Curve({run.name: loss}, 'Training loss.', y_label='nats'),)),
    speed_section(lines, read_starts(run)),
  ]
  test = data.test
  if embedded is not None and embedded.test.texts:
    parts += sections.retrieval_sections(embedded.test, test)
  if embedded is not None and 'gap' in _tasks() and data.generated is not None:
    partners = data.partners or test
    pairs = {run.name: embedded.pairs}
    parts += [
      sections.sample_section(data.generated, partners, embedded.pairs),
      sections.umap_section(pairs),
      sections.cosine_section(pairs),
      sections.neighbour_section(pairs, partners, data.generated),
    ]
  licences = {s.spec: s.licence for s in (test, data.generated) if s is not None}
  parts.append(sections.run_details(sys.orig_argv, dataclasses.asdict(config), licences, timings))
  shown = ', '.join(f'{k} {v:.3f}' for k, v in list(scores.items())[:3])
  count = min(len(test), data.limit or len(test)) if embedded is None else len(embedded.test.ids)
  return Report(f'Evaluation of {run.name}', shown, tuple(parts), f'{count:,} real images.')


if __name__ == '__main__':
  cli.run(main)
