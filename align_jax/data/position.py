"""How far a run is in its data, for any number of processes, now and when it goes on.

The examples of a mixture are one endless stream, cut into chunks that the processes take in turn.
What a run has used is then a few numbers: how many chunks each process has finished, and how many
examples of its next one. The processes are not abreast: who skips unusable records reads on. A run
that goes on with another number of processes takes first what the slower ones had left. Where the
data follow a batch plan, an example here is a whole cluster.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from align_jax.errors import UserError

# Examples that a thread makes at a time: hand-over between threads costs as much as decoding a
# small picture. A mixture takes turns by fixed rule, and every n-th example of it may be all of one
# source: in a chunk are some of each. Part of the state's meaning, so a change breaks the resuming
# of older runs.
CHUNK = 16

Position = tuple[int, int]  # chunks that a process has finished, examples taken of the next


@dataclasses.dataclass(frozen=True)
class Start:
  """The stream as the processes share it out: some left-over examples, then whole chunks.

  Attributes:
    left: examples to take first, by their position in the mixture.
    chunk: number of the first whole chunk of the mixture after them.
    size: of a chunk.
  """

  left: tuple[int, ...] = ()
  chunk: int = 0
  size: int = CHUNK

  @property
  def left_chunks(self) -> int:
    """How many chunks the left-over examples make; the last may be short."""
    return -(-len(self.left) // self.size)

  def examples(self, chunk: int) -> Sequence[int]:
    """The positions in the mixture that chunk number `chunk` of this stream holds."""
    if chunk < self.left_chunks:
      return self.left[chunk * self.size : (chunk + 1) * self.size]
    first = (self.chunk + chunk - self.left_chunks) * self.size
    return range(first, first + self.size)


def shared_anew(start: Start, positions: Sequence[Position]) -> Start:
  """What is left of a stream that processes have come so far in, to be shared out again."""
  ways = len(positions)
  # process p has chunks p, p + ways, p + 2 ways, …
  reached = [process + ways * done for process, (done, _) in enumerate(positions)]
  end = max(max(reached) + 1, start.left_chunks)
  left: list[int] = []
  for chunk in range(min(reached), end):
    done, taken = positions[chunk % ways]
    if chunk // ways == done:
      left.extend(start.examples(chunk)[taken:])
    elif chunk // ways > done:
      left.extend(start.examples(chunk))
  return Start(tuple(left), start.chunk + end - start.left_chunks, start.size)


def to_state(start: Start, positions: Sequence[Position | None]) -> dict[str, Any]:
  """As JSON; None: a process whose position is not known here."""
  return {
    'start': {'left': list(start.left), 'chunk': start.chunk},
    'positions': [None if position is None else list(position) for position in positions],
  }


def from_state(
  state: dict[str, Any], process: int, processes: int, size: int = CHUNK
) -> tuple[Start, Position]:
  """Where process number `process` of `processes` goes on, with chunks of `size` examples.

  Raises:
    UserError: the state is of something else.
  """
  try:
    start = Start(tuple(map(int, state['start']['left'])), int(state['start']['chunk']), size)
    if len(state['positions']) == processes:
      done, taken = map(int, state['positions'][process])
      return start, (done, taken)
    positions = [(int(done), int(taken)) for done, taken in state['positions']]
  except (KeyError, TypeError, ValueError) as error:
    raise UserError('data position: not a state of this pipeline; start a new run') from error
  return shared_anew(start, positions), (0, 0)
