"""What a training config comes to on given devices: model, state, batch and step, nothing computed.

Training fills the plan with arrays; preflight hands it to a compiler.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from align_jax.config import build
from align_jax.errors import UserError
from align_jax.models.flat import Params, Skeleton
from align_jax.parallel.mesh import batch_sharding, check_batch, make_mesh
from align_jax.train.config import TrainConfig
from align_jax.train.objective import Objective
from align_jax.train.optimizer import make_optimizer
from align_jax.train.state import TrainState, abstract_state
from align_jax.train.step import check_micro_batch, make_train_step


@dataclasses.dataclass(frozen=True)
class Plan:
  """A step and all that it takes.

  Attributes:
    step: jitted, `(state, batch) -> (state, metrics)`.
    state, batch: shapes and shardings of its inputs.
    mesh: the devices.
    model: the model's config.
    skeleton: the model without weights.
    optimizer: the update rule.
    learn: shapes of the parameters that learn, by name.
    flops: floating-point operations of a step, matrix products alone, over all devices; those that
      gradient caching or rematerialisation repeat are not counted.
  """

  step: Callable[[TrainState, Any], tuple[TrainState, Any]]
  state: TrainState
  batch: dict[str, jax.ShapeDtypeStruct]
  mesh: Mesh
  model: Any
  skeleton: Skeleton
  optimizer: optax.GradientTransformation
  learn: Params
  flops: int


def plan(
  config: TrainConfig, objective: Objective, devices: Sequence[jax.Device] | None = None
) -> Plan:
  """Plans training on `devices`; None: all there are.

  Raises:
    UserError: a mesh, batch, model or optimiser that cannot be.
  """
  mesh = make_mesh(config.mesh, None if devices is None else list(devices))
  check_batch(config.batch_size, mesh)
  check_micro_batch(config.compute, config.batch_size, mesh)
  if config.optimizer.accumulate > 1 and objective.batch_coupled:
    raise UserError(
      'config.optimizer.accumulate: this loss couples the examples of a batch, accumulating its '
      'gradients would silently lose negatives; set accumulate=1, and config.compute.micro_batch '
      'where the batch does not fit'
    )
  model: Any = build(objective.ModelConfig, config.model_fields, 'config.model')
  skeleton = Skeleton(lambda rngs: objective.create_model(model, rngs))
  learn = {n: s for n, s in skeleton.shapes.items() if objective.trainable(n)}
  if not learn:
    raise UserError('config.objective: no parameter of this model learns under these settings')
  optimizer = make_optimizer(config.optimizer, config.steps, {n: skeleton.axes[n] for n in learn})
  rules, ema = config.mesh.rules, config.optimizer.ema
  return Plan(
    step=make_train_step(
      skeleton, objective, optimizer, mesh=mesh, rules=rules, ema=ema, compute=config.compute
    ),
    state=abstract_state(skeleton, objective, optimizer, mesh=mesh, rules=rules, ema=ema > 0),
    batch=_batch(config, objective, model, mesh),
    mesh=mesh,
    model=model,
    skeleton=skeleton,
    optimizer=optimizer,
    learn=learn,
    flops=config.batch_size * objective.flops(model),
  )


def _batch(
  config: TrainConfig, objective: Objective, model: Any, mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
  """What `data.pipeline.train_iterator` yields, over all processes, without the record ids."""
  pixels = (model.image_size, model.image_size, 3)
  length = (config.data.length,)
  rows: dict[str, tuple[tuple[int, ...], Any]] = {'group': ((), jnp.int32)}
  if config.data.text == 'pairs':
    for side in ('query', 'candidate'):
      rows |= {f'{side}_tokens': (length, jnp.int32), f'{side}_segment': (length, jnp.int32)}
      rows[f'{side}_image'] = ((1, *pixels), jnp.uint8)
  else:
    rows |= {'image': (pixels, jnp.uint8), 'modality': ((), jnp.int32)}
    chats = {'tokens': jnp.int32, 'segment': jnp.int32, 'answer': jnp.bool_}
    texts = {'text': jnp.int32} if config.data.text == 'plain' else chats
    rows |= {name: (length, dtype) for name, dtype in texts.items()}
  if objective.needs_partner:
    rows |= {'partner': (pixels, jnp.uint8), 'has_partner': ((), jnp.bool_)}
  return {
    name: jax.ShapeDtypeStruct((config.batch_size, *shape), dtype, sharding=batch_sharding(mesh))
    for name, (shape, dtype) in rows.items()
  }
