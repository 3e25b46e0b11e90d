"""Stage 2: what the generators are asked for, from several strategies, no two too much alike."""

import collections
import concurrent.futures
import dataclasses
import hashlib
import itertools
import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from align_jax.errors import UserError, did_you_mean, require
from align_jax.synth.categories import EmbedTexts
from align_jax.synth.prompts.diversity import distinct, pairwise_distance, unlike
from align_jax.synth.prompts.llm import Asker, LlmConfig
from align_jax.synth.prompts.words import (
  DIVERGEN,
  GrammarConfig,
  Written,
  check_fields,
  from_grammar,
  from_templates,
)
from align_jax.synth.rows import Category, PromptRow

STRATEGIES = ('template', 'grammar', 'llm')
_SPARE = 2  # candidates for each prompt wanted, where a strategy has them: some are too much alike


@dataclasses.dataclass(frozen=True)
class PromptConfig:
  """What the generators are asked for.

  Attributes:
    per_category: prompts of each category. DiverGen compares 1, 32 and 128.
    strategies: `template`, `grammar`, `llm` → share of the prompts. What a strategy cannot give,
      those named after it give; then those before.
    templates: of `template`, see `words.fill` for what becomes of a missing definition.
    grammar: of `grammar`.
    llm: of `llm`.
    alike: of two prompts of a category whose texts have a cosine above it, the later one is left
      out; 1: only equal ones.
  """

  per_category: int = 32
  strategies: Mapping[str, float] = dataclasses.field(default_factory=lambda: {'grammar': 1.0})
  templates: tuple[str, ...] = (DIVERGEN,)
  grammar: GrammarConfig = dataclasses.field(default_factory=GrammarConfig)
  llm: LlmConfig = dataclasses.field(default_factory=LlmConfig)
  alike: float = 1.0

  def __post_init__(self) -> None:
    where = 'config.prompts'
    require(self.per_category >= 1, f'{where}.per_category', f'{self.per_category}: at least 1')
    require(bool(self.strategies), f'{where}.strategies', 'none; name at least one')
    for name, share in self.strategies.items():
      known = did_you_mean(name, STRATEGIES)
      require(name in STRATEGIES, f'{where}.strategies', f'unknown {name!r}{known}')
      require(
        math.isfinite(share) and share > 0, f'{where}.strategies.{name}', f'{share} is not above 0'
      )
    for template in self.templates:
      check_fields(template, {'name', 'definition'}, f'{where}.templates')
    require(bool(self.templates) or 'template' not in self.strategies, f'{where}.templates', 'none')
    require(0 < self.alike <= 1, f'{where}.alike', f'{self.alike} is outside 0 to 1')


@dataclasses.dataclass(frozen=True)
class Diversity:
  """How different the prompts of a strategy are.

  Attributes:
    prompts: how many.
    distance: mean cosine distance of two prompts of a category, over the categories; NaN without
      an embedder, or with one prompt each.
    distinct1, distinct2: different words, and pairs of words, as a share of all of a category, over
      the categories; NaN with one prompt each.
  """

  prompts: int
  distance: float
  distinct1: float
  distinct2: float


