"""`mmeb:DIR`: training and evaluation data in MMEB's layout.

Source: Jiang et al. 2024, arXiv 2410.05160; data sets TIGER-Lab/MMEB-train and MMEB-eval.
"""

import collections
import dataclasses
import functools
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from align_jax.data.pair_record import Content, Contents, PairRecord, hash_id
from align_jax.data.pair_sources.image_root import ImageRoot
from align_jax.data.pair_sources.joined import JoinedPairs
from align_jax.data.pair_sources.mmeb_names import META_TASKS, canonical_name
from align_jax.data.pair_sources.options import choice_option, whole_option
from align_jax.data.pair_sources.rows import SUFFIXES, read_rows, row_files
from align_jax.data.sources import fields as fields_lib
from align_jax.data.sources.base import check_index
from align_jax.data.sources.spec import ParsedSpec, parse_spec, with_options
from align_jax.errors import UserError, did_you_mean

# Splits by what the names of files begin with; where several are there, the first of these is read.
_SPLITS = ('test', 'original', 'train', 'diverse_instruction')
# Training files, and evaluation files, name the same things differently.
_QUERY = (('qry', 'qry_image_path'), ('qry_text', 'qry_img_path'))
_POSITIVE, _NEGATIVE = ('pos_text', 'pos_image_path'), ('neg_text', 'neg_image_path')
_TARGETS = ('tgt_text', 'tgt_img_path')
# of the later files, which keep instructions apart from what they speak of
_INSTRUCTION = ('qry_inst', 'task_instruction')
_CANDIDATE_INSTRUCTION = ('tgt_inst', 'represent_prompt')
_COLUMNS = (
  *_QUERY[0], *_QUERY[1], *_POSITIVE, *_NEGATIVE, *_TARGETS, *_INSTRUCTION, *_CANDIDATE_INSTRUCTION,
)  # fmt: skip
_IMAGE_TOKEN = re.compile(r'<\|image_\d+\|>\s*')

# a text and the paths of its images
Side = tuple[str, tuple[str, ...]]


def open_mmeb_sets(spec: ParsedSpec) -> 'MmebSource | JoinedPairs':
  """Opens one data set of MMEB, or several of a folder as one: `subset=all`, or `subset=CIRR,VQA`.

  The other options are those of `open_mmeb`, and hold for each data set.

  Raises:
    UserError: see `open_mmeb`; one name twice.
  """
  wanted = spec.options.get('subset', '')
  if wanted != 'all' and ',' not in wanted:
    return open_mmeb(spec)
  path = os.path.expanduser(spec.path)
  if not os.path.isdir(path) or _is_one(path):
    raise UserError(f'{spec.text}: {spec.path!r} is no folder of data sets; leave subset= out')
  names = list(_subsets(path)) if wanted == 'all' else [name for name in wanted.split(',') if name]
  if not names:
    raise UserError(f'{spec.text}: no data sets in {path}; check the path')
  return JoinedPairs(
    spec.text, [open_mmeb(parse_spec(with_options(spec.text, subset=name))) for name in names]
  )


def open_mmeb(spec: ParsedSpec) -> 'MmebSource':
  """Opens one data set of MMEB: a file, or a folder with a file or folder for each data set.

  Options: `subset`, which data set; `split`, what its files' names begin with (by default the first
  of test, original, train, diverse_instruction that is there); `images`, the folder that image
  paths start from (by default the path, or the folder of the file); `missing`, `error` or `skip`,
  for rows whose images are not there; `limit`, only so many rows.

  Raises:
    UserError: an unknown option, data set or split, no rows, a row that cannot be understood, an
      image that is missing (unless skipped) or lies outside the image folder.
  """
  spec.check(('subset', 'split', 'images', 'missing', 'limit'), generic=False)
  skip = choice_option(spec, 'missing', ('error', 'skip')) == 'skip'
  limit = whole_option(spec, 'limit', 0, 1)
  path = os.path.expanduser(spec.path)
  subset, files = _find(spec, path)
  folder = path if os.path.isdir(path) else os.path.dirname(path) or '.'
  reader = _Reader(ImageRoot(spec.options.get('images', folder), spec.text), skip)
  number = 0
  for file in files:
    for where, fields in read_rows(file, _COLUMNS):
      if limit and number >= limit:
        break
      reader.add(where, number, fields)
      number += 1
  if not reader.rows:
    raise UserError(
      f'{spec.text}: none of {number} rows can be used ({dict(reader.skipped)}); check images='
    )
  return MmebSource(spec.text, subset, reader)


def find_subsets(folder: str) -> list[str]:
  """Returns the data sets of a folder in MMEB's layout, as their files or folders are called."""
  return list(_subsets(os.path.expanduser(folder)))


