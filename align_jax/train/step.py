"""The training step. Knows no method: the objective does.

A step embeds the batch, takes the loss over all of it, and pulls the gradient back. The towers run
per device on its own examples (`jax.shard_map`), all at once or a few at a time; the loss sees the
whole batch either way. With few at a time the towers run twice, first for the embeddings alone,
then once more part by part with the loss's gradient in hand: gradient caching (Gao et al. 2021,
arXiv 2101.06983), the exact gradient of any batch in the memory of a small one.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from align_jax.errors import UserError, require
from align_jax.losses.table import PLAIN, Losses
from align_jax.models.attention import backend_of
from align_jax.models.flat import Params, Skeleton
from align_jax.models.stack import Execution, Remat
from align_jax.parallel import ring
from align_jax.parallel.fsdp import in_parts, joined, make_fetch, manual_spec, summed, varying
from align_jax.parallel.mesh import BATCH_AXES
from align_jax.train.objective import Batch, Metrics, Objective
from align_jax.train.state import TrainState, param_shardings


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
  """How a step is computed: memory and time, never the result beyond rounding.

  Attributes:
    scan: the blocks of a tower as one loop, whose program does not grow with depth; else unrolled,
      which small models on a CPU are quicker with.
    remat: what the backward pass computes again: `none`, `dots` element-wise work and no matrix
      product, `full` every block from its input.
    micro_batch: examples that a device embeds at a time (gradient caching); 0: all it has.
    loss: `plain` holds the logits of the whole batch, `ring` one block of them at a time.
    rows: of a block of the ring at a time; 0: all.
    travel: dtype in which the shards of matrices are gathered; bfloat16 halves the traffic, and
      with bfloat16 towers rounds nothing that was not rounded before.
  """

  scan: bool = False
  remat: Remat = 'none'
  micro_batch: int = 0
  loss: Literal['plain', 'ring'] = 'plain'
  rows: int = 0
  travel: Literal['float32', 'bfloat16'] = 'float32'

  def __post_init__(self) -> None:
    require(self.micro_batch >= 0, 'config.compute.micro_batch', 'must be 0 or more')
    require(self.rows >= 0, 'config.compute.rows', 'must be 0 or more')


def check_micro_batch(compute: ComputeConfig, batch_size: int, mesh: Mesh) -> None:
  """Raises a UserError unless a device's examples divide into parts."""
  own = batch_size // (mesh.shape['data'] * mesh.shape['fsdp'])
  if compute.micro_batch and own % compute.micro_batch:
    fits = max(n for n in range(1, compute.micro_batch + 1) if own % n == 0)
    raise UserError(
      f'config.compute.micro_batch: a device has {own} examples, which do not divide into parts of '
      f'{compute.micro_batch}; use {fits}'
    )


def make_train_step(
  skeleton: Skeleton,
  objective: Objective,
  optimizer: optax.GradientTransformation,
  *,
  mesh: Mesh,
  rules: Mapping[str, str],
  ema: float,
  compute: ComputeConfig = ComputeConfig(),
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """Returns the jitted step `(state, batch) -> (state, metrics)`; the state is donated.

  Args:
    skeleton: the model without weights.
    objective: the method.
    optimizer: the update rule over the learning parameters.
    mesh: the devices.
    rules: logical axis -> mesh axis.
    ema: decay of the moving average, where the state has one.
    compute: see `ComputeConfig`.
  """
  towers = _Towers(skeleton, objective, mesh, rules, compute)
  losses = _losses(mesh, compute)

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    # the key is data of the state, not a constant of the program: one compilation serves all seeds
    step_key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    batch = objective.prepare(batch, step_key)
    outputs, pull_back = towers.embed(state.learn, state.frozen, batch)

    def loss_of(learn: Params, outputs: Batch) -> tuple[Array, Metrics]:
      model = skeleton.bind({**state.frozen, **learn})
      return objective.loss(model, outputs, batch, losses)

    value_and_grad = jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)
    (loss, metrics), (direct, cotangents) = value_and_grad(state.learn, outputs)
    grads = jax.tree.map(jnp.add, direct, pull_back(cotangents))
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


