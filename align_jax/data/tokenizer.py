"""Text to token ids: a byte-level BPE of our own, or any local Hugging Face tokenizer folder."""

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Int32
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from align_jax import storage
from align_jax.errors import UserError

PAD, START, END = '<pad>', '<start>', '<end>'
# `transformers` makes an empty tokenizer of a folder that has none of these
_VOCABULARIES = (
  'tokenizer.json',
  'vocab.json',
  'vocab.txt',
  'spiece.model',
  'tokenizer.model',
  'sentencepiece.bpe.model',
)
_CONFIG = {
  'tokenizer_class': 'PreTrainedTokenizerFast',
  'pad_token': PAD,
  'bos_token': START,
  'eos_token': END,
  'align_jax': 1,  # marks a folder of ours, which loads without `transformers`
}


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """Encodes texts to rows of equal length. Made by `train_tokenizer` or `load_tokenizer`.

  Attributes:
    vocab_size: the embedding table's size: the largest id plus one.
    pad_id: fills a row up; some tokenizers (SigLIP's) pad with the end token.
    eot_id: the last token of every text.
    prefix: ids before every text.
    suffix: ids after every text; ends with `eot_id`, or there are none (a SigLIP's may be so).
    ids: texts to ids without the special tokens. Thread safe.
    write: writes the tokenizer's files into a folder.
    pads_left: the padding comes before the text (Gemma's tokenizers).
  """

  vocab_size: int
  pad_id: int
  eot_id: int
  prefix: tuple[int, ...]
  suffix: tuple[int, ...]
  ids: Callable[[list[str]], list[list[int]]]
  write: Callable[[Path], Any]
  pads_left: bool = False

  def encode(self, texts: Sequence[str], length: int) -> Int32[np.ndarray, 'batch length']:
    """Encodes as prefix, text, suffix, padding; a long text loses its tail, never the suffix.

    Raises:
      UserError: `length` leaves no room for text.
    """
    room = length - len(self.prefix) - len(self.suffix)
    if room < 1:
      raise UserError(f'text length {length} is too short; set {length - room + 1} or more')
    rows = np.full((len(texts), length), self.pad_id, np.int32)
    for row, ids in zip(rows, self.ids(list(texts)), strict=True):
      ids = [*self.prefix, *ids[:room], *self.suffix]
      start = length - len(ids) if self.pads_left else 0
      row[start : start + len(ids)] = ids
    return rows

  def save(self, folder: str | storage.AnyPath) -> None:
    """Writes a folder that `load_tokenizer` and Hugging Face read, see `save_folder`."""
    save_folder(folder, self.write)


def save_folder(folder: str | storage.AnyPath, write: Callable[[Path], Any]) -> None:
  """Writes the files of a folder aside first, then renamed; into a bucket file by file.

  Args:
    folder: where to.
    write: writes the files into an empty folder.
  """
  if storage.is_remote(folder):
    with tempfile.TemporaryDirectory(prefix='align_jax-') as scratch:
      write(Path(scratch))
      for path in sorted(Path(scratch).iterdir()):
        storage.write_object(f'{os.fspath(folder)}/{path.name}', path.read_bytes())
    return
  folder = Path(folder)
  folder.parent.mkdir(parents=True, exist_ok=True)
  aside = Path(tempfile.mkdtemp(prefix=f'.{folder.name}-', dir=folder.parent))
  try:
    write(aside)
    for path in aside.iterdir():
      with path.open('rb') as file:
        os.fsync(file.fileno())
    if folder.exists():  # a folder cannot be replaced in one step, its files can
      for path in aside.iterdir():
        os.replace(path, folder / path.name)
    else:
      aside.chmod(0o755)  # mkdtemp makes it private
      os.replace(aside, folder)
  finally:
    shutil.rmtree(aside, ignore_errors=True)


def train_tokenizer(captions: Iterable[str], vocab_size: int) -> Tokenizer:
  """Trains a lower-casing byte-level BPE; the same captions give the same tokenizer in any order.

  Args:
    captions: the training texts.
    vocab_size: an upper bound: few captions give fewer tokens, see `Tokenizer.vocab_size`.

  Raises:
    UserError: no captions, or `vocab_size` below the 256 bytes and 3 special tokens.
  """
  least = 256 + 3
  if vocab_size < least:
    raise UserError(f'tokenizer: vocab_size {vocab_size} is too small; set {least} or more')
  backend = tokenizers.Tokenizer(models.BPE())
  spaces = normalizers.Replace(tokenizers.Regex(r'\s+'), ' ')
  backend.normalizer = normalizers.Sequence(  # type: ignore[assignment]
    [normalizers.NFC(), spaces, normalizers.Strip(), normalizers.Lowercase()]
  )
  # A space before the first word, so that it gets the same tokens as in the middle of a text.
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)  # type: ignore[assignment]
  backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size,
    min_frequency=2,
    # not the end token third: `transformers`' CLIP takes an end token of id 2 for another
    special_tokens=[PAD, END, START],
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  count = 0

  def counted() -> Iterable[str]:
    nonlocal count
    for caption in captions:
      count += 1
      yield caption

  backend.train_from_iterator(counted(), trainer)
  if not count:
    raise UserError('tokenizer: no captions to train on; choose a source that has captions')
  ends = [(token, backend.token_to_id(token)) for token in (START, END)]
  backend.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
    single=f'{START} $A {END}', special_tokens=ends
  )
  return _ours(backend)