@dataclasses.dataclass(frozen=True)
class _Row:
  """A row of the file: `number` in it, and its contents by their numbers in the table."""

  number: int
  query: int
  positive: int
  candidates: np.ndarray
  instruction: str
  candidate_instruction: str


class _Reader:
  """Rows in, and the distinct contents that they name."""

  def __init__(self, root: ImageRoot, skip: bool):
    self.root, self.skip = root, skip
    self.rows: list[_Row] = []
    self.contents: dict[Side, int] = {}
    self.skipped: collections.Counter[str] = collections.Counter()
    self._present: dict[str, bool] = {}

  def add(self, where: str, number: int, fields: Mapping[str, Any]) -> None:
    """Checks a row and keeps it, or counts why not."""
    query_keys = next((k for k in _QUERY if k[0] in fields or k[1] in fields), None)
    if query_keys is None or not any(k in fields for k in (*_POSITIVE, *_TARGETS)):
      raise UserError(
        f'{where}: not in MMEB\'s layout; a row has "qry" and "pos_text", or "qry_text" and '
        f'"tgt_text", and this one has {sorted(fields) or "none of them"}'
      )
    queries = self._sides(fields, query_keys, where)
    evaluation = any(k in fields for k in _TARGETS)
    if evaluation:
      targets = self._sides(fields, _TARGETS, where)
      others = targets[1:]
    else:
      targets = self._sides(fields, _POSITIVE, where)
      others = self._sides(fields, _NEGATIVE, where)
    if len(queries) != 1 or not targets:
      raise UserError(f'{where}: {len(queries)} queries and {len(targets)} targets; one query, '
                      'and one target or more, is needed')  # fmt: skip
    for name, side in (('query', queries[0]), ('positive', targets[0])):
      problem = self._problem(side, where)
      if problem:
        if not self.skip:
          raise UserError(f'{where}: {name}: {problem}; put it back, or leave such rows out with '
                          '?missing=skip')  # fmt: skip
        self.skipped[f'{name} without {"content" if side == ("", ()) else "image"}'] += 1
        return
    kept = [self._number(targets[0])]
    for side in others:
      if side == ('', ()):  # a negative that is not there, padding of a list
        continue
      problem = self._problem(side, where)
      if problem and not self.skip:
        raise UserError(f'{where}: candidate: {problem}; put it back, or leave such candidates out '
                        'with ?missing=skip')  # fmt: skip
      if problem:
        self.skipped['candidate without image'] += 1
      else:
        kept.append(self._number(side))
    if evaluation and len(set(kept)) < 2:
      if not self.skip:
        raise UserError(f'{where}: no wrong candidate; take the row out, or leave such rows out '
                        'with ?missing=skip')  # fmt: skip
      self.skipped['query without a wrong candidate'] += 1
      return
    self.rows.append(
      _Row(
        number,
        self._number(queries[0]),
        kept[0],
        np.asarray(kept if len(kept) > 1 else [], np.int32),
        _instruction(fields, _INSTRUCTION, where),
        _instruction(fields, _CANDIDATE_INSTRUCTION, where),
      )
    )

  def _number(self, side: Side) -> int:
    return self.contents.setdefault(side, len(self.contents))

  def _problem(self, side: Side, where: str) -> str:
    """Returns what is wrong with a content, '' if nothing."""
    text, paths = side
    if not text and not paths:
      return 'neither text nor image'
    for path in paths:
      if path not in self._present:
        self._present[path] = bool(path) and self.root.find(path, where) is not None
      if not self._present[path]:
        return f'no image {path!r} below {self.root.path}' if path else 'an image token, no image'
    return ''

  def _sides(self, fields: Mapping[str, Any], keys: tuple[str, str], where: str) -> list[Side]:
    """Returns the contents that two fields list; one of them may be single or absent."""
    texts, paths = (_listed(fields.get(key), f'{where}: {key}') for key in keys)
    count = max(len(texts), len(paths))
    if count and {len(texts), len(paths)} - {0, 1, count}:
      raise UserError(
        f'{where}: {len(texts)} texts in {keys[0]}, {len(paths)} paths in {keys[1]}; '
        'give each text its path, "" for none'
      )
    texts, paths = (v * count if len(v) == 1 else v or [''] * count for v in (texts, paths))
    return [_side(text, path) for text, path in zip(texts, paths, strict=True)]


