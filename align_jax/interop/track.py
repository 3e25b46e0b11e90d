"""One track of a model as plain weights: its adapters merged, its projection the only one."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from align_jax.errors import UserError
from align_jax.modality import Modality
from align_jax.models.adapter import LoraConfig
from align_jax.models.dual_encoder import DualEncoderConfig
from align_jax.models.multimodal import MultimodalConfig

# parameter name -> all of it, layers stacked
ReadParam = Callable[[str], np.ndarray]
_KEPT = 3  # parameters held at once: a kernel and the two halves of its update


def plain_config(config: DualEncoderConfig, track: Modality) -> DualEncoderConfig:
  """The config of a track alone.

  Raises:
    UserError: the generated track ends in a projection that the real one has not.
  """
  if track == 'generated' and config.projection == 'dual' and not config.image_projection:
    raise UserError(
      "config.model.projection: 'dual', but a SigLIP of transformers has no image projection to "
      "put the generated one in; train with projection='single'"
    )
  return dataclasses.replace(config, lora=None, projection='single')


class Merged:
  """Reads parameters by name, adapters merged into the weights that they update.

  Attributes:
    shapes: of the parameters by name, without adapters.
  """

  def __init__(
    self, read: ReadParam, shapes: Mapping[str, tuple[int, ...]], scales: Mapping[str, float]
  ):
    """Wraps `read`.

    Args:
      read: reads a parameter of the trained model.
      shapes: of them, by name.
      scales: of the adapters to be merged, by the beginning of the names they are under; others
        are left out.
    """
    self._read, self._names, self._scales = read, shapes, scales
    self._recent: dict[str, np.ndarray] = {}
    self.shapes = {name: shape for name, shape in shapes.items() if '/lora/' not in name}

  def has(self, name: str) -> bool:
    """Whether the trained model has a parameter of this name."""
    return name in self._names

  def read(self, name: str, layer: int | None) -> np.ndarray:
    """One layer of a parameter, or all of one that has none."""
    value = self._layer(name, layer)
    root = name.removesuffix('/kernel')
    scale = next((s for start, s in self._scales.items() if name.startswith(start)), None)
    if scale is None or root == name:
      return value
    if f'{root}/lora/delta' in self._names:
      return value + self._layer(f'{root}/lora/delta', layer)
    if f'{root}/lora/a' not in self._names:
      return value
    a, b = (self._layer(f'{root}/lora/{part}', layer).astype(np.float64) for part in 'ab')
    return (value + scale * (a @ b)).astype(np.float32)

  def whole(self, name: str) -> np.ndarray:
    """All layers of a parameter."""
    if '/blocks/layer/' not in name:
      return self.read(name, None)
    return np.stack([self.read(name, layer) for layer in range(self.shapes[name][0])])

  def _layer(self, name: str, layer: int | None) -> np.ndarray:
    if name not in self._recent:
      while len(self._recent) >= _KEPT:
        del self._recent[next(iter(self._recent))]
      self._recent[name] = self._read(name)
    value = self._recent[name]
    return value if layer is None else value[layer]


class Track(Merged):
  """Reads the parameters of a track of a dual encoder, named as those of `plain_config`."""

  def __init__(
    self,
    config: DualEncoderConfig,
    track: Modality,
    read: ReadParam,
    shapes: Mapping[str, tuple[int, ...]],
  ):
    """Wraps `read`.

    Args:
      config: of the trained model.
      track: which.
      read: reads one of its parameters.
      shapes: of them, by name.
    """
    generated = track == 'generated'
    super().__init__(read, shapes, {'': _scale(config.lora)} if generated and config.lora else {})
    self._dual = config.projection == 'dual' and generated
    self.shapes = {
      name: shape
      for name, shape in self.shapes.items()
      if not name.startswith('generated_projection')
    }

  def read(self, name: str, layer: int | None) -> np.ndarray:
    """One layer of a parameter, or all of one that has none."""
    if self._dual and name.startswith('image_projection'):
      name = name.replace('image_projection', 'generated_projection', 1)
    return super().read(name, layer)


def multimodal_track(
  config: MultimodalConfig,
  track: Modality,
  read: ReadParam,
  shapes: Mapping[str, tuple[int, ...]],
) -> Merged:
  """A track of a multimodal model: the decoder's adapters merged, of the tower's those of `track`.

  Args:
    config: of the trained model.
    track: that reads the images.
    read: reads one of its parameters.
    shapes: of them, by name.

  Raises:
    UserError: a track that it does not hold.
  """
  if track == 'generated' and config.image_lora is None:
    raise UserError('--track=generated: the run has no image_lora; leave --track out')
  scales = {}
  if config.decoder.lora is not None:
    scales['decoder/'] = _scale(config.decoder.lora)
  if track == 'generated' and config.image_lora is not None:
    scales['image/'] = _scale(config.image_lora)
  return Merged(read, shapes, scales)


def _scale(config: LoraConfig) -> float:
  return 1.0 if config.rank == 'full' else config.alpha / config.rank
