"""The report of a study: one page from its runs."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from align_jax.data.sources import open_source
from align_jax.data.sources.base import pair_index
from align_jax.encoder import load_run
from align_jax.evaluation import sections
from align_jax.evaluation.pictures import Mark, Picture, Row, thumbnails
from align_jax.evaluation.report import (
  METRICS,
  Curve,
  Curves,
  Pictures,
  Report,
  Section,
  metric_table,
  write_report,
)
from align_jax.evaluation.tasks import Embedded, Pairs
from align_jax.study.config import StudyConfig
from align_jax.study.results import JUDGED, Values, by_arm, compare, listed, margin
from align_jax.study.runner import Run
from align_jax.study.score import eval_data
from align_jax.study.specs import Specs
from align_jax.train.metrics import read_metrics

_ALIGNED, _NAIVE = 'aligned', 'naive_mix'


def write_page(
  path: Path,
  config: StudyConfig,
  specs: Specs,
  runs: Sequence[Run],
  seconds: Mapping[str, float],
) -> None:
  """Writes the report of a finished study."""
  seeds = len(config.seeds)
  parts: list[Section] = [*_tables(config, runs)]
  parts += _curves(config, runs)
  shown = next((r for r in runs if r.arm == _ALIGNED), None)
  if config.sampling is not None and shown is not None:
    parts += _pictures(config, specs, shown)
  parts += _captions(config, specs, runs)
  parts.append(_details(config, specs, seconds))
  report = Report(
    title=config.title,
    verdict=verdict(runs, config),
    lead=f'{len(config.arms)} arms, {seeds} seed{"s" if seeds > 1 else ""}, '
    f'{_images(config):,} generated images, {sum(seconds.values()) / 60:.0f} minutes. '
    'Every number is measured on held-out real images.',
    sections=tuple(parts),
  )
  write_report(path, report)


def _images(config: StudyConfig) -> int:
  drawn = sum(made['images']['count'] for made in config.sets.values())
  return drawn + (config.sampling.count if config.sampling is not None else 0)


def verdict(runs: Sequence[Run], config: StudyConfig | None = None) -> str:
  """Says in words which arm beat which, and on how firm a ground."""
  values = by_arm(runs)
  wanted = ((_ALIGNED, _NAIVE),) if config is None else config.comparisons
  pairs = [(a, b) for a, b in wanted if {a, b} <= set(values)]
  if not pairs:
    return f'{len(values)} arms were measured; the tables below compare them.'
  if config is None or pairs == [(_ALIGNED, _NAIVE)]:
    return _verdict(runs, values, _ALIGNED, _NAIVE, ('aligning', 'mixing'))
  titles = {arm.name: arm.title for arm in config.arms}
  judged = [key for key in config.headline if METRICS[key].better == 'higher']
  # of several, a line each, and no word on what is even
  return '\n'.join(
    f'{titles[a]} against {titles[b]}: '
    + _verdict(runs, values, a, b, ('the first', 'the second'), judged, len(pairs) > 1)
    for a, b in pairs
  )


def _verdict(
  runs: Sequence[Run],
  values: Values,
  arm: str,
  other: str,
  called: tuple[str, str],
  keys: Sequence[str] = JUDGED,
  brief: bool = False,
) -> str:
  differences = compare(values, arm, other, keys)
  words: dict[str, list[str]] = {'better': [], 'worse': [], 'even': []}
  for key, mean, error in differences:
    firm = margin(error, len(values[arm][key]))
    kind = 'even' if abs(mean) <= firm else ('better' if mean > 0 else 'worse')
    words[kind].append(f'{METRICS[key].label} ({100 * mean:+.1f} points)')
  said = []
  if words['better']:
    said.append(f'{called[0]} beat {called[1]} on {listed(words["better"])}')
  if words['worse']:
    said.append(f'{called[1]} beat {called[0]} on {listed(words["worse"])}')
  if brief and not said:
    said.append('no clear difference')
  elif words['even'] and not brief:
    said.append(f'no clear difference on {listed(words["even"])}')
  text = '; '.join(said) + '.'
  one = len({run.seed for run in runs}) == 1
  return (
    text[0].upper()
    + text[1:]
    + (' One seed: differences of four points and less are taken for noise.' if one else '')
  )


def _tables(config: StudyConfig, runs: Sequence[Run]) -> list[Section]:
  names = {arm.name: arm.title for arm in config.arms}
  values = by_arm(runs)
  out: list[Section] = []
  groups = list(dict.fromkeys(arm.group for arm in config.arms))
  for group in groups:
    rows = {arm.name: values[arm.name] for arm in config.arms if arm.group == group}
    if group and _ALIGNED in values:
      rows = {_ALIGNED: values[_ALIGNED], **rows}  # what every ablation is compared with
    out.append(
      metric_table(
        group or 'Which use of generated images works on real ones',
        rows,
        keys=[k for k in config.headline if any(k in row for row in rows.values())],
        names=names,
      )
    )
    if not group:
      out += _more_tables(config, runs, rows, names)
  return out


def _more_tables(
  config: StudyConfig, runs: Sequence[Run], rows: Mapping, names: Mapping[str, str]
) -> list[Section]:
  out: list[Section] = []
  for held_out in config.data.held_out:
    shown = [f'retrieval.{way}.r{k}' for way in ('t2i', 'i2t') for k in (1, 5)]
    shown += [key for key in config.headline if key.startswith('captions.')]
    measured = {key for row in rows.values() for key in row}
    keys = {f'{held_out}.{key}': key for key in shown if f'{held_out}.{key}' in measured}
    renamed = {
      arm: {short: metrics[key] for key, short in keys.items() if key in metrics}
      for arm, metrics in rows.items()
    }
    out.append(
      metric_table(
        f'Held-out set: {held_out}',
        renamed,
        keys=list(keys.values()),
        names=names,
        note=config.data.held_out[held_out],
      )
    )
  both = {
    k: v
    for k, v in by_arm(runs, all_readings=True).items()
    if '(' in k and k.split(' (')[0] in rows
  }
  if both:
    titles = {k: f'{names[k.split(" (")[0]]} ({k.split(" (")[1]}' for k in both}
    out.append(
      metric_table(
        'Both readings of inference',
        both,
        names=titles,
        note='clip_flow reads real images with the frozen real track, aligned_encoder with the '
        'aligned encoder and the real projection (the paper says both).',
      )
    )
  return out


def _curves(config: StudyConfig, runs: Sequence[Run]) -> list[Section]:
  seed, arms = config.seeds[0], {arm.name: arm for arm in config.arms}
  losses, cosines, captions = {}, {}, {}
  for run in runs:
    arm = arms[run.arm]
    if run.seed != seed or arm.group:
      continue
    for index in range(1, len(arm.stages) + 1):
      lines = read_metrics(run.workdir.parent / f'stage{index}')
      if any('paired_cosine' in line for line in lines):
        cosines[arm.title] = _points(lines, 'paired_cosine')
      elif any('token_accuracy' in line for line in lines):
        captions[arm.title] = _points(lines, 'loss')
      else:
        losses[arm.title] = _points(lines, 'loss')
  return [
    Curves(
      'Training',
      (
        Curve(losses, 'Contrastive loss of each arm on its own batches.', y_label='nats'),
        Curve(cosines, 'Alignment: cosine of generated images and their real partners.'),
        Curve(captions, 'Loss of each captioner on its own batches.', y_label='nats a token'),
      ),
      f'Seed {seed}.',
    )
  ]


def _points(lines: Sequence[Mapping], key: str) -> list[tuple[float, float]]:
  return [(float(line['step']), line[key]) for line in lines if line.get(key) is not None]


def _pictures(config: StudyConfig, specs: Specs, run: Run) -> list[Section]:
  reading = next(iter(run.scores))
  _, data = eval_data(config, specs)
  before = Embedded(load_run(run.base), data)
  after = Embedded(load_run(run.towers), data, reading)
  pairs: dict[str, Pairs] = {'before': before.pairs, 'after': after.pairs}
  test, generated = open_source(specs.test), open_source(specs.gap)
  examples, failures = sections.retrieval_sections(after.test, test)
  return [
    sections.sample_section(generated, test, before.pairs),
    sections.umap_section(pairs),
    sections.cosine_section(pairs),
    sections.neighbour_section(pairs, test, generated),
    examples,
    failures,
  ]


def _captions(
  config: StudyConfig, specs: Specs, runs: Sequence[Run], *, count: int = 8
) -> list[Section]:
  """What the captioners of the first seed say of some test images."""
  titles = {arm.name: arm.title for arm in config.arms}
  said = {
    titles[run.arm]: json.loads(run.captions.read_text())['said']
    for run in runs
    if run.captions is not None and run.seed == config.seeds[0]
  }
  if not said:
    return []
  test = open_source(specs.test)
  where = pair_index(test)
  ids = list(next(iter(said.values())))
  chosen = [ids[i] for i in np.random.default_rng(0).permutation(len(ids))[:count]]
  png = thumbnails(test, chosen)
  rows = []
  for name in chosen:
    captions = test[where[name]].captions
    pictures = [
      Picture(png.get(name, b''), f'{title}: {words[name]}', _mark(words[name], captions))
      for title, words in said.items()
    ]
    rows.append(Row(captions[0], tuple(pictures)))
  note = f'Seed {config.seeds[0]}, drawn at random; framed as right is what was said word for word.'
  return [Pictures('What the captioners say', tuple(rows), note)]


def _mark(said: str, captions: Sequence[str]) -> Mark:
  return 'right' if said in captions else 'wrong'


def _details(config: StudyConfig, specs: Specs, seconds: Mapping[str, float]) -> Section:
  licences = {s: open_source(s).licence for s in (specs.real, specs.extra, specs.test)}
  return sections.run_details(sys.orig_argv, config, licences, seconds)