def _losses(mesh: Mesh, compute: ComputeConfig) -> Losses:
  if compute.loss == 'plain':
    return PLAIN
  around = ring.Ring(mesh, BATCH_AXES, compute.rows)
  names = [field.name for field in dataclasses.fields(Losses)]
  return Losses(**{name: functools.partial(getattr(ring, name), around) for name in names})


class _Towers:
  """Embeds a batch, every device its own examples, and pulls the outputs' gradient back."""

  def __init__(
    self,
    skeleton: Skeleton,
    objective: Objective,
    mesh: Mesh,
    rules: Mapping[str, str],
    compute: ComputeConfig,
  ):
    self._skeleton, self._objective, self._mesh = skeleton, objective, mesh
    self._size = compute.micro_batch
    shardings = param_shardings(skeleton, mesh, rules)
    self._specs = {name: manual_spec(sharding.spec) for name, sharding in shardings.items()}
    fetch = make_fetch(self._specs, mesh, compute.travel)
    # a Pallas kernel cannot be split by the compiler, as heads over `tensor` would be
    platform = mesh.devices.flat[0].platform if mesh.shape['tensor'] == 1 else 'cpu'
    self._execution = Execution(compute.scan, compute.remat, fetch, backend_of(platform))

  def embed(
    self, learn: Params, frozen: Params, batch: Batch
  ) -> tuple[Batch, Callable[[Batch], Params]]:
    """Returns the outputs of the batch, and what makes gradients of `learn` of theirs."""
    if not self._size:
      run = self._mapped(self._run, (learn, frozen), 1)
      outputs, pull_back = jax.vjp(lambda learn: run(learn, frozen, batch), learn)
      return outputs, lambda cotangents: pull_back(cotangents)[0]
    outputs = self._mapped(self._run_in_parts, (learn, frozen), 1)(learn, frozen, batch)

    def replay(cotangents: Batch) -> Params:
      run = self._mapped(self._replay, (learn, frozen), 2, like=learn)
      return run(learn, frozen, batch, cotangents)

    return outputs, replay

  def _mapped(
    self, run: Callable, params: tuple[Params, ...], batches: int, like: Params | None = None
  ) -> Any:
    """`run` per device: parameters in their shards, batches split by examples.

    Args:
      run: takes tables of parameters, then batches; returns rows for examples, or gradients.
      params: the tables of parameters, for their names.
      batches: how many it takes.
      like: the parameters that it returns gradients of; None: it returns rows.
    """
    rows = PartitionSpec(BATCH_AXES)
    named = [{name: self._specs[name] for name in table} for table in (*params, like or {})]
    return jax.shard_map(
      run,
      mesh=self._mesh,
      in_specs=(*named[:-1], *(rows,) * batches),
      out_specs=rows if like is None else named[-1],
      axis_names=set(BATCH_AXES),
    )

  def _run(self, learn: Params, frozen: Params, batch: Batch) -> Batch:
    model = self._skeleton.bind({**frozen, **learn}, self._execution)
    return self._objective.embed(model, batch)

  def _run_in_parts(self, learn: Params, frozen: Params, batch: Batch) -> Batch:
    parts = in_parts(batch, self._size)
    return joined(jax.lax.map(lambda part: self._run(learn, frozen, part), parts))

  def _replay(self, learn: Params, frozen: Params, batch: Batch, cotangents: Batch) -> Params:
    # each device sums up its own parts first: one exchange for the batch, not one for each part
    learn = {name: varying(p, self._specs[name]) for name, p in learn.items()}
    zeros = jax.tree.map(jnp.zeros_like, learn)

    def add(total: Params, part: tuple[Batch, Batch]) -> tuple[Params, None]:
      batch, cotangents = part
      _, pull_back = jax.vjp(lambda learn: self._run(learn, frozen, batch), learn)
      return jax.tree.map(jnp.add, total, pull_back(cotangents)[0]), None

    parts = in_parts(batch, self._size), in_parts(cotangents, self._size)
    total, _ = jax.lax.scan(add, zeros, parts)
    return {n: summed(gradient, self._specs[n]) for n, gradient in total.items()}
