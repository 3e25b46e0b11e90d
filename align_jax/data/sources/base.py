"""What a source is, and the three questions that the program asks of any of them."""

import collections
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from align_jax.data.record import Record
from align_jax.errors import UserError


@runtime_checkable
class Source(Protocol):
  """Records by position. Thread safe, and picklable so that worker processes can have it.

  A source that knows its record ids without reading images also offers `ids() -> Sequence[str]`
  and `pair_ids() -> Sequence[str]`, in record order.

  Attributes:
    spec: the text that opens it again.
    licence: of the data; '' if unknown.
  """

  spec: str
  licence: str

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Record:
    """Returns record `index`.

    Raises:
      IndexError: `index` is outside `[0, len)`.
      UserError: the record cannot be read.
    """
    ...


def record_ids(source: Source) -> Sequence[str]:
  """Returns the id of every record; reads all records only if the source offers no `ids()`."""
  ids = getattr(source, 'ids', None)
  return ids() if ids is not None else [source[i].id for i in range(len(source))]


def pair_ids(source: Source) -> Sequence[str]:
  """Returns the pair id of every record, '' where there is none (see `record_ids`)."""
  pairs = getattr(source, 'pair_ids', None)
  return pairs() if pairs is not None else [source[i].pair_id for i in range(len(source))]


def pair_index(source: Source) -> dict[str, int]:
  """Returns record id -> position, to find the real partner that a `pair_id` names.

  Raises:
    UserError: two records share an id.
  """
  index: dict[str, int] = {}
  for position, name in enumerate(record_ids(source)):
    if name in index:
      raise UserError(
        f'{source.spec}: records {index[name]} and {position} share the id {name!r}; '
        'pairs need unique ids, rename one or leave one file out'
      )
    index[name] = position
  return index


def label_counts(source: Source) -> dict[str, int]:
  """Returns how many records have each main label; reads all records."""
  found = (source[i].labels for i in range(len(source)))
  return dict(collections.Counter(labels[0] for labels in found if labels))


def check_index(index: int, length: int) -> None:
  """Raises IndexError outside `[0, length)`, so that plain iteration over a source ends."""
  if not 0 <= index < length:
    raise IndexError(f'record {index} of {length}')
