"""Contrastive alignment of real and generated images with language; see docs/api.md."""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
  from align_jax.api import MultimodalModel, TrackEncoder


def load(spec: str, track: Literal['real', 'generated'] = 'real') -> 'TrackEncoder':
  """Loads a model for use, see `align_jax.api.load`."""
  from align_jax import api  # here: importing a part of the package loads that part alone

  return api.load(spec, track)


def load_multimodal(spec: str, track: Literal['real', 'generated'] = 'real') -> 'MultimodalModel':
  """Loads a model that answers questions about images, see `align_jax.api.load_multimodal`."""
  from align_jax import api

  return api.load_multimodal(spec, track)
