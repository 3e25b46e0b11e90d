"""Optimiser and learning-rate schedule from a config, by parameter name."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal

import optax

from align_jax.errors import UserError, require


@dataclasses.dataclass(frozen=True)
class Group:
  """Settings for the parameters whose name matches `match` (a regular expression, searched).

  The first group that matches wins; parameters no group matches take the defaults.
  """

  match: str
  lr_scale: float = 1.0
  weight_decay: float | None = None  # None: the optimiser's


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW with a schedule.

  Attributes:
    lr: peak learning rate.
    schedule: `cosine` decays to `final_lr_scale * lr` at the last step, `rsqrt` falls as the
      inverse root of the step, `constant` stays; all rise linearly over `warmup_steps` first.
    weight_decay: decoupled, times the learning rate (Loshchilov & Hutter 2019); matrices and
      larger only: scales, biases, temperatures and other vectors are never decayed.
    clip_norm: largest global gradient norm; 0 for no clipping.
    ema: decay of the moving average of the weights; 0 for none.
    accumulate: gradients of so many batches are averaged into one update.
    groups: settings by parameter name.
  """

  lr: float = 1e-3
  schedule: Literal['cosine', 'rsqrt', 'constant'] = 'cosine'
  warmup_steps: int = 0
  final_lr_scale: float = 0.0
  weight_decay: float = 0.0
  b1: float = 0.9
  b2: float = 0.98
  eps: float = 1e-8
  clip_norm: float = 1.0
  ema: float = 0.0
  accumulate: int = 1
  groups: tuple[Group, ...] = ()

  def __post_init__(self) -> None:
    for name in ('lr', 'weight_decay', 'clip_norm', 'warmup_steps'):
      require(getattr(self, name) >= 0, f'config.optimizer.{name}', 'must be 0 or more')
    require(0 <= self.ema < 1, 'config.optimizer.ema', 'must be at least 0 and under 1')
    require(self.accumulate >= 1, 'config.optimizer.accumulate', 'must be 1 or more')


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
  """Returns the learning rate as a function of the update count, for `steps` updates in all."""
  warm = config.warmup_steps
  if warm >= steps > 0:
    raise UserError(f'config.optimizer.warmup_steps: {warm} leaves nothing of {steps} steps')
  if config.schedule == 'cosine':
    body = optax.cosine_decay_schedule(config.lr, max(1, steps - warm), config.final_lr_scale)
  elif config.schedule == 'rsqrt':
    shift = max(1, warm)
    body = lambda count: config.lr * (shift / (count + shift)) ** 0.5  # noqa: E731
  else:
    body = optax.constant_schedule(config.lr)
  if not warm:
    return body
  return optax.join_schedules([optax.linear_schedule(0.0, config.lr, warm), body], [warm])


def make_optimizer(
  config: OptimizerConfig, steps: int, axes: Mapping[str, tuple[str | None, ...]]
) -> optax.GradientTransformation:
  """Builds the optimiser for the learning parameters, `axes`: name -> logical axes.

  Raises:
    UserError: a group matches no parameter or its expression is broken; a warm-up that is too long.
  """
  labels = {name: _group_of(name, config.groups) for name in axes}
  for index, group in enumerate(config.groups):
    if index not in labels.values():
      raise UserError(
        f'config.optimizer.groups[{index}].match: {group.match!r} matches no learning parameter'
      )
  schedule = learning_rate(config, max(1, steps // config.accumulate))
  defaults = Group('', 1.0, None)
  # the vectors of stacked blocks are vectors still
  matrices = {name for name in axes if len([a for a in axes[name] if a != 'layers']) >= 2}

  def decayed(params: Any) -> Any:
    return {name: name in matrices for name in params}

  def rule(group: Group) -> optax.GradientTransformation:
    decay = config.weight_decay if group.weight_decay is None else group.weight_decay
    return optax.chain(
      optax.scale_by_adam(config.b1, config.b2, config.eps),
      optax.add_decayed_weights(decay, mask=decayed) if decay else optax.identity(),
      optax.scale_by_learning_rate(lambda count: schedule(count) * group.lr_scale),
    )

  if config.groups:
    rules = {i: rule(g) for i, g in enumerate(config.groups)} | {-1: rule(defaults)}
    update = optax.partition(rules, labels)
  else:
    update = rule(defaults)
  clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
  chained = optax.chain(clip, update)
  if config.accumulate > 1:
    return optax.MultiSteps(chained, config.accumulate).gradient_transformation()
  return chained


def _group_of(name: str, groups: tuple[Group, ...]) -> int:
  for index, group in enumerate(groups):
    try:
      if re.search(group.match, name):
        return index
    except re.error as error:
      raise UserError(
        f'config.optimizer.groups[{index}].match: {group.match!r} is no regular expression: {error}'
      ) from error
  return -1