def make_prompts(
  config: PromptConfig,
  categories: Sequence[Category],
  embed: EmbedTexts | None,
  *,
  seed: int,
  cache: Path,
  asker: Asker | None = None,
) -> tuple[list[PromptRow], list[str]]:
  """Writes the prompts of all categories.

  Args:
    config: how.
    categories: of what.
    embed: embeds texts to unit vectors; None only where `alike` is 1.
    seed: of all that is drawn by lot.
    cache: folder of the language model's answers.
    asker: in place of the language model that the config names.

  Returns: the rows, category by category, and what should be known of them.

  Raises:
    UserError: a language model that cannot be asked; no embedder where one is needed.
  """
  if config.alike < 1 and embed is None:
    raise UserError('config.prompts.alike: needs an embedder of texts; set config.embedder')
  if 'llm' in config.strategies and asker is None:
    asker = Asker(config.llm, cache)
  lock = threading.Lock()

  def embed_alone(texts: Sequence[str]) -> np.ndarray:
    """Embeds in one thread at a time: what waits for a server is many, the device is one."""
    assert embed is not None
    with lock:
      return embed(texts)

  def write(category: Category) -> tuple[list[PromptRow], collections.Counter[str]]:
    return _of_category(config, category, embed and embed_alone, seed, asker)

  workers = asker.parallel if asker is not None else 1
  if workers > 1:
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
      parts = list(pool.map(write, categories))
  else:
    parts = [write(category) for category in categories]
  rows = list(itertools.chain.from_iterable(own for own, _ in parts))
  counts = sum((own for _, own in parts), collections.Counter[str]())
  notes = [f'{count} × {note}' for note, count in sorted(counts.items())]
  if asker is not None:
    notes.append(f'language model: {asker.tokens:,} tokens, cost {asker.cost:.4g}')
  return rows, notes


def _of_category(
  config: PromptConfig,
  category: Category,
  embed: EmbedTexts | None,
  seed: int,
  asker: Asker | None,
) -> tuple[list[PromptRow], collections.Counter[str]]:
  """Returns the prompts of one category, and what is to be noted, counted."""
  counts: collections.Counter[str] = collections.Counter()
  wanted = quotas(config.strategies, config.per_category)
  rows: list[tuple[str, Written]] = []
  vectors: list[np.ndarray] = []
  alike: set[str] = set()  # texts that were left out
  missing = 0
  # what the later strategies could not give, the earlier ones are asked for in a second round; a
  # language model has had its rounds
  turns = [*wanted.items(), *((name, 0) for name in wanted if name != 'llm')]
  for strategy, share in turns:
    target = missing + share
    if target:
      found = _candidates(config, strategy, category, seed, target, asker, counts)
      named = [(strategy, written) for written in found]
      missing = target - _add(config, embed, rows, vectors, alike, named, target)
  if alike:
    counts['prompt left out: too much like another'] += len(alike)
  if missing:
    counts['prompt missing: the strategies have no more'] += missing
  if not rows:
    raise UserError(f'category {category.name!r}: no prompt at all; add a strategy with templates')
  return [_row(category, strategy, written) for strategy, written in mix(rows)], counts


def mix(rows: Sequence[tuple[str, Written]]) -> list[tuple[str, Written]]:
  """Spreads each strategy's prompts evenly over all, those of one in their order.

  A category with fewer images than prompts takes the first ones: of every strategy its share.
  """
  totals = collections.Counter(strategy for strategy, _ in rows)
  given: collections.Counter[str] = collections.Counter()
  places = []
  for strategy, _ in rows:
    places.append((given[strategy] + 0.5) / totals[strategy])
    given[strategy] += 1
  return [rows[i] for i in sorted(range(len(rows)), key=places.__getitem__)]


def quotas(shares: Mapping[str, float], total: int) -> dict[str, int]:
  """Cuts a number by shares, in whole numbers that sum to it (largest remainders)."""
  exact = {name: total * share / sum(shares.values()) for name, share in shares.items()}
  out = {name: int(value) for name, value in exact.items()}
  rest = sorted(exact, key=lambda name: out[name] - exact[name])[: total - sum(out.values())]
  return {name: count + (name in rest) for name, count in out.items()}


def _candidates(
  config: PromptConfig,
  strategy: str,
  category: Category,
  seed: int,
  target: int,
  asker: Asker | None,
  counts: collections.Counter[str],
) -> list[Written]:
  """The prompts that a strategy offers: some more than are wanted, where it has them."""
  if strategy == 'template':
    return list(from_templates(config.templates, category))
  if strategy == 'grammar':
    words: Iterable[Written] = from_grammar(config.grammar, category, seed)
    return list(itertools.islice(words, _SPARE * config.per_category + target))
  assert asker is not None
  texts, notes = asker.prompts(category, target, seed)
  counts.update(f'language model: {note}' for note in notes)
  return [Written(text) for text in texts]


