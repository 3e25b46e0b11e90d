"""The training state and the step that moves it. Knows no method: the objective does."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from align_jax.models.flat import Params, Skeleton
from align_jax.parallel.mesh import param_sharding, replicated
from align_jax.train.objective import Batch, Metrics, Objective


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
    given: weights to start from, by name; parameters that are missing here start fresh.
  """
  shardings = {
    name: param_sharding(mesh, skeleton.axes[name], shape.shape, rules)
    for name, shape in skeleton.shapes.items()
  }

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

  given = {n: jax.device_put(p, shardings[n]) for n, p in (given or {}).items()}
  shapes = jax.eval_shape(init, key, given)
  return jax.jit(init, out_shardings=state_shardings(shapes, shardings, mesh))(key, given)


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


def make_train_step(
  skeleton: Skeleton,
  objective: Objective,
  optimizer: optax.GradientTransformation,
  *,
  ema: float,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """Returns the jitted step `(state, batch) -> (state, metrics)`; the state is donated."""

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    # the key is data of the state, not a constant of the program: one compilation serves all seeds
    step_key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)

    def loss_of(learn: Params) -> tuple[Array, Metrics]:
      return objective.loss(skeleton.bind({**state.frozen, **learn}), batch, step_key)

    (loss, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(state.learn)
    updates, opt_state = optimizer.update(grads, state.optimizer, state.learn)
    learn = optax.apply_updates(state.learn, updates)
    average = state.average
    if average is not None:
      # the warm-up of the decay keeps early averages from remembering the random start
      decay = jnp.minimum(ema, (1.0 + state.step) / (10.0 + state.step))
      average = jax.tree.map(lambda a, p: a * decay + p * (1 - decay), average, learn)
    metrics = {'loss': loss, 'grad_norm': optax.global_norm(grads), **metrics}
    new = dataclasses.replace(
      state, step=state.step + 1, learn=learn, optimizer=opt_state, average=average
    )
    return new, metrics

  return jax.jit(train_step, donate_argnums=0)
