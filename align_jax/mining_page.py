"""What mining found, as a page of pictures: clusters, and what was left out of them and why."""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from align_jax.data.images import ImageError, decode_image
from align_jax.data.pair_record import Content, PairRecord, PairSource
from align_jax.errors import UserError
from align_jax.evaluation import sections
from align_jax.evaluation.pictures import Mark, Picture, Row, shorten, thumbnail
from align_jax.evaluation.report import Curve, Curves, Facts, Pictures, Report, Section, render
from align_jax.mining.explain import REASONS, Explained, Seen, explain
from align_jax.mining.hardness import BINS, false_negative_rate
from align_jax.mining.report import TOLD
from align_jax.mining.strategy import Found, Mined
from align_jax.mining_run import EmbeddedPairs

_WIDE = 10  # pictures of a line
_WORDS = 64  # characters of a text in a frame
# reasons that say that a candidate may be a match
_SUSPECTED = ('margin', 'percentage', 'label', 'skipped', 'similar_query', 'hidden')


@dataclasses.dataclass(frozen=True)
class PageConfig:
  """What the page is to show.

  Attributes:
    title: above it.
    command: the words of the command line.
    shown: so many clusters, drawn by lot.
    seed: of the lot.
  """

  title: str
  command: Sequence[str] = ()
  shown: int = 8
  seed: int = 0


def mining_page(
  mined: Mined,
  found: Sequence[Found],
  embedded: EmbeddedPairs,
  source: PairSource,
  config: PageConfig,
  seconds: Mapping[str, float] | None = None,
) -> str:
  """Returns the page.

  Args:
    mined, found: what `mine` returned, and what it gave to its `found`.
    embedded: the pairs.
    source: they are read from again, to be shown.
    config: what is shown.
    seconds: what was done to how long it took.

  Raises:
    UserError: what was found is of another mining.
  """
  count = len(mined.clusters)
  rng = np.random.default_rng(config.seed)
  chosen = np.sort(rng.permutation(count)[: config.shown])
  shown = explain(mined, found, chosen)
  rate = false_negative_rate(mined.clusters, embedded.labels)
  hardness = mined.hardness
  verdict = (
    f'{mined.strategy}: {count:,} clusters of {mined.clusters.shape[1]} pairs. '
    f'Negatives are at a cosine of {hardness.negative.mean:.2f} with the query, positives at '
    f'{hardness.positive.mean:.2f}.'
  )
  if not math.isnan(rate):
    verdict += f' {rate:.2%} of the negatives are false: they truly match, by their labels.'
  parts: list[Section] = [
    _hardness(mined),
    _left_out(mined, embedded.skipped),
    *(_cluster(one, mined, embedded, source) for one in shown),
    sections.run_details(
      config.command, dict(mined.settings), {source.spec: source.licence}, dict(seconds or {})
    ),
  ]
  lead = (
    f'{source.spec}. {mined.counts["pairs"]:,} pairs, of which {hardness.members:,} are in a '
    f'cluster. {len(shown)} clusters are shown, drawn by lot; each as its first pair sees it.'
  )
  if not math.isnan(rate):
    lead += ' Wrong: a negative that truly matches. Right: a match that was rightly left out.'
  return render(Report(config.title, verdict, tuple(parts), lead))


def _hardness(mined: Mined) -> Section:
  hardness = mined.hardness
  total = max(1, sum(hardness.histogram))
  full = [i for i, many in enumerate(hardness.histogram) if many] or [0]
  points = [
    (-1 + (2 * i + 1) / BINS, hardness.histogram[i] / total)
    for i in range(max(0, full[0] - 1), min(BINS, full[-1] + 2))
  ]
  return Curves(
    'Hardness',
    (
      Curve(
        {'negatives': points},
        'Cosine of queries with the candidates of the others of their clusters.',
        x_label='cosine',
        y_label='share of negatives',
        percent=True,
      ),
    ),
    f'{hardness.above:.2%} of the negatives are at least as near as the positive.',
  )


def _left_out(mined: Mined, skipped: Mapping[str, int]) -> Section:
  rows = [(f'left out by the source: {why}', f'{many:,}') for why, many in skipped.items()]
  rows += [
    (words, f'{mined.counts[name]:,}') for name, words in TOLD.items() if mined.counts.get(name)
  ]
  if mined.recall is not None:
    rows.append(('recall of the approximate search', f'{mined.recall:.4f}'))
  return Facts('What was done, and left out', tuple(rows))


