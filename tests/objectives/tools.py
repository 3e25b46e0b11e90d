"""Objectives run through a model of one block a tower, compiled once per objective."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from align_jax.models.flat import Params, Skeleton
from align_jax.objectives.parts import part_of
from align_jax.train.objective import Batch, Objective, batch_loss
from tests import tiny

# an end token that the random texts have where modalities differ
MODEL = {
  **tiny.SMALL_MODEL,
  **tiny.TRACKS,
  'text': {**tiny.SMALL_MODEL['text'], 'eot_id': 2},
}
BATCH = tiny.batch()
GROUP = np.asarray(BATCH['group'])


@functools.cache
def model(**changes: Any) -> tuple[Skeleton, Params]:
  """The model, and parameters that all matter: the adapters are not at their zero start."""
  skeleton = tiny.method(tiny.CONTRASTIVE, {**MODEL, **changes})[1]
  rng = np.random.default_rng(0)
  params = {}
  for name, shape in skeleton.shapes.items():
    spread = 0.3 / np.sqrt(shape.shape[0] / 16) if shape.ndim > 1 else 0.1
    params[name] = jnp.asarray(rng.normal(0, spread, shape.shape), jnp.float32)
  params['log_scale'] = jnp.asarray(1.5)
  if 'logit_bias' in params:
    params['logit_bias'] = jnp.asarray(-2.0)
  return skeleton, params


@functools.partial(jax.jit, static_argnums=(0, 1))
def _loss(objective: Objective, skeleton: Skeleton, params: Params, batch: Batch, key: jax.Array):
  return batch_loss(objective, skeleton.bind(params), batch, key)


def loss(objective: Objective, batch: Batch = BATCH, *, params: Params | None = None, key: int = 0):
  """The loss and the metrics, as floats."""
  skeleton, made = model()
  params = made if params is None else params
  value, metrics = _loss(objective, skeleton, params, batch, jax.random.key(key))
  return float(value), {k: float(v) for k, v in metrics.items()}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _gradients(objective: Objective, skeleton: Skeleton, params: Params, batch: Batch):
  fn = lambda p: batch_loss(objective, skeleton.bind(p), batch, jax.random.key(0))[0]  # noqa: E731
  return jax.grad(fn)(params)


def gradients(objective: Objective, batch: Batch = BATCH) -> dict[str, np.ndarray]:
  """Of all parameters, by name, whether they learn or not."""
  return {n: np.asarray(g) for n, g in _gradients(objective, *model(), batch).items()}


def moved(objective: Objective, batch: Batch = BATCH) -> set[str]:
  """The parameters that learn and have a gradient."""
  found = gradients(objective, batch)
  assert all(np.isfinite(g).all() for g in found.values())
  return {n for n, g in found.items() if np.any(g) and objective.trainable(n)}


@functools.cache
def embedded() -> dict[str, np.ndarray]:
  """What the encoders say of the batch, float64: images by track, partners, texts."""
  skeleton, params = model()

  @jax.jit
  def run(params: Params, batch: Batch):
    bound = skeleton.bind(params)
    return {
      'real': bound.encode_image(batch['image'], 'real'),
      'generated': bound.encode_image(batch['image'], 'generated'),
      'partner': bound.encode_image(batch['partner'], 'real'),
      'text': bound.encode_text(batch['text']),
      'scale': bound.scale,
      'bias': bound.bias,
    }

  return {k: np.asarray(v, np.float64) for k, v in run(params, BATCH).items()}


def learning_parts(objective: Objective) -> set[str]:
  """The parts that learn as a whole; a part that learns by halves fails."""
  parts: dict[str, set[bool]] = {}
  for name in model()[0].shapes:
    parts.setdefault(part_of(name), set()).add(objective.trainable(name))
  assert all(len(answers) == 1 for answers in parts.values()), parts
  return {part for part, answers in parts.items() if answers == {True}}
