"""Pairs: a query and the candidate that it matches, each of them text, images or both."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, overload, runtime_checkable

from align_jax.modality import Modality

_ID_BYTES = 12  # two of a billion contents meet with a chance of 1e-11


@dataclasses.dataclass(frozen=True)
class Content:
  """What is embedded: of a query or of a candidate.

  Attributes:
    text: '' for images alone.
    images: encoded bytes (PNG, JPEG or WebP).
    id: equal for contents that are the same; '' makes it a hash of all else.
    modality: of the images: which track of a dual encoder embeds them.
  """

  text: str = ''
  images: tuple[bytes, ...] = ()
  id: str = ''
  modality: Modality = 'real'

  def __post_init__(self) -> None:
    if not self.id:
      apart = ('generated',) if self.modality == 'generated' else ()
      object.__setattr__(self, 'id', hash_id(self.text, *self.images, *apart))


@dataclasses.dataclass(frozen=True)
class PairRecord:
  """A query and its positive; of an evaluation query also what it is to be found among.

  Attributes:
    id: unique within its source; '' makes it a hash of the task and both contents.
    task: which task or data set it belongs to; negatives are sought within one task.
    query, positive: the two sides.
    instruction: of the task, to the query.
    candidate_instruction: of the task, to candidates.
    label: canonical text of everything that a match must agree on, so that a candidate truly
      matches a query exactly if their labels are equal; '' where nobody knows.
    candidates: of an evaluation query, the positive first; () in training.
  """

  id: str
  task: str
  query: Content
  positive: Content
  instruction: str = ''
  candidate_instruction: str = ''
  label: str = ''
  candidates: 'Candidates' = ()

  def __post_init__(self) -> None:
    if not self.id:
      object.__setattr__(self, 'id', hash_id(self.task, self.query.id, self.positive.id))


@runtime_checkable
class PairSource(Protocol):
  """Pairs by position. Thread safe, and picklable so that worker processes can have it.

  A source that leaves rows out offers `skipped`, a mapping from the reason to how many.

  Attributes:
    spec: the text that opens it again.
    licence: of the data; '' if unknown.
  """

  spec: str
  licence: str

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> PairRecord:
    """Returns pair `index`.

    Raises:
      IndexError: `index` is outside `[0, len)`.
      UserError: the pair cannot be read.
    """
    ...

  def ids(self) -> Sequence[str]:
    """Returns the id of every pair, in order, without reading images."""
    ...


class Contents:
  """Contents, as in a tuple, whose ids are known before anything of them is read.

  A thousand candidates for each of a thousand queries are mostly the same ones: an evaluation
  compares the ids and reads each distinct content once.

  Attributes:
    ids: of the contents, in order.
  """

  def __init__(self, ids: Sequence[str], load: Callable[[int], Content]):
    """`load`: returns the content at a position."""
    self.ids = tuple(ids)
    self._load = load

  def __len__(self) -> int:
    return len(self.ids)

  @overload
  def __getitem__(self, index: int) -> Content: ...

  @overload
  def __getitem__(self, index: slice) -> tuple[Content, ...]: ...

  def __getitem__(self, index: int | slice) -> Content | tuple[Content, ...]:
    if isinstance(index, slice):
      return tuple(self._load(i) for i in range(*index.indices(len(self))))
    return self._load(range(len(self))[index])  # a range checks the bounds

  def __iter__(self) -> Iterator[Content]:
    return map(self._load, range(len(self)))

  def __eq__(self, other: object) -> bool:
    return isinstance(other, Contents) and self.ids == other.ids

  def __hash__(self) -> int:
    return hash(self.ids)


Candidates = tuple[Content, ...] | Contents


def content_ids(contents: Candidates) -> Sequence[str]:
  """Returns the ids of contents, without reading them where that is possible."""
  return contents.ids if isinstance(contents, Contents) else [c.id for c in contents]


def hash_id(*parts: str | bytes) -> str:
  """Returns a short text that depends on every part and on where one ends and the next begins."""
  digest = hashlib.blake2b(digest_size=_ID_BYTES)
  for part in parts:
    data = part.encode() if isinstance(part, str) else part
    digest.update(len(data).to_bytes(8, 'big') + data)
  return digest.hexdigest()
