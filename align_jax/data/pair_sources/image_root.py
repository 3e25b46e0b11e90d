"""A folder of images that other files name: nothing outside of it is ever read."""

import os

from align_jax import storage
from align_jax.data.sources.files import read_image
from align_jax.errors import UserError


class ImageRoot:
  """Looks images up below one folder, links followed, and reads them within the size limit."""

  def __init__(self, root: str, where: str):
    """`where`: the spec, for messages.

    Raises:
      UserError: no such folder, or one in a bucket.
    """
    self.path = os.path.expanduser(root)
    if storage.is_remote(self.path):
      raise UserError(
        f'{where}: images={root} is in a bucket, where single files are slow to read; mount the '
        'bucket (docs/storage.md) or copy the images'
      )
    if not os.path.isdir(self.path):
      raise UserError(f'{where}: no folder of images {root!r}; say where they are, images=DIR')
    self._real = os.path.realpath(self.path)
    self._parents: dict[str, str] = {}  # folder -> the same without links

  def find(self, path: str, where: str) -> str | None:
    """Returns the file, links followed; None if there is no such file.

    Args:
      path: below the root, as a file of the data set names it.
      where: names the row, for messages.

    Raises:
      UserError: the path leads out of the root.
    """
    mend = 'only images below the image folder are read; mend the row'
    if os.path.isabs(path) or '\0' in path or '..' in path.replace('\\', '/').split('/'):
      raise UserError(f'{where}: image {path!r} leaves {self.path}; {mend}')
    full = os.path.join(self.path, path)
    parent = os.path.dirname(full)
    if parent not in self._parents:
      self._parents[parent] = os.path.realpath(parent)
    real = os.path.join(self._parents[parent], os.path.basename(full))
    if os.path.islink(real):
      real = os.path.realpath(real)
    if os.path.commonpath([self._real, real]) != self._real:
      raise UserError(f'{where}: image {path!r} leaves {self.path} through a link; {mend}')
    return real if os.path.isfile(real) else None

  def read(self, path: str, where: str) -> bytes:
    """Returns the encoded image.

    Raises:
      UserError: as `find`, or the file is missing, unreadable or too large.
    """
    real = self.find(path, where)
    if real is None:
      raise UserError(f'{where}: no image {path!r} below {self.path}; put it back')
    return read_image(real, real)
