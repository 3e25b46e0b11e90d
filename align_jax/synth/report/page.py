"""The report of an engine run: one page that needs neither server nor network, and its numbers."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence

import numpy as np

from align_jax.evaluation import report
from align_jax.files import write_file
from align_jax.storage import AnyPath
from align_jax.synth.report.categories import count_categories, make_categories
from align_jax.synth.report.data import Number, Part, ReportConfig, ReportData, count, percent
from align_jax.synth.report.funnel import Outcome, make_funnel, outcomes, reason_counts
from align_jax.synth.report.maps import make_maps
from align_jax.synth.report.prompts import make_prompts
from align_jax.synth.report.samples import make_samples
from align_jax.synth.report.spread import make_spread
from align_jax.synth.report.thresholds import make_thresholds


def write_report(
  data: ReportData, path: AnyPath | str, config: ReportConfig = ReportConfig()
) -> dict[str, Number]:
  """Writes the page, and beside it the same numbers as `.json`; each whole or not at all.

  Args:
    data: of the run.
    path: of the page, `report.html`.
    config: how much it shows.

  Returns: the numbers: flat keys, None where there is none.

  Raises:
    UserError: the folder cannot be written to, or the disk is full.
  """
  page, numbers = build_report(data, config)
  text = json.dumps(numbers, indent=1, ensure_ascii=False, allow_nan=False) + '\n'
  write_file(f'{str(path).removesuffix(".html")}.json', text)
  report.write_report(path, page)
  return numbers


def build_report(
  data: ReportData, config: ReportConfig = ReportConfig()
) -> tuple[report.Report, dict[str, Number]]:
  """Returns the page and the numbers in it."""
  data, odd = _without_odd(data)
  found = outcomes(data)
  parts = [
    make_funnel(data, found),
    make_samples(data, found, config),
    make_thresholds(data),
    make_categories(count_categories(data, found)),
    make_prompts(data, config),
    make_maps(data, found, config),
    make_spread(data, found, config),
    Part(() if data.details is None else (data.details,)),
  ]
  page = report.Report(
    title=data.title,
    verdict=verdict(found),
    lead=_lead(data)
    + (f' {count(odd, "embedding")} not finite: left out of what follows.' if odd else ''),
    sections=tuple(section for part in parts for section in part.sections),
  )
  numbers: dict[str, Number] = {'embeddings.not_finite': odd}
  for part in parts:
    numbers |= part.numbers
  return page, _finite(numbers)


def verdict(found: Sequence[Outcome]) -> str:
  """Says in a sentence how many images are kept, and why most of the others are not."""
  if not found:
    return 'No image was asked for yet.'
  kept = sum(o.kind == 'kept' for o in found)
  waiting = sum(o.kind == 'undecided' for o in found)
  failed, dropped = reason_counts(found, 'failed'), reason_counts(found, 'dropped')
  words = [f'{kept:,} of {count(len(found), "image")} kept ({percent(kept, len(found))})']
  if dropped:
    name, most = max(dropped.items(), key=lambda item: item[1])
    total = sum(dropped.values())
    most_for = f'for {name}' if most == total else f'{most:,} of them for {name}'
    words.append(f'{total:,} dropped, {most_for}')
  if failed:
    words.append(f'{sum(failed.values()):,} failed')
  if waiting:
    words.append(f'{waiting:,} not decided yet')
  return '; '.join(words) + '.'


def _without_odd(data: ReportData) -> tuple[ReportData, int]:
  """Leaves out embeddings that are not finite, and says how many: the page is worth having."""
  fine = np.isfinite(data.embeddings).all(axis=1)
  fine_real = np.isfinite(data.real_embeddings).all(axis=1)
  odd = int((~fine).sum() + (~fine_real).sum())
  if not odd:
    return data, 0
  rows, real_rows = np.flatnonzero(fine).tolist(), np.flatnonzero(fine_real).tolist()
  return dataclasses.replace(
    data,
    embedded=[data.embedded[i] for i in rows],
    embeddings=data.embeddings[rows],
    real_ids=[data.real_ids[i] for i in real_rows],
    real_categories=[data.real_categories[i] for i in real_rows],
    real_embeddings=data.real_embeddings[real_rows],
  ), odd


def _lead(data: ReportData) -> str:
  generators = dict.fromkeys(image.generator_id for image in data.images)
  words = [
    count(len(data.categories), 'category', 'categories'),
    count(len(data.prompts), 'prompt'),
    count(len(generators), 'generator') + (f' ({", ".join(generators)})' if generators else ''),
  ]
  if data.encoder:
    words.append(f'embeddings by {data.encoder}')
  return ', '.join(words) + '.'


def _finite(numbers: Mapping[str, Number]) -> dict[str, Number]:
  return {
    key: None if isinstance(value, float) and not math.isfinite(value) else value
    for key, value in numbers.items()
  }
