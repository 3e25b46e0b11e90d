"""A model's parameters as one flat table: name -> array.

Everything outside the models (optimiser groups, checkpoints, sharding, import and export) speaks of
a parameter by its name, the attribute path joined by '/', such as
`image/blocks/layer/attention/qkv/kernel`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from align_jax.models.decoder import GroupedAttention
from align_jax.models.layers import Attention
from align_jax.models.stack import Execution, Stack, name_of

Params = dict[str, Any]  # name -> jax.Array (or ShapeDtypeStruct)


def params_of(model: nnx.Module) -> Params:
  """Returns every parameter by name, sorted by name."""
  flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
  return dict(sorted((name_of(path), variable[...]) for path, variable in flat))


def axes_of(model: nnx.Module) -> dict[str, tuple[str | None, ...]]:
  """Returns the logical axis names of every parameter by name."""
  flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
  return {name_of(path): variable.get_metadata()['axes'] for path, variable in flat}


class Skeleton:
  """A model without its weights: knows names, shapes and axes, and takes weights on a call.

  Built without computing anything (`jax.eval_shape`), so that a model of any size costs nothing
  until its parameters are created where they belong.
  """

  def __init__(self, create: Callable[[nnx.Rngs], nnx.Module]):
    self._create = create
    model = nnx.eval_shape(lambda: create(nnx.Rngs(0)))
    self.axes = axes_of(model)
    # through Any: the checker cannot follow the variadic result
    split: Any = nnx.split(model, nnx.Param, ...)
    graphdef, params, rest = split
    self._graphdef: Any = graphdef
    if jax.tree.leaves(rest):
      raise TypeError('a model may hold parameters only, no other state')
    stacks = [path for path, module in nnx.iter_modules(model) if isinstance(module, Stack)]
    self._stacks = tuple(f'{name_of(path)}/' for path in stacks)
    self._leaves = [(name_of(path), path, leaf) for path, leaf in nnx.to_flat_state(params)]
    shapes = {name: leaf.get_value() for name, _, leaf in self._leaves}
    self.shapes: Params = dict(sorted(shapes.items()))

  def init(self, key: jax.Array) -> Params:
    """Creates the parameters; call it under `jit` with output shardings."""
    return params_of(self._create(nnx.Rngs(params=key)))

  def bind(self, params: Mapping[str, Any], execution: Execution = Execution()) -> Any:
    """Returns the model holding `params`; cheap, made for use inside a traced function.

    Args:
      params: by name, as they are kept: `execution.fetch` makes of them what layers compute with.
      execution: how the model is to be computed.
    """
    flat = []
    for name, path, variable in self._leaves:
      value = params[name]
      # those of blocks are fetched when their block's turn comes
      if execution.fetch is not None and not name.startswith(self._stacks):
        value = execution.fetch(name, value)
      flat.append((path, variable.replace(value)))
    model = nnx.merge(self._graphdef, nnx.from_flat_state(flat), {})
    for path, module in nnx.iter_modules(model):
      if isinstance(module, Stack):
        module.execution, module.prefix = execution, f'{name_of(path)}/layer'
      elif isinstance(module, Attention | GroupedAttention):
        module.backend = execution.attention
    return model


def count(params: Mapping[str, Any]) -> int:
  """Returns how many numbers the parameters hold."""
  return sum(int(p.size) for p in params.values())
