"""Stage 1: the user's own categories, and extra ones that are unlike them.

Source: DiverGen, Zhao et al. 2024, arXiv 2405.10185, section 3.2: extra ImageNet classes, chosen by
low similarity to the base classes, widen the distribution; after training they are cut off again.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float

from align_jax.errors import UserError, require
from align_jax.synth.rows import Category
from align_jax.synth.wordlists import Word, read_words, same, unique

EmbedTexts: TypeAlias = Callable[[Sequence[str]], Float[np.ndarray, 'n dim']]


@dataclasses.dataclass(frozen=True)
class CategoryConfig:
  """Which categories are drawn.

  Attributes:
    names: the user's own; (): those of `base`.
    base: where the user's own come from, see `wordlists.read_words`; '' for `names`.
    extra: where extra ones come from; '' for none.
    extra_count: how many extra ones, at most.
    threshold: an extra category's largest cosine to a base category, at most (the paper: 0.4 of
      CLIP's text features; texts of one small tower lie closer together).
    template: what is embedded of a category, with one `{name}`.
    shortfall: if fewer than `extra_count` lie under the threshold: `note` says so and takes those,
      `error` stops.
  """

  names: tuple[str, ...] = ()
  base: str = ''
  extra: str = ''
  extra_count: int = 250
  threshold: float = 0.4
  template: str = 'a photo of a {name}'
  shortfall: Literal['note', 'error'] = 'note'

  def __post_init__(self) -> None:
    where = 'config.categories'
    require(bool(self.names) != bool(self.base), f'{where}.base', 'set either names or base')
    require(self.extra_count >= 0, f'{where}.extra_count', f'{self.extra_count} is below 0')
    require(-1 <= self.threshold <= 1, f'{where}.threshold', f'{self.threshold} is no cosine')
    require(
      self.template.count('{name}') == 1 and '{' not in self.template.replace('{name}', ''),
      f'{where}.template',
      f'{self.template!r} needs one {{name}} and no other braces',
    )
    for name in self.names:
      require(bool(name.strip()), f'{where}.names', 'holds an empty name; leave it out')
    twice = [n for n in self.names if [same(m) for m in self.names].count(same(n)) > 1]
    require(not twice, f'{where}.names', f'{twice[:1]} is there twice')


def make_categories(
  config: CategoryConfig, embed: EmbedTexts | None
) -> tuple[list[Category], list[str]]:
  """Returns the categories, the user's own first, and what should be known of how they came.

  Args:
    config: which.
    embed: embeds texts to unit vectors; None only without extra categories.

  Raises:
    UserError: a list that cannot be read, no base, no embedder for extra ones, or too few.
  """
  words = [Word(name) for name in config.names] if config.names else read_words(config.base)
  base = unique(words)
  notes = []
  if len(base) < len(words):
    notes.append(f'{len(words) - len(base)} names of {config.base} are there more than once')
  own = [Category(w.name, w.definition, real_images=w.count) for w in base]
  if not config.extra or not config.extra_count:
    return own, notes
  if embed is None:
    raise UserError('config.categories.extra: needs an embedder of texts; set config.embedder')
  taken = {same(w.name) for w in base}
  found = unique(read_words(config.extra))
  candidates = [w for w in found if same(w.name) not in taken]
  if len(candidates) < len(found):
    notes.append(f'{len(found) - len(candidates)} names of {config.extra} are base categories')
  similarity = nearest_base(config.template, base, candidates, embed)
  under = [i for i in np.argsort(similarity, kind='stable') if similarity[i] <= config.threshold]
  if len(under) < config.extra_count:
    text = (
      f'{len(under)} of {len(candidates)} extra categories have a similarity of at most '
      f'{config.threshold:g} to the base, {config.extra_count} are wanted'
    )
    if config.shortfall == 'error':
      near = np.sort(similarity)[: config.extra_count]
      raise UserError(
        f'config.categories.threshold: {text}'
        + (f'; {near[-1]:.2f} would give {len(near)}' if len(near) else '')
      )
    notes.append(text)
  kind = config.extra.partition(':')[0]
  extra = [
    Category(
      candidates[i].name, candidates[i].definition, True, round(float(similarity[i]), 4), kind
    )
    for i in under[: config.extra_count]
  ]
  return own + extra, notes


def nearest_base(
  template: str, base: Sequence[Word], candidates: Sequence[Word], embed: EmbedTexts
) -> Float[np.ndarray, 'candidates']:
  """Returns the largest cosine of each candidate's text to one of the base's."""
  if not candidates:
    return np.zeros(0, np.float32)
  texts = [template.replace('{name}', word.name) for word in (*base, *candidates)]
  vectors = np.asarray(embed(texts), np.float32)
  if not np.isfinite(vectors).all():
    raise UserError('config.embedder: gives texts numbers that are not finite; use another')
  return (vectors[len(base) :] @ vectors[: len(base)].T).max(axis=1)


def cut_extra(
  names: Sequence[str], categories: Sequence[Category], *arrays: np.ndarray
) -> tuple[list[str], tuple[np.ndarray, ...]]:
  """Cuts the extra categories off what was trained with them.

  Args:
    names: the classes of a head, in the order of its rows.
    categories: of the run that made the images.
    arrays: with one row for each name: class vectors `[classes, dim]`, biases `[classes]`, or the
      transposed logits of a batch `[classes, batch]`.

  Returns: the names that are left and the arrays with their rows alone, in the same order.

  Raises:
    UserError: an array with another number of rows, or nothing left.
  """
  extra = {category.name for category in categories if category.extra}
  rows = [i for i, name in enumerate(names) if name not in extra]
  require(bool(rows), 'cut_extra', 'every class is an extra one; nothing would be left')
  for array in arrays:
    require(
      len(array) == len(names), 'cut_extra', f'{len(array)} rows for {len(names)} classes; one each'
    )
  return [names[i] for i in rows], tuple(array[rows] for array in arrays)
