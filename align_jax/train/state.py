"""The training state, each array created in its shards."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding

from align_jax.models.flat import Params, Skeleton
from align_jax.parallel.mesh import param_sharding, replicated
from align_jax.train.objective import Objective


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """Everything a step reads and writes; arrays, or their shapes while it is being planned.

  Attributes:
    step: updates done, int32.
    learn: parameters that learn, by name.
    frozen: parameters that never change, by name.
    optimizer: optax state over `learn`.
    average: moving average of `learn`, or None.
    key: raw key data; the step's randomness is folded from it and the step.
  """

  # not typed more closely: JAX's own passes put shapes, shardings and placeholders into the fields
  step: Any
  learn: Any
  frozen: Any
  optimizer: Any
  average: Any
  key: Any

  @property
  def params(self) -> Params:
    """All parameters by name."""
    return {**self.frozen, **self.learn}

  @property
  def averaged_params(self) -> Params:
    """All parameters, the learning ones as their moving average where one is kept."""
    return {**self.frozen, **(self.average or self.learn)}


def create_state(
  skeleton: Skeleton,
  objective: Objective,
  optimizer: optax.GradientTransformation,
  *,
  key: Array,
  mesh: Mesh,
  rules: Mapping[str, str],
  ema: bool,
  given: Params | None = None,
) -> TrainState:
  """Creates the state, each array directly in its shards.

  Args:
    skeleton: the model without weights.
    objective: says which parameters learn.
    optimizer: the update rule over the learning parameters.
    key: for fresh parameters.
    mesh: the devices.
    rules: logical axis -> mesh axis.
    ema: keep a moving average.
    given: weights to start from, by name, no two the same array; parameters that are missing here
      start fresh. They become the state: those that are in their shards already are used up.
  """
  init = _init(skeleton, objective, optimizer, ema)
  shardings = param_shardings(skeleton, mesh, rules)
  given = {n: jax.device_put(p, shardings[n]) for n, p in (given or {}).items()}
  shapes = jax.eval_shape(init, key, given)
  place = state_shardings(shapes, shardings, mesh)
  return jax.jit(init, out_shardings=place, donate_argnums=1)(key, given)


def abstract_state(
  skeleton: Skeleton,
  objective: Objective,
  optimizer: optax.GradientTransformation,
  *,
  mesh: Mesh,
  rules: Mapping[str, str],
  ema: bool,
) -> TrainState:
  """The shapes and shardings of what `create_state` creates; nothing is computed."""
  init = _init(skeleton, objective, optimizer, ema)
  shapes = jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)), {})
  shardings = state_shardings(shapes, param_shardings(skeleton, mesh, rules), mesh)
  return jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, shardings
  )


def param_shardings(
  skeleton: Skeleton, mesh: Mesh, rules: Mapping[str, str]
) -> dict[str, NamedSharding]:
  """Where each parameter is, by name."""
  return {
    name: param_sharding(mesh, skeleton.axes[name], shape.shape, rules)
    for name, shape in skeleton.shapes.items()
  }


def _init(
  skeleton: Skeleton, objective: Objective, optimizer: optax.GradientTransformation, ema: bool
) -> Callable[[Array, Params], TrainState]:
  def init(key: Array, given: Params) -> TrainState:
    params = {**skeleton.init(key), **given}
    learn = {n: p for n, p in params.items() if objective.trainable(n)}
    frozen = {n: p for n, p in params.items() if n not in learn}
    average = jax.tree.map(jnp.copy, learn) if ema else None
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      learn=learn,
      frozen=frozen,
      optimizer=optimizer.init(learn),
      average=average,
      key=jax.random.key_data(jax.random.fold_in(key, 1)),
    )

  return init


def state_shardings(shapes: TrainState, shardings: Mapping[str, Any], mesh: Mesh) -> TrainState:
  """Shardings of a whole state: whatever mirrors a parameter is split as the parameter is.

  Optimiser moments are found by the parameter's name at the end of their path.
  """

  def place(path: tuple, leaf: Any) -> Any:
    for key in reversed(path):
      name = getattr(key, 'key', '')
      if name in shardings:
        return shardings[name] if leaf.ndim == len(shardings[name].spec) else replicated(mesh)
    return replicated(mesh)

  return jax.tree_util.tree_map_with_path(place, shapes)