class MmebSource:
  """Rows of one data set of MMEB.

  Attributes:
    task: MMEB's name of the data set.
    skipped: what was left out, by reason.
  """

  licence = ''

  def __init__(self, spec: str, subset: str, reader: _Reader):
    self.spec = spec
    self.task = canonical_name(subset)
    self.skipped: Mapping[str, int] = dict(reader.skipped)
    self._subset = subset
    self._root, self._rows = reader.root, reader.rows
    self._sides = list(reader.contents)
    self._ids = [hash_id(text, *paths) for text, paths in self._sides]
    self._labelled = self.task in META_TASKS['classification']

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> PairRecord:
    check_index(index, len(self))
    row = self._rows[index]
    numbers = row.candidates
    return PairRecord(
      id=self._name(row),
      task=self.task,
      query=self._content(row.query),
      positive=self._content(row.positive),
      instruction=row.instruction,
      candidate_instruction=row.candidate_instruction,
      label=self._sides[row.positive][0] if self._labelled else '',
      candidates=Contents(
        [self._ids[n] for n in numbers], functools.partial(self._candidate, numbers)
      )
      if len(numbers)
      else (),
    )

  def ids(self) -> Sequence[str]:
    return [self._name(row) for row in self._rows]

  def _name(self, row: _Row) -> str:
    return f'{self._subset}-{row.number}'

  def _candidate(self, numbers: np.ndarray, index: int) -> Content:
    return self._content(int(numbers[index]))

  def _content(self, number: int) -> Content:
    text, paths = self._sides[number]
    return Content(text, tuple(self._root.read(p, self.spec) for p in paths), self._ids[number])


def _find(spec: ParsedSpec, path: str) -> tuple[str, list[str]]:
  """Returns the name of the data set and its files."""
  wanted = spec.options.get('subset', '')
  if os.path.isfile(path):
    if not path.endswith(SUFFIXES):
      raise UserError(f'{spec.text}: {path} does not end in {" or ".join(SUFFIXES)}')
    return wanted or _stem(path), [path]
  if not os.path.isdir(path):
    raise UserError(f'{spec.text}: no file or folder {spec.path!r}; check the path')
  if _is_one(path):
    return wanted or os.path.basename(os.path.realpath(path)), _split(spec, row_files(path))
  found = _subsets(path)
  chosen = [n for n in found if not wanted or canonical_name(n) == canonical_name(wanted)]
  if wanted and not chosen:
    raise UserError(f"{spec.text}: no subset '{wanted}'{did_you_mean(wanted, found)}")
  if len(chosen) != 1:
    raise UserError(
      f'{spec.text}: {len(chosen)} data sets in {path}; choose one with ?subset=NAME, or all'
      f'{did_you_mean("", chosen)}'
    )
  return chosen[0], _split(spec, found[chosen[0]])


def _is_one(folder: str) -> bool:
  """Whether it is the folder of one data set, its files called after splits."""
  return any(_stem(file).startswith(_SPLITS) for file in row_files(folder))


def _subsets(path: str) -> dict[str, list[str]]:
  """Returns the files of each data set: of its folder, or the one that bears its name."""
  found: dict[str, list[str]] = {}
  for entry in sorted(os.listdir(path)):
    full = os.path.join(path, entry)
    if os.path.isdir(full) and not entry.startswith('.') and row_files(full):
      found[entry] = row_files(full)
    elif entry.endswith(SUFFIXES) and not entry.startswith('.'):
      found[_stem(entry)] = [full]
  return found


def _split(spec: ParsedSpec, files: list[str]) -> list[str]:
  """Returns the files of the split: of several in one folder, those whose names begin with it."""
  split = spec.options.get('split', '')
  stems = {_stem(f): f for f in files}
  for name in [split] if split else _SPLITS:
    chosen = [f for stem, f in stems.items() if stem == name or stem.startswith(f'{name}-')]
    if chosen:
      return chosen
  if split:
    raise UserError(f"{spec.text}: no files of split '{split}'{did_you_mean(split, stems)}")
  if len(files) > 1:
    raise UserError(f'{spec.text}: choose files with ?split=NAME{did_you_mean("", stems)}')
  return files


def _stem(path: str) -> str:
  return os.path.splitext(os.path.basename(path))[0]


def _listed(value: Any, where: str) -> list[str]:
  """Returns a text or a list of texts as a list; null is ''."""
  items = value if isinstance(value, list | tuple) else [] if value is None else [value]
  for item in items:
    if item is not None and not isinstance(item, str):
      raise UserError(f'{where}: expected a text or a list of texts, got {item!r}')
  return [fields_lib.check_text(item or '', where) for item in items]


def _side(text: str, path: str) -> Side:
  """Takes image tokens out of a text; one without an image leaves an empty path behind.

  The published texts place `<|image_1|>` where a certain model wants its image. Here images are
  given beside the text, and a model's own template places them.
  """
  tokens = len(set(re.findall(_IMAGE_TOKEN, text)))
  paths = (path,) if path or tokens else ()
  return _IMAGE_TOKEN.sub('', text).strip(), paths


def _instruction(fields: Mapping[str, Any], keys: tuple[str, ...], where: str) -> str:
  values = [v for key in keys for v in _listed(fields.get(key), f'{where}: {key}') if v]
  return _IMAGE_TOKEN.sub('', values[0]).strip() if values else ''
