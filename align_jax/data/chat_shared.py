"""Several encoded conversations as one row, with what they begin with written once."""

from collections.abc import Sequence

import numpy as np

SHARED = -1  # as in models.decoder, which data does not import

Encoded = tuple[np.ndarray, np.ndarray]


def shared_row(
  found: Sequence[Encoded], blind: Sequence[Encoded], length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns tokens, segments and marks of a row: the blind, what the others share, their rests.

  The token before a first answer is never shared: what it is to foretell differs.

  Args:
    found: ids of each conversation, and which of them are answers; the first fits.
    blind: those that share nothing; they come first, for what is shared is read by all after it.
    length: tokens of the row; conversations that do not fit any more are left out.
  """
  shared = min(_first_answer(marks) for _, marks in found) - 1
  first, first_marks = found[0]
  for ids, _ in found:
    differs = np.nonzero(ids[:shared] != first[:shared])[0]
    shared = int(differs[0]) if len(differs) else shared
  room = length - len(first)
  before = []
  for ids, marks in blind:
    if len(ids) <= room:
      room -= len(ids)
      before.append((ids, marks))
  after = [(first[shared:], first_marks[shared:])]
  for ids, marks in found[1:]:
    if len(ids) - shared <= room:
      room -= len(ids) - shared
      after.append((ids[shared:], marks[shared:]))
  parts = [*before, (first[:shared], first_marks[:shared]), *after]
  numbers = [*range(1, len(before) + 1), SHARED, *range(len(before) + 1, len(parts))]
  return (
    np.concatenate([ids for ids, _ in parts]),
    np.repeat(np.asarray(numbers, np.int32), [len(ids) for ids, _ in parts]),
    np.concatenate([marks for _, marks in parts]),
  )


def _first_answer(marks: np.ndarray) -> int:
  return int(marks.argmax()) if marks.any() else len(marks)
