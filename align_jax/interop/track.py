"""One track of a model as plain weights: its adapter merged, its projection the only one."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from align_jax.errors import UserError
from align_jax.modality import Modality
from align_jax.models.dual_encoder import DualEncoderConfig

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


class Track:
  """Reads the parameters of a track, named as those of `plain_config`."""

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
    self._generated = track == 'generated'
    self._merge = self._generated and config.lora is not None
    self._dual = config.projection == 'dual' and self._generated
    rank = config.lora.rank if config.lora is not None else 1
    self._scale = 1.0 if rank == 'full' or config.lora is None else config.lora.alpha / rank
    self._read, self._names = read, shapes
    self._recent: dict[str, np.ndarray] = {}
    self.shapes = {
      name: shape
      for name, shape in shapes.items()
      if '/lora/' not in name and not name.startswith('generated_projection')
    }

  def has(self, name: str) -> bool:
    """Whether the trained model has a parameter of this name."""
    return name in self._names

  def read(self, name: str, layer: int | None) -> np.ndarray:
    """One layer of a parameter, or all of one that has none."""
    if self._dual and name.startswith('image_projection'):
      name = name.replace('image_projection', 'generated_projection', 1)
    value = self._layer(name, layer)
    root = name.removesuffix('/kernel')
    if not self._merge or root == name:
      return value
    if f'{root}/lora/delta' in self._names:
      return value + self._layer(f'{root}/lora/delta', layer)
    if f'{root}/lora/a' not in self._names:
      return value
    a, b = (self._layer(f'{root}/lora/{part}', layer).astype(np.float64) for part in 'ab')
    return (value + self._scale * (a @ b)).astype(np.float32)

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