def load_tokenizer(folder: str | storage.AnyPath) -> Tokenizer:
  """Reads a folder that `Tokenizer.save` wrote, or any local Hugging Face tokenizer folder.

  Nothing is downloaded (but the folder itself, from a bucket) and no code of the folder runs.

  Raises:
    UserError: no such folder, no tokenizer in it, or one without an end token.
  """
  if storage.is_remote(folder):
    with tempfile.TemporaryDirectory(prefix='align_jax-') as scratch:
      try:
        return load_tokenizer(fetched(os.fspath(folder), Path(scratch)))
      except UserError as error:
        raise UserError(str(error).replace(scratch, os.fspath(folder))) from error
  folder = Path(folder)
  if not folder.is_dir():
    raise UserError(f'{folder}: no such tokenizer folder')
  if _read_config(folder).get('align_jax'):
    try:
      return _ours(tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json')))
    except UserError:
      raise
    except Exception as error:  # `tokenizers` raises plain Exception
      raise UserError(f'{folder}/tokenizer.json: cannot be read ({_line(error)})') from error
  return _foreign(folder)


def fetched(folder: str, scratch: Path) -> Path:
  """Copies the files of a folder in a bucket."""
  found = storage.find(f'{folder.rstrip("/")}/*')
  if not found:
    raise UserError(f'{folder}: no such tokenizer folder')
  for path in found:
    (scratch / path.rpartition('/')[2]).write_bytes(storage.read_bytes(path))
  return scratch


def _read_config(folder: Path) -> dict[str, Any]:
  path = folder / 'tokenizer_config.json'
  try:
    config = json.loads(path.read_bytes())
  except FileNotFoundError as error:
    raise UserError(
      f'{folder}: no tokenizer_config.json in it; give a folder saved with save_pretrained'
    ) from error
  except (OSError, ValueError) as error:
    raise UserError(f'{path}: cannot be read ({_line(error)})') from error
  if not isinstance(config, dict):
    raise UserError(f'{path}: not a tokenizer configuration')
  return config


def _ours(backend: tokenizers.Tokenizer) -> Tokenizer:
  """Wraps a backend that has our three special tokens."""
  # a caption that spells out '<end>' is text like any other, not the end of a text
  backend.encode_special_tokens = True
  pad, start, end = (_special_id(backend, token) for token in (PAD, START, END))

  def write(folder: Path) -> None:
    backend.save(str(folder / 'tokenizer.json'))
    (folder / 'tokenizer_config.json').write_text(json.dumps(_CONFIG, indent=2) + '\n')

  return Tokenizer(
    vocab_size=backend.get_vocab_size(),
    pad_id=pad,
    eot_id=end,
    prefix=(start,),
    suffix=(end,),
    ids=lambda texts: _plain_ids(backend, texts),
    write=write,
  )


def _special_id(backend: tokenizers.Tokenizer, token: str) -> int:
  found = backend.token_to_id(token)
  if found is None:
    raise UserError(f'tokenizer.json: has no {token} token; save the tokenizer again')
  return found


def read_hf(folder: Path) -> Any:
  """Reads what `transformers` makes of a local folder; no code of the folder runs.

  Raises:
    UserError: no tokenizer in it.
  """
  if not any((folder / name).is_file() for name in _VOCABULARIES):
    raise UserError(f'{folder}: no vocabulary in it; copy its {_VOCABULARIES[0]} there')
  import transformers  # here: it takes a second, and our own folders do without

  try:
    return transformers.AutoTokenizer.from_pretrained(
      str(folder), local_files_only=True, trust_remote_code=False
    )
  except Exception as error:
    raise UserError(
      f'{folder}: transformers cannot read this tokenizer ({_line(error)})'
    ) from error


def ids_of(hf: Any) -> Callable[[list[str]], list[list[int]]]:
  """Returns what makes ids of texts with a tokenizer of `transformers`, none added; thread safe."""
  if getattr(hf, 'backend_tokenizer', None) is None:
    return lambda texts: [list(hf(t, add_special_tokens=False)['input_ids']) for t in texts]
  # straight to the backend: no Python per text, and no state that two threads could fight over
  backend = tokenizers.Tokenizer.from_str(hf.backend_tokenizer.to_str())
  backend.no_truncation()
  backend.no_padding()
  return lambda texts: _plain_ids(backend, texts)


def _foreign(folder: Path) -> Tokenizer:
  """Wraps what `transformers` makes of a folder."""
  hf = read_hf(folder)
  prefix, suffix = special_ids(hf)
  eot = hf.eos_token_id if hf.eos_token_id is not None else hf.sep_token_id
  if suffix:
    eot = suffix[-1]
  if eot is None:
    raise UserError(f'{folder}: the tokenizer has no end token (eos_token); add one')
  if not suffix and not type(hf).__name__.startswith('Siglip'):
    # a model that reads the end token needs one; SigLIP reads the last place, whatever is there
    suffix = (int(eot),)
  return Tokenizer(
    vocab_size=max(len(hf), 1 + max(hf.get_vocab().values())),
    pad_id=int(hf.pad_token_id if hf.pad_token_id is not None else eot),
    eot_id=int(eot),
    prefix=prefix,
    suffix=suffix,
    ids=ids_of(hf),
    write=lambda target: hf.save_pretrained(str(target)),
    pads_left=hf.padding_side == 'left',
  )


def special_ids(hf: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """Returns the ids that a tokenizer puts before and after a text."""
  plain = list(hf('a', add_special_tokens=False)['input_ids'])
  full = list(hf('a', add_special_tokens=True)['input_ids'])
  for start in range(len(full) - len(plain) + 1):
    if full[start : start + len(plain)] == plain:
      return tuple(full[:start]), tuple(full[start + len(plain) :])
  return (), ()


def _plain_ids(backend: tokenizers.Tokenizer, texts: list[str]) -> list[list[int]]:
  encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
  return [encoding.ids for encoding in encodings]


def _line(error: Exception) -> str:
  return ' '.join(str(error).split())[:200] or type(error).__name__
