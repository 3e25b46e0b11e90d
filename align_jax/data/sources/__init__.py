"""Where records come from. `open_source(spec)` opens any of them; see docs/data.md."""

import dataclasses
from collections.abc import Callable, Mapping

from align_jax.data.finished import Finished
from align_jax.data.sources.arrayrecord import (
  is_following,
  open_arrayrecord,
  open_finished,
  wait_for_first,
)
from align_jax.data.sources.base import Source, pair_ids, pair_index, record_ids
from align_jax.data.sources.folder import open_folder
from align_jax.data.sources.parquet import open_parquet
from align_jax.data.sources.spec import GENERIC_OPTIONS, ParsedSpec, parse_spec, with_options
from align_jax.data.sources.subset import select, split_of
from align_jax.data.sources.tfds import open_tfds
from align_jax.data.sources.webdataset import open_webdataset
from align_jax.errors import UserError, did_you_mean
from align_jax.modality import Modality

__all__ = [
  'ParsedSpec',
  'Source',
  'is_following',
  'open_as',
  'open_source',
  'pair_ids',
  'pair_index',
  'parse_spec',
  'record_ids',
  'split_of',
  'wait_for_first',
  'with_options',
]


def open_source(spec: str, seen: Mapping[str, Finished] | None = None) -> Source:
  """Opens what a spec names.

  Args:
    spec: the text.
    seen: by path, what to open of folders that are followed; of others, what is finished now.

  Raises:
    UserError: an unknown scheme or option, a missing path, an empty source, damaged files.
  """
  parsed = parse_spec(spec)
  if seen and parsed.path in seen and is_following(parsed):
    return select(open_finished(parsed, seen[parsed.path]), parsed)
  opener = OPENERS.get(parsed.scheme)
  if opener is None:
    raise UserError(
      f"{spec}: unknown scheme '{parsed.scheme}'{did_you_mean(parsed.scheme, OPENERS)}"
    )
  if parsed.scheme != 'emoji':
    return select(opener(parsed), parsed)
  # the built-in pack has splits of its own, by scene and by composition
  generic = {k: v for k, v in parsed.options.items() if k in GENERIC_OPTIONS and k != 'split'}
  own = {k: v for k, v in parsed.options.items() if k not in generic}
  source = opener(dataclasses.replace(parsed, options=own))
  return select(source, dataclasses.replace(parsed, options=generic))


def open_as(modality: Modality, spec: str, seen: Mapping[str, Finished] | None = None) -> Source:
  """Opens a source whose place says which modality it holds, whatever its records say.

  A folder of generated images knows nothing of modalities; a spec that names one keeps it.
  """
  if 'modality' in parse_spec(spec).options:
    return open_source(spec, seen)
  return open_source(with_options(spec, modality=modality), seen)


def _open_emoji(spec: ParsedSpec) -> Source:
  try:
    from align_jax.data.emoji import open_emoji  # its packages come with an extra

    return open_emoji(spec)
  except ModuleNotFoundError as error:
    if (error.name or '').startswith('align_jax'):
      raise
    raise UserError(
      f'{spec.text}: package {error.name} is missing; pip install align_jax[demo]'
    ) from error


OPENERS: Mapping[str, Callable[[ParsedSpec], Source]] = {
  'arrayrecord': open_arrayrecord,
  'emoji': _open_emoji,
  'folder': open_folder,
  'parquet': open_parquet,
  'tfds': open_tfds,
  'webdataset': open_webdataset,
}
