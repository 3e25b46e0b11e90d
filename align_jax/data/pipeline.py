"""From sources to batches with Grain: mixed, shuffled, decoded in threads, resumable anywhere."""

import collections
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from concurrent import futures
from typing import TYPE_CHECKING, Any, TypeGuard

import grain
import numpy as np
from jaxtyping import UInt8

from align_jax.data.chat import Chat
from align_jax.data.chat_examples import ChatCollate
from align_jax.data.embed_prompt import Level
from align_jax.data.examples import Example, Part, Text, load
from align_jax.data.images import MAX_PIXELS
from align_jax.data.mixture import AnyExample, Mixer
from align_jax.data.pair_examples import PairCollate
from align_jax.data.position import CHUNK, Position, Start, from_state, to_state
from align_jax.data.quarantine import Quarantine, Skipped
from align_jax.data.record import Record
from align_jax.data.tokenizer import Tokenizer
from align_jax.data.transforms import Transform, apply_to_picture
from align_jax.errors import UserError

if TYPE_CHECKING:
  from align_jax.data.sources import Source
else:
  Source = Any  # the shape check of the tests cannot follow a name that exists for mypy only


def local_batch(global_batch: int, process_count: int) -> int:
  """Returns each process's share of the batch.

  Raises:
    UserError: the batch does not divide.
  """
  if global_batch < 1 or global_batch % process_count:
    near = max(global_batch // process_count, 1) * process_count
    raise UserError(
      f'batch size {global_batch} is not divisible by {process_count} processes; set {near}'
    )
  return global_batch // process_count


def train_iterator(
  parts: Sequence[Part],
  *,
  batch_size: int,
  length: int,
  tokenizer: Tokenizer | Chat,
  transform: Transform,
  seed: int,
  text: Text = 'plain',
  level: Level = 'hierarchical',
  questions: int = 1,
  summaries: float = 0.0,
  process_index: int = 0,
  process_count: int = 1,
  threads: int = 2,
  quarantine: Quarantine,
  require_caption: bool = True,
  max_pixels: int = MAX_PIXELS,
) -> 'Batches':
  """Returns an endless iterator over batches of a weighted mixture of sources.

  Every source is reshuffled each epoch. The mixture is one stream, which the processes share out
  chunk by chunk: no record is repeated or left out, however many they are, and were before. Order
  and augmentation depend on `seed`, never on `threads`.

  A batch is a dict of NumPy arrays: `image` uint8 `[batch, size, size, 3]`; `text` int32
  `[batch, length]`, one caption drawn per example; `group` int32 `[batch]`, equal for equal
  captions; `modality` int32 `[batch]`, the position in `MODALITIES`; `ids` str `[batch]`, for the
  host only; and, when any part has partners, `partner` uint8 `[batch, size, size, 3]` with a draw
  of the augmentation of its own (zeros where there is none) and `has_partner` bool `[batch]`.
  Of chats it has, instead of `text` and partners, `tokens` int32 `[batch, length]`, `segment` int32
  `[batch, length]`, 1 of a token and 0 of padding (for several questions see
  `data.chat.Chat.encode_shared`), and `answer` bool `[batch, length]`, the tokens that the
  assistant writes. For what it has of pairs see `data.pair_examples.PairCollate`.

  A part may come in clusters (`Part.clusters`): they are shuffled, not their members, and every
  batch is of whole ones. A cluster with a member that cannot be used is left out.

  `get_state()` returns a JSON-serialisable dict: `{'start': …, 'positions': one for each process,
  'data': what they are positions in}`, where only this process's position is filled in (see
  `data.position`); `set_state()` takes it with all of them, of any number of processes. With as
  many as before, the next batch is the one that would have come next.

  Args:
    parts: what to mix.
    batch_size: examples per batch of this process, see `local_batch`.
    length: tokens per text.
    tokenizer: of captions; of chats where `text` asks for them.
    seed: of order, choice of captions and questions, and augmentation.
    text: what of a record is read, see `data.examples.Reader`.
    level: of the prompts of pairs, see `data.embed_prompt`.
    questions, summaries: see `data.examples.Reader`.
    process_index: this process, of `process_count`.
    threads: that decode; 0 decodes while the caller waits.
    quarantine: counts what is skipped. An image that cannot be used drops the example; a partner
      that cannot be used is counted and the example has no partner.
    require_caption: skip records without a caption; else their text is padding only, and each has a
      group of its own.
    max_pixels: see `decode_image`.

  Raises:
    UserError: on making it: no parts, an empty source, a weight of 0. On `next`: too many records
      skipped, or all. On `set_state`: the state of other data.
  """
  _check_parts(parts)
  if (text == 'plain') == isinstance(tokenizer, Chat):
    raise UserError(f'data.text: {text!r} with a {type(tokenizer).__name__}; chats need a Chat')
  collate: _Collate | ChatCollate | PairCollate
  if not isinstance(tokenizer, Chat):
    collate = _Collate(tokenizer, length, any(part.partners is not None for part in parts))
  elif text == 'pairs':
    collate = PairCollate(tokenizer, length, transform.image_size)
  else:
    collate = ChatCollate(tokenizer, length)
  if batch_size < 1:
    raise UserError(f'batch size {batch_size}: set 1 or more')
  if not 0 <= process_index < process_count:
    raise UserError(f'process_index {process_index} is outside 0 to {process_count - 1}')
  # A batch ahead, so that the next one is made while the device works on this one.
  ahead = max(batch_size // CHUNK + 1, 2 * threads) if threads else 0
  return Batches(
    Mixer(seed, transform, require_caption, max_pixels, text, level, questions, summaries),
    parts,
    process=process_index,
    processes=process_count,
    options=grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead),
    collate=collate,
    batch_size=batch_size,
    quarantine=quarantine,
  )


def eval_batches(
  source: Source,
  transform: Transform,
  batch_size: int,
  *,
  quarantine: Quarantine | None = None,
  threads: int = 2,
  max_pixels: int = MAX_PIXELS,
) -> Iterator[tuple[UInt8[np.ndarray, 'batch size size 3'], list[Record]]]:
  """Yields all usable records once, in order, with their pictures; the last batch may be smaller.

  Records that cannot be read or decoded are left out and counted in `quarantine`, if given.

  Raises:
    UserError: no record of the source can be used, or more than the quarantine allows is skipped.
  """
  rng = np.random.default_rng(0)  # never drawn from in `eval` mode
  if transform.mode != 'eval':
    raise UserError(f"eval_batches: transform.mode is {transform.mode!r}; set 'eval'")

  def load_chunk(start: int) -> list[tuple[Record, np.ndarray] | Skipped]:
    out: list[tuple[Record, np.ndarray] | Skipped] = []
    for index in range(start, min(start + CHUNK, len(source))):
      loaded = load(source, index, max_pixels)
      if isinstance(loaded, Skipped):
        out.append(loaded)
      else:
        out.append((loaded[0], apply_to_picture(transform, loaded[1], rng)))
    return out

  waiting: list[tuple[Record, np.ndarray]] = []
  used = 0
  for chunk in _in_threads(load_chunk, range(0, len(source), CHUNK), threads):
    for loaded in chunk:
      if quarantine is not None:
        quarantine.seen()
      if isinstance(loaded, Skipped):
        if quarantine is not None:
          quarantine.add(loaded.record_id, loaded.source, loaded.reason)
        continue
      used += 1
      waiting.append(loaded)
      if len(waiting) == batch_size:
        yield np.stack([image for _, image in waiting]), [record for record, _ in waiting]
        waiting = []
  if waiting:
    yield np.stack([image for _, image in waiting]), [record for record, _ in waiting]
  if not used:
    raise UserError(f'{source.spec}: no usable record among {len(source)}; check the source')


def _in_threads(function: Any, items: Sequence[Any], threads: int) -> Iterator[Any]:
  """Yields `function(item)` in order, worked out a few items ahead."""
  executor = futures.ThreadPoolExecutor(max(threads, 1), thread_name_prefix='eval-batches')
  pending: collections.deque[futures.Future] = collections.deque()
  try:
    for item in items:
      pending.append(executor.submit(function, item))
      if len(pending) > 2 * max(threads, 1):
        yield pending.popleft().result()
    while pending:
      yield pending.popleft().result()
  finally:  # also when the caller stops half-way
    executor.shutdown(wait=False, cancel_futures=True)


def _check_parts(parts: Sequence[Part]) -> None:
  if not parts:
    raise UserError('data: no source given; set at least one')
  for part in parts:
    if not len(part.source):
      raise UserError(f'{part.source.spec}: the source is empty')
    if not part.weight > 0:
      raise UserError(f'{part.source.spec}: weight {part.weight}; set more than 0, or leave it out')
    if part.clusters is not None and len(parts) > 1:
      raise UserError(
        f'{part.source.spec}: has a batch plan, but is mixed with other sources; plan all of them '
        'as one, or use it alone'
      )


@dataclasses.dataclass(frozen=True)
class _Collate:
  """Joins examples to a batch. Tokenises here, as one call for many texts is far cheaper."""

  tokenizer: Tokenizer
  length: int
  paired: bool

  def __call__(self, examples: list[Example]) -> dict[str, np.ndarray]:
    text = self.tokenizer.encode([example.caption for example in examples], self.length)
    text[[not example.caption for example in examples]] = self.tokenizer.pad_id
    batch = {
      'image': np.stack([example.image for example in examples]),
      'text': text,
      'group': np.array([example.group for example in examples], np.int32),
      'modality': np.array([example.modality for example in examples], np.int32),
      'ids': np.array([example.record_id for example in examples]),
    }
    if self.paired:
      partner = np.zeros_like(batch['image'])
      for row, example in zip(partner, examples, strict=True):
        if example.partner is not None:
          row[...] = example.partner
      batch['partner'] = partner
      batch['has_partner'] = np.array([example.partner is not None for example in examples])
    return batch


_Group = list[AnyExample | Skipped]


@dataclasses.dataclass(frozen=True)
class _Chunks:
  """All chunks of a stream, by number."""

  mixed: grain.MapDataset
  start: Start

  def __len__(self) -> int:
    return sys.maxsize // (2 * CHUNK)  # no end: the sources repeat

  def __getitem__(self, number: int) -> list[_Group]:
    return [self.mixed[position] for position in self.start.examples(number)]


class Batches(grain.DatasetIterator):
  """Takes examples out of chunks, skips what cannot be used, and joins the rest to batches.

  Skipped records are counted here, in the caller's thread and in order, and not where they were
  found: the point at which a run stops for too many of them is the same every time, and the error
  comes out of `next`.
  """

  def __init__(
    self,
    mixer: Mixer,
    parts: Sequence[Part],
    *,
    process: int,
    processes: int,
    options: grain.ReadOptions,
    collate: '_Collate | ChatCollate | PairCollate',
    batch_size: int,
    quarantine: Quarantine,
  ):
    super().__init__()
    self._mixer = mixer
    self._mixture = mixer.mix(parts)
    self._process, self._processes = process, processes
    self._options = options
    self._collate = collate
    self._batch_size = batch_size
    self._quarantine = quarantine
    self._skipped_in_a_row = 0
    self._check_size()
    self._go_to(Start(size=self._chunk_size), (0, 0))

  def go_on_with(self, parts: Sequence[Part]) -> None:
    """Goes on, from the same position, with the same parts after their sources have grown.

    See `Mixer` for what they give from here on. It depends on the parts and the position alone: an
    iterator made with these parts and set to this position goes on with the same batches.

    Raises:
      UserError: a part that cannot be, see `train_iterator`.
    """
    _check_parts(parts)
    size = self._mixture.size
    self._mixture = self._mixer.mix(parts)
    if self._mixture.size != size:
      raise UserError(f'data: clusters of {self._mixture.size} after clusters of {size}')
    self._go_to(self._start, (self._done, self._taken))

  def __next__(self) -> dict[str, np.ndarray]:
    self._assert_not_closed()
    examples: list[AnyExample] = []
    while len(examples) < self._batch_size:
      examples += [example for example in self._take() if self._counted(example)]
    return self._collate(examples)  # type: ignore[arg-type]  # all are of the collate's kind

  def get_state(self) -> dict[str, Any]:
    positions: list[Position | None] = [None] * self._processes
    positions[self._process] = (self._done, self._taken)
    return to_state(self._start, positions) | {'data': dict(self._mixture.data)}

  def set_state(self, state: dict[str, Any]) -> None:
    start, position = from_state(state, self._process, self._processes, self._chunk_size)
    data = state.get('data') or {}
    for name in {**self._mixture.data, **data}:
      value = self._mixture.data.get(name)
      if data.get(name) != value:
        raise UserError(
          f'data position: saved with {name} {data.get(name)}, now {value}; '
          'resume with the same data, or start in a new folder'
        )
    self._go_to(start, position)

  @property
  def _chunk_size(self) -> int:
    """Groups that make about as many examples as a chunk has."""
    return max(1, CHUNK // self._mixture.size)

  def _check_size(self) -> None:
    size = self._mixture.size
    if self._batch_size % size:
      raise UserError(
        f'batch size {self._batch_size} (of a process): the clusters of the batch plan are of '
        f'{size}; set a multiple of that'
      )

  def _go_to(self, start: Start, position: Position) -> None:
    # a resumed run makes the chunk it was in again and drops what was taken of it
    self._start, (self._done, self._taken) = start, position
    first = self._process + self._done * self._processes
    chunks = grain.MapDataset.source(_Chunks(self._mixture.groups, start))
    self._chunks = iter(chunks[first :: self._processes].to_iter_dataset(self._options))
    self._chunk: list[_Group] = []

  def _take(self) -> _Group:
    if not self._chunk:
      self._chunk = next(self._chunks)
    group = self._chunk[self._taken]
    self._taken += 1
    if self._taken == len(self._chunk):
      self._chunk, self._done, self._taken = [], self._done + 1, 0
    return group

  def _counted(self, example: AnyExample | Skipped) -> TypeGuard[AnyExample]:
    """Tells whether it is an example, and counts what was skipped."""
    self._quarantine.seen()
    if isinstance(example, Skipped):
      self._quarantine.add(example.record_id, example.source, example.reason)
      self._skipped_in_a_row += 1
      # whatever share is allowed: it would never end
      if self._skipped_in_a_row > self._mixture.epoch:
        raise UserError(f'data: no usable record for a whole epoch; {self._quarantine.describe()}')
      return False
    self._skipped_in_a_row = 0
    if example.partner_read:
      self._quarantine.seen()
    if example.partner_skipped is not None:
      skipped = example.partner_skipped
      self._quarantine.add(skipped.record_id, skipped.source, skipped.reason)
    return True
