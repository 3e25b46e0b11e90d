"""Embeddings of contents: each distinct one is read and embedded once."""

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from align_jax.data.pair_record import Candidates, Content
from align_jax.errors import UserError

Role = Literal['query', 'candidate']


@runtime_checkable
class Embed(Protocol):
  """What evaluation asks of an embedding model."""

  def __call__(
    self, contents: Sequence[Content], role: Role, instruction: str
  ) -> Float[np.ndarray, 'n dim']:
    """Returns unit-norm float32 `[n, dim]`.

    Args:
      contents: texts, images or both, in any mixture.
      role: what they are; a prompt may say different things to the two.
      instruction: of their task; '' for none.
    """
    ...


class ContentVectors:
  """Vectors of the contents of one role, in the order in which they were first asked for."""

  def __init__(self, embed: Embed, role: Role, batch_size: int, where: str, *, finite: bool = True):
    """Prepares for contents.

    Args:
      embed: of the model.
      role: of the contents.
      batch_size: contents given to `embed` at a time.
      where: for messages.
      finite: whether embeddings that are not finite are an error.
    """
    self._embed, self._role, self._batch, self._where = embed, role, batch_size, where
    self._finite = finite
    self._rows: dict[tuple[str, str], int] = {}
    self._waiting: dict[str, list[tuple[int, Content]]] = {}  # by instruction
    self._parts: list[tuple[list[int], np.ndarray]] = []

  def row(self, name: str, instruction: str, contents: Candidates, place: int = 0) -> int:
    """Returns the row of a content.

    Args:
      name: its id; contents of one id are the same.
      instruction: the same content under another instruction has another vector.
      contents, place: where it is; it is read the first time only.

    Raises:
      UserError: embeddings that are not finite.
    """
    key = (instruction, name)
    if key not in self._rows:
      self._rows[key] = len(self._rows)
      waiting = self._waiting.setdefault(instruction, [])
      waiting.append((self._rows[key], contents[place]))
      if len(waiting) >= self._batch:
        self._flush(instruction)
    return self._rows[key]

  def vectors(self) -> Float[np.ndarray, 'rows dim']:
    """Returns the vectors of all rows.

    Raises:
      UserError: embeddings that are not finite.
      ValueError: no content was asked for.
    """
    for instruction in list(self._waiting):
      self._flush(instruction)
    order = np.concatenate([rows for rows, _ in self._parts])
    out = np.empty((len(order), self._parts[0][1].shape[1]), np.float32)
    out[order] = np.concatenate([part for _, part in self._parts])
    return out

  def _flush(self, instruction: str) -> None:
    waiting = self._waiting.pop(instruction)
    rows = [row for row, _ in waiting]
    contents = [content for _, content in waiting]
    part = np.asarray(self._embed(contents, self._role, instruction), np.float32)
    if part.ndim != 2 or len(part) != len(contents):
      raise ValueError(f'{len(contents)} contents gave embeddings of shape {part.shape}')
    bad = np.flatnonzero(~np.isfinite(part).all(axis=1))
    if len(bad) and self._finite:
      raise UserError(
        f'{self._where}: {len(bad)} embeddings are not finite, first that of '
        f'{contents[bad[0]].id}; evaluate an earlier checkpoint'
      )
    self._parts.append((rows, part))
