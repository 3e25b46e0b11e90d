"""Several pair sources as one, one after another."""

import bisect
import collections
import itertools
from collections.abc import Mapping, Sequence

from align_jax.data.pair_record import PairRecord, PairSource
from align_jax.data.sources.base import check_index
from align_jax.errors import UserError


class JoinedPairs:
  """The pairs of several sources, those of the first one first.

  Attributes:
    spec: of all of them.
    licence: the licences that there are, each once.
    sources: as given.
    skipped: what they left out, by reason.
  """

  def __init__(self, spec: str, sources: Sequence[PairSource]):
    """Raises a UserError if two pairs share an id."""
    self.spec = spec
    self.sources = tuple(sources)
    self.licence = '; '.join(dict.fromkeys(s.licence for s in sources if s.licence))
    self.skipped: Mapping[str, int] = sum(
      (collections.Counter(getattr(s, 'skipped', {})) for s in sources), collections.Counter()
    )
    self._ends = list(itertools.accumulate(len(s) for s in sources))
    ids = collections.Counter(self.ids())
    twice = [name for name, count in ids.items() if count > 1]
    if twice:
      raise UserError(f'{spec}: {len(twice)} ids are there twice, first {twice[0]!r}; pairs need '
                      'unique ids, leave one source out')  # fmt: skip

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, index: int) -> PairRecord:
    check_index(index, len(self))
    part = bisect.bisect_right(self._ends, index)
    return self.sources[part][index - (self._ends[part - 1] if part else 0)]

  def ids(self) -> Sequence[str]:
    return [name for source in self.sources for name in source.ids()]