def _add(
  config: PromptConfig,
  embed: EmbedTexts | None,
  rows: list[tuple[str, Written]],
  vectors: list[np.ndarray],
  alike: set[str],
  found: Sequence[tuple[str, Written]],
  target: int,
) -> int:
  """Adds up to `target` prompts that are not too much like those there; returns how many."""
  seen = alike | {written.text.lower() for _, written in rows}
  fresh = {w.text.lower(): (s, w) for s, w in reversed(found) if w.text.lower() not in seen}
  left = list(reversed(fresh.values()))
  if config.alike == 1 or embed is None or not left:
    rows += left[:target]
    return len(left[:target])
  new = np.asarray(embed([written.text for _, written in left]), np.float32)
  if not np.isfinite(new).all():
    raise UserError('config.embedder: gives texts numbers that are not finite; use another')
  both = np.concatenate([np.stack(vectors), new]) if vectors else new
  kept = unlike(both, config.alike, len(vectors) + target)
  # those that were there stay, whatever the order of comparing says of them
  kept = kept[kept >= len(vectors)] - len(vectors)
  tried = int(kept[-1]) + 1 if len(kept) == target else len(left)
  alike |= {left[i][1].text.lower() for i in set(range(tried)) - set(kept.tolist())}
  rows += [left[i] for i in kept]
  vectors += [new[i] for i in kept]
  return len(kept)


def _row(category: Category, strategy: str, written: Written) -> PromptRow:
  text = f'{category.name}\0{written.text}'
  digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
  return PromptRow(digest, category.name, written.text, strategy, dict(written.attributes))


def measure_diversity(rows: Sequence[PromptRow], embed: EmbedTexts | None) -> dict[str, Diversity]:
  """Says how different the prompts of each strategy are.

  Distinct-n falls with the number of prompts. So of a category each strategy has the same number
  looked at, its first ones: as many as the strategy with the fewest has, of those with two or more.
  """
  own: dict[str, dict[str, list[str]]] = collections.defaultdict(dict)
  for row in rows:
    own[row.strategy].setdefault(row.category, []).append(row.text)
  fewest: dict[str, int] = {}
  for texts in own.values():
    for category, some in texts.items():
      if len(some) > 1:
        fewest[category] = min(len(some), fewest.get(category, len(some)))
  out = {}
  for strategy, texts in own.items():
    several = {category: some for category, some in texts.items() if len(some) > 1}
    distances = []
    if embed is not None and several:
      vectors = iter(embed([text for some in several.values() for text in some]))
      each = (list(itertools.islice(vectors, len(some))) for some in several.values())
      distances = [pairwise_distance(np.stack(some)) for some in each]
    equal = [some[: fewest[category]] for category, some in several.items()]
    out[strategy] = Diversity(
      prompts=sum(map(len, texts.values())),
      distance=_mean(distances),
      distinct1=_mean([distinct(some, 1) for some in equal]),
      distinct2=_mean([distinct(some, 2) for some in equal]),
    )
  return out


def _mean(values: Sequence[float]) -> float:
  """The mean of those that are numbers; NaN of none."""
  known = [value for value in values if not math.isnan(value)]
  return float(np.mean(known)) if known else math.nan


def diversity_values(found: Mapping[str, Diversity]) -> dict[str, dict[str, float | None]]:
  """The figures by the names that the report knows; what is not known is None."""
  return {
    strategy: {
      name: None if math.isnan(value) else value
      for name, value in (
        ('mean_pairwise_distance', values.distance),
        ('distinct_1', values.distinct1),
        ('distinct_2', values.distinct2),
      )
    }
    for strategy, values in found.items()
  }
