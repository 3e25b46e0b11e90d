"""Pasting offline: shards of pasted pictures, and their objects in the format of COCO."""

import contextlib
import os
from collections.abc import Generator, Sequence

from tqdm import tqdm

from align_jax import storage
from align_jax.data import shards as shards_lib
from align_jax.data.record import Record
from align_jax.synth.paste.coco import CocoWriter
from align_jax.synth.paste.transform import PasteSource

ANNOTATIONS = 'annotations.json'


def write_pasted(
  source: PasteSource,
  directory: str | os.PathLike[str],
  *,
  shards: int,
  categories: Sequence[str] = (),
  licence: str = '',
  progress: bool = True,
) -> shards_lib.Manifest:
  """Writes the records of a source into shards, and `annotations.json` beside them.

  One record is held at a time. All of it is written aside first; the annotations are put in place
  just before the shards, so that a folder whose manifest is complete has them.

  Args:
    source: see `transform.PasteSource`.
    directory: a folder of its own, on a disk or in a bucket.
    shards: number of files.
    categories: of the annotations, in the order of their ids; others follow as they appear.
    licence: of the pictures; '' for what the source says.
    progress: shows rate and time left on standard error.

  Returns: the manifest.

  Raises:
    UserError: a record that cannot be read, a folder in use, a full disk.
  """
  folder = os.fspath(directory)
  licence = licence or source.licence
  path = os.path.join(folder, ANNOTATIONS)
  written: list[str] = []

  def records() -> Generator[Record, None, None]:
    # opened at the first record: by then the folder is known to be free, and swept
    with (
      CocoWriter(path, categories, licence) as writer,
      tqdm(total=len(source), unit=' images', desc='paste', disable=not progress) as bar,
    ):
      for index in range(len(source)):
        record = source[index]
        height, width = record.truth['size']
        writer.add(record, int(width), int(height))
        yield record
        bar.update()
      writer.commit()
      written.append(path)

  try:
    with contextlib.closing(records()) as rows:
      return shards_lib.write_shards(rows, folder, shards, licence, source.spec)
  except BaseException:
    for file in written:  # annotations of shards that are not there
      storage.remove(file)
    raise