def _cluster(one: Explained, mined: Mined, embedded: EmbeddedPairs, source: PairSource) -> Section:
  first = source[one.pair]
  label = embedded.labels[one.pair]

  def alike(seen: Seen) -> bool:
    return bool(label >= 0 and embedded.labels[seen.pair] == label)

  members = []
  for seen in one.members[: _WIDE - 2]:
    words = _cosine(seen) if seen.reason == 'kept' else f'{_cosine(seen)} {REASONS[seen.reason]}'
    false = alike(seen)
    mark: Mark = 'wrong' if false else ''
    members.append(_tile(source, seen.pair, f'{words}: truly a match' if false else words, mark))
  left = []
  for seen in _choose(one.left_out, one.pair, embedded.pairs.candidate):
    right: Mark = 'right' if alike(seen) and seen.reason in _SUSPECTED else ''
    left.append(_tile(source, seen.pair, f'{_cosine(seen)} {REASONS[seen.reason]}', right))
  q, c = embedded.pairs.query[one.pair], embedded.pairs.candidate[one.pair]
  own = float(embedded.pairs.queries[q] @ embedded.pairs.candidates[c])
  rows = [
    Row(
      'Query, its match, negatives' + _more(one.members, _WIDE - 2),
      (
        _picture(first.query, 'query', 'query'),
        _picture(first.positive, f'{own:.2f}', 'partner'),
        *members,
      ),
    )
  ]
  if left:
    rows.append(Row(f'Near, and left out: {_counts(one.left_out)}', tuple(left)))
  task = (
    f', {embedded.task_names[embedded.tasks[one.pair]]}' if len(embedded.task_names) > 1 else ''
  )
  return Pictures(f'Cluster {one.cluster + 1}{task}', tuple(rows), _note(first))


def _note(first: PairRecord) -> str:
  parts = [first.instruction, f'“{shorten(first.query.text)}”' if first.query.text else '']
  if first.label:
    parts.append(f'Label: {shorten(first.label)}.')
  return ' '.join(part for part in parts if part)


def _choose(left_out: Sequence[Seen], pair: int, candidate: Int[np.ndarray, 'n']) -> list[Seen]:
  """The nearest of each reason, then the nearest of all, in their order.

  Left out are the pair's own candidate, which is shown anyway, candidates that are there already,
  and those that nobody needed.
  """
  near: dict[tuple[int, str], Seen] = {}
  for seen in left_out:
    if seen.reason != 'further' and candidate[seen.pair] != candidate[pair]:
      near.setdefault((int(candidate[seen.pair]), seen.reason), seen)
  some = [*near.values()]
  firsts = {seen.reason: place for place, seen in reversed([*enumerate(some)])}
  order = sorted(range(len(some)), key=lambda place: (place not in firsts.values(), place))
  return [some[place] for place in sorted(order[:_WIDE])]


def _counts(left_out: Sequence[Seen]) -> str:
  many = collections.Counter(seen.reason for seen in left_out)
  return '; '.join(f'{words} ({many[name]:,})' for name, words in REASONS.items() if many[name])


def _more(members: Sequence[Seen], shown: int) -> str:
  return f' (the first {shown} of {len(members)})' if len(members) > shown else ''


def _cosine(seen: Seen) -> str:
  return '' if math.isnan(seen.product) else f'{seen.product:.2f}'


def _tile(source: PairSource, number: int, words: str, mark: Mark) -> Picture:
  """The candidate of a pair."""
  try:
    content = source[number].positive
  except UserError:
    return Picture(b'', words, mark, 'cannot be read')
  return _picture(content, words, mark)


def _picture(content: Content, words: str, mark: Mark) -> Picture:
  text = shorten(content.text, _WORDS)
  if not content.images:
    return Picture(b'', words, mark, text)
  if text and mark != 'query':  # the query's stands above
    words = f'{words} “{text}”'
  try:
    return Picture(thumbnail(decode_image(content.images[0])), words, mark)
  except ImageError:
    return Picture(b'', words, mark, 'cannot be decoded')
