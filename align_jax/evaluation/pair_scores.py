"""Scores of an embedder on whatever benchmark of pairs a spec names."""

import os
from collections.abc import Mapping

from align_jax.data.pair_record import PairSource
from align_jax.data.pair_sources import OPENERS, emoji_tasks, mmeb, sugarcrepe
from align_jax.data.pair_sources.joined import JoinedPairs
from align_jax.data.pair_sources.mmeb_names import NAMES, canonical_name
from align_jax.data.sources.spec import ParsedSpec, parse_spec
from align_jax.errors import UserError, did_you_mean
from align_jax.evaluation import mmeb as mmeb_lib
from align_jax.evaluation import sugarcrepe as sugarcrepe_lib
from align_jax.evaluation.contents import Embed


def is_pair_spec(spec: str) -> bool:
  """Whether a spec names pairs that embedders are evaluated on, and not records."""
  return parse_spec(spec).scheme in OPENERS


class PairBenchmark:
  """What a spec names, opened and checked. Made once, scored any number of times."""

  def __init__(self, spec: str):
    """Opens all of it.

    `mmeb:DIR` is all data sets that are there, or one `subset`; `emojitasks:NAMES` test scenes and
    held-out compositions, or one `split`; the third is `sugarcrepe:DIR`.

    Raises:
      UserError: another scheme, or what opening finds wrong.
    """
    parsed = parse_spec(spec)
    if parsed.scheme not in OPENERS:
      raise UserError(
        f'{spec}: an embedder is evaluated on mmeb:DIR, sugarcrepe:DIR or emojitasks:NAMES'
      )
    self.spec = spec
    self._suite: mmeb_lib.Suite | None = None
    self._sources: Mapping[str, PairSource] = {}
    if parsed.scheme == 'sugarcrepe':
      self._crepe = sugarcrepe.open_sugarcrepe(parsed)
      return
    self._suite = mmeb_lib.MMEB if parsed.scheme == 'mmeb' else mmeb_lib.EMOJI_MMEB
    self._sources = _mmeb(parsed) if parsed.scheme == 'mmeb' else _emoji(parsed)

  @property
  def licences(self) -> dict[str, str]:
    """Of the sources, by their specs."""
    if self._suite is None:
      return {self.spec: self._crepe.licence}
    return {source.spec: source.licence for source in self._sources.values()}

  @property
  def skipped(self) -> dict[str, int]:
    """What the sources have left out (`missing=skip`): by task and reason."""
    if self._suite is None:
      return dict(self._crepe.skipped)
    return {
      f'{task}: {reason}': count
      for task, source in self._sources.items()
      for reason, count in getattr(source, 'skipped', {}).items()
    }

  def scores(self, embed: Embed) -> dict[str, float]:
    """Shares in [0, 1], see `mmeb.evaluate` and `sugarcrepe.evaluate`."""
    if self._suite is None:
      return sugarcrepe_lib.evaluate(self._crepe, embed)
    return mmeb_lib.evaluate(self._sources, embed, self._suite)

  def table(self, scores: Mapping[str, float]) -> str:
    """The scores as Markdown, in percent."""
    if self._suite is None:
      return sugarcrepe_lib.table(scores)
    return mmeb_lib.table(scores, self._suite)


def _mmeb(spec: ParsedSpec) -> dict[str, PairSource]:
  path = os.path.expanduser(spec.path)
  names = () if os.path.isfile(path) else mmeb.find_subsets(path)
  if 'subset' in spec.options or not any(canonical_name(name) in NAMES for name in names):
    found = mmeb.open_mmeb_sets(spec)
    sources = found.sources if isinstance(found, JoinedPairs) else (found,)
    return {source[0].task: source for source in sources}
  spec.check(('images', 'missing'), generic=False)
  options = spec.options
  return mmeb_lib.open_mmeb(spec.path, options.get('images', ''), options.get('missing', 'error'))


def _emoji(spec: ParsedSpec) -> dict[str, PairSource]:
  tasks = emoji_tasks.TASKS if spec.path == 'all' else tuple(spec.path.split(','))
  options = dict(spec.options)
  split = options.pop('split', None)
  if split == 'train':
    raise UserError(f'{spec.text}: split=train has no candidates; leave it out')
  found = mmeb_lib.open_emoji_mmeb(tasks, **options)
  if split is not None and split not in emoji_tasks.SPLITS:
    raise UserError(f"{spec.text}: no split '{split}'{did_you_mean(split, emoji_tasks.SPLITS)}")
  return {name: s for name, s in found.items() if split is None or name.endswith(f'/{split}')}
