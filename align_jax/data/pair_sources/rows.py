"""Rows of JSON lines or of Parquet, each with the place it comes from."""

import os
from collections.abc import Collection, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from align_jax.data.sources import fields as fields_lib
from align_jax.errors import UserError

SUFFIXES = ('.jsonl', '.parquet')
_BATCH = 256  # rows of a Parquet file turned into Python values at a time


def read_rows(path: str, columns: Collection[str]) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields (`file:line`, fields) of every row, in order; empty lines are passed over.

  Args:
    path: a file that ends in one of `SUFFIXES`.
    columns: what to read of a row; it need not have them all.

  Raises:
    UserError: a damaged file, or a line that is no JSON object.
  """
  return _parquet(path, columns) if path.endswith('.parquet') else _lines(path, columns)


def row_files(folder: str) -> list[str]:
  """Returns the row files directly in a folder, sorted."""
  names = sorted(n for n in os.listdir(folder) if n.endswith(SUFFIXES) and not n.startswith('.'))
  return [os.path.join(folder, n) for n in names]


def _lines(path: str, columns: Collection[str]) -> Iterator[tuple[str, dict[str, Any]]]:
  try:
    with open(path, 'rb') as file:
      for number, line in enumerate(file, start=1):
        if line.strip():
          where = f'{path}:{number}'
          fields = fields_lib.parse_object(line, where)
          yield where, {key: fields[key] for key in columns if key in fields}
  except OSError as error:
    raise UserError(f'{path}: cannot read ({error.strerror}); put the file back') from error


def _parquet(path: str, columns: Collection[str]) -> Iterator[tuple[str, dict[str, Any]]]:
  try:
    with pq.ParquetFile(path) as file:
      known = [name for name in file.schema_arrow.names if name in columns]
      number = 0
      for batch in file.iter_batches(_BATCH, columns=known, use_threads=False):
        for fields in batch.to_pylist():
          yield f'{path}: row {number}', fields
          number += 1
  except (pa.ArrowException, OSError) as error:
    raise UserError(
      f'{path}: truncated or no Parquet file ({error}); fetch the file again'
    ) from error
