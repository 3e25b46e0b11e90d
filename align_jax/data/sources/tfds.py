"""`tfds:NAME/SPLIT`: a TensorFlow Datasets data set in ArrayRecord format, without TensorFlow."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from align_jax.data.record import Record
from align_jax.data.sources import fields as fields_lib
from align_jax.data.sources.base import Source, check_index
from align_jax.data.sources.spec import ParsedSpec
from align_jax.errors import UserError, did_you_mean

_CAPTIONS = ('caption', 'captions', 'text', 'texts')
_TEXT_KEYS = ('text', 'caption', 'raw')  # within a caption that is a group of features


def open_tfds(spec: ParsedSpec) -> Source:
  """Opens a prepared data set; nothing is downloaded.

  `NAME` may name a configuration and version, `coco_captions/2014:1.1.0`; `SPLIT` may be a slice,
  `train[:10%]`. Options: `data_dir`; `image`, `caption`, `label`, the features to use;
  `template`, the caption of a class name.

  Raises:
    UserError: the data set is not prepared in ArrayRecord format, or has no such split or feature.
  """
  import tensorflow_datasets as tfds  # seconds: only for those who use it

  spec.check(['data_dir', 'image', 'caption', 'label', 'template'])
  name, slash, split = spec.path.rpartition('/')
  if not slash or not name or not split:
    raise UserError(
      f'{spec.text}: no split; write tfds:NAME/SPLIT, for instance tfds:cifar10/train'
    )
  data_dir = spec.options.get('data_dir')
  try:
    data = tfds.data_source(name, split=split, data_dir=data_dir, download=False)
  except Exception as error:  # tfds raises many kinds, with pages of text
    first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
    raise UserError(
      f'{spec.text}: {first}; prepare it once with tfds.builder({name!r}, '
      "file_format='array_record').download_and_prepare(), and give its data_dir"
    ) from error
  if not len(data):
    raise UserError(f'{spec.text}: no records; choose another split')
  kinds = dict(data.dataset_info.features)
  image, captions, labels = _choose(spec, kinds, tfds.features)
  # the stored PNG or JPEG as it is: decoding here to encode again would cost time and quality
  data.decoders = {image: tfds.decode.SkipDecoding()}
  licence = getattr(data.dataset_info.redistribution_info, 'license', '') or ''
  template = fields_lib.template_option(spec)
  return TfdsSource(
    spec,
    data,
    f'{name}/{split}',
    licence,
    image,
    captions,
    {label: _namer(kinds[label]) for label in labels},
    template if template is not None else fields_lib.DEFAULT_TEMPLATE,
  )


class TfdsSource:
  """Examples of a split. A record's id is `NAME/SPLIT-POSITION`."""

  def __init__(
    self,
    spec: ParsedSpec,
    data: Sequence[Mapping[str, Any]],
    prefix: str,
    licence: str,
    image: str,
    captions: Sequence[str],
    labels: Mapping[str, Callable[[int], str]],
    template: str,
  ):
    """`labels`: feature -> the function from class number to name."""
    self.spec = spec.text
    self.licence = licence
    self._parsed = spec
    self._data = data
    self._prefix = prefix
    self._image = image
    self._captions = captions
    self._labels = labels
    self._template = template

  def __reduce__(self) -> tuple[Callable[[ParsedSpec], Source], tuple[ParsedSpec]]:
    return open_tfds, (self._parsed,)  # a builder does not always pickle; opening it is quick

  def __len__(self) -> int:
    return len(self._data)

  def __getitem__(self, index: int) -> Record:
    check_index(index, len(self))
    where = f'{self.spec}: record {index}'
    try:
      example = self._data[index]
    except (RuntimeError, ValueError, OSError) as error:
      raise UserError(f'{where} is corrupt ({error}); prepare the data set again') from error
    fields = {
      'captions': [t for name in self._captions for t in _texts(example[name], where)],
      'labels': [n for name, of in self._labels.items() for n in _names(example[name], of)],
    }
    return Record(
      id=self._id(index),
      image=_png(example[self._image], where),
      source_id=self._prefix,
      **fields_lib.metadata(fields, where, self._template),
    )

  def ids(self) -> Sequence[str]:
    return [self._id(i) for i in range(len(self))]

  def pair_ids(self) -> Sequence[str]:
    return [''] * len(self)

  def _id(self, index: int) -> str:
    return f'{self._prefix}-{index}'


def _choose(
  spec: ParsedSpec, kinds: Mapping[str, Any], features: Any
) -> tuple[str, list[str], list[str]]:
  """Returns the names of the image feature, the caption features and the label features."""
  options = spec.options
  for option in ('image', 'caption', 'label'):
    if option in options and options[option] not in kinds:
      near = did_you_mean(options[option], kinds)
      raise UserError(f"{spec.text}: no feature '{options[option]}'{near}")
  images = [n for n, kind in kinds.items() if isinstance(kind, features.Image)]
  images.sort(key=lambda n: (n != 'image', n))
  image = options.get('image') or (images[0] if images else '')
  if image not in images:
    raise UserError(f'{spec.text}: no image feature; its features: {", ".join(sorted(kinds))}')
  if kinds[image].np_dtype != np.uint8:
    raise UserError(f'{spec.text}: feature {image} is no 8-bit image; choose another with ?image=')
  captions = [options['caption']] if 'caption' in options else [n for n in _CAPTIONS if n in kinds]
  labels = (
    [options['label']] if 'label' in options else [n for n in ('label', 'labels') if n in kinds]
  )
  return image, captions, labels


def _namer(kind: Any) -> Callable[[int], str]:
  """Returns the function from class number to name, of a label or of a sequence of labels."""
  kind = getattr(kind, 'feature', kind)
  return getattr(kind, 'int2str', str)


def _names(value: Any, of: Callable[[int], str]) -> list[str]:
  flat = np.asarray(value).reshape(-1)
  if flat.dtype.kind in 'iu':
    return [of(int(v)) for v in flat if v >= 0]  # -1: unlabelled
  return [v.decode() if isinstance(v, bytes) else str(v) for v in flat]


def _texts(value: Any, where: str) -> list[str]:
  if isinstance(value, Mapping):
    found = next((k for k in _TEXT_KEYS if k in value), None)
    if found is None:
      raise UserError(f'{where}: no text in the caption; name the feature with ?caption=')
    return _texts(value[found], where)
  return fields_lib.texts(value.tolist() if isinstance(value, np.ndarray) else value, where)


def _png(value: Any, where: str) -> bytes:
  """Returns encoded bytes as they are, pixels `[h, w, c]` as PNG."""
  if isinstance(value, bytes):
    return value
  pixels = np.asarray(value)
  if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] not in (1, 3, 4):
    raise UserError(f'{where}: image is {pixels.dtype} {pixels.shape}, not uint8 [h, w, 1, 3 or 4]')
  out = io.BytesIO()
  Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(out, 'PNG')
  return out.getvalue()
