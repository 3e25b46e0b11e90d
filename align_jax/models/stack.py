"""Blocks one after the other, as one loop over stacked parameters."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from align_jax.models.attention import KEPT, Backend

# (parameter name, its value as it is kept) -> the array that layers compute with
Fetch = Callable[[str, Array], Array]
Remat = Literal['none', 'dots', 'full']

FETCHED = 'fetched'  # the name that a fetched parameter has for rematerialisation


@dataclasses.dataclass(frozen=True)
class Execution:
  """How a model is computed, and never what.

  Attributes:
    scan: one loop over the blocks: a program whose size does not grow with depth. Else the loop is
      unrolled, which small models on a CPU are quicker with.
    remat: what the backward pass computes again: `none` nothing, `dots` element-wise work and no
      matrix product, `full` every block from its input.
    fetch: makes parameters of what is kept of them, for instance gathers shards; None: they are
      whole. Parameters of blocks are fetched one block at a time, forward and backward.
    attention: see `models.attention.attend`.
  """

  scan: bool = False
  remat: Remat = 'none'
  fetch: Fetch | None = None
  attention: Backend = 'plain'


class Stack(nnx.Module):
  """`depth` blocks of one kind; their parameters have a first axis `layers`.

  Attributes:
    layer: one block whose parameters are those of all blocks, stacked.
    execution, prefix: see `Execution`; set when a model is bound to parameters.
  """

  def __init__(self, create: Callable[[nnx.Rngs], nnx.Module], depth: int, rngs: nnx.Rngs):
    blocks = [nnx.split(create(rngs)) for _ in range(depth)]
    self.depth = depth
    self.layer = nnx.merge(blocks[0][0], _stacked([state for _, state in blocks]))
    self.execution = Execution()
    self.prefix = ''

  def __call__(self, x: Array, *inputs: Any) -> Array:
    """Runs `x` through the blocks, each called as `block(x, *inputs)`."""
    run, params = self._runner(lambda block, x: block(x, *inputs))
    if self.execution.scan:
      return jax.lax.scan(run, x, params)[0]
    for layer in _layers(params, self.depth):
      x, _ = run(x, layer)
    return x

  def last(self, x: Array, *inputs: Any) -> Array:
    """The same, but the last block is called as `block.last(x, *inputs)`, which may do less work.

    As one loop all blocks are called alike: to take the last out would copy the parameters.
    """
    if self.execution.scan:
      return self(x, *inputs)
    run, params = self._runner(lambda block, x: block(x, *inputs))
    end, _ = self._runner(lambda block, x: block.last(x, *inputs))
    *before, layer = _layers(params, self.depth)
    for own in before:
      x, _ = run(x, own)
    return end(x, layer)[0]

  def _runner(self, call: Callable[[Any, Array], Array]) -> tuple[Callable, Any]:
    """What runs one block, in the manner of `jax.lax.scan`, and the parameters of all."""
    graphdef, params = nnx.split(self.layer)
    execution = self.execution

    def run(x: Array, layer: Any) -> tuple[Array, None]:
      if execution.fetch is not None:
        layer = _fetched(layer, execution.fetch, self.prefix)
      return call(nnx.merge(graphdef, layer), x), None

    return rematerialised(run, execution.remat, fetches=execution.fetch is not None), params

  def step(self, x: Array, state: Any, *inputs: Any) -> tuple[Array, Any]:
    """Runs `x` through the blocks by their method `step(x, state, *inputs)`, without a gradient.

    Args:
      x: what goes through all blocks.
      state: of all blocks, stacked along the first axis; each block is given its own.

    Returns: `x` after the last block, and what the blocks returned as their state.
    """
    graphdef, params = nnx.split(self.layer)
    execution = self.execution

    def run(x: Array, both: tuple[Any, Any]) -> tuple[Array, Any]:
      layer, own = both
      if execution.fetch is not None:
        layer = _fetched(layer, execution.fetch, self.prefix)
      block: Any = nnx.merge(graphdef, layer)
      return block.step(x, own, *inputs)

    if execution.scan:
      return jax.lax.scan(run, x, (params, state))
    states = []
    for layer, own in zip(_layers(params, self.depth), _layers(state, self.depth), strict=True):
      x, own = run(x, (layer, own))
      states.append(own)
    return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def _layers(params: Any, depth: int) -> Iterator[Any]:
  """Yields the parameters of one block after the other."""
  leaves, structure = jax.tree.flatten(params)
  # split at once: the gradient is one concatenation, where slices would be padded and added up
  parts = [jax.lax.split(leaf, (1,) * depth) for leaf in leaves]
  for layer in zip(*parts, strict=True):
    yield jax.tree.unflatten(structure, [jnp.squeeze(leaf, 0) for leaf in layer])


def rematerialised(run: Callable, remat: Remat, *, fetches: bool) -> Callable:
  """Returns `run` such that its backward pass computes again what `remat` says.

  What was fetched is never kept for the backward pass but fetched again: kept, the gathered
  parameters of all blocks would lie in memory at once.
  """
  if remat == 'none' and not fetches:
    return run
  policies = jax.checkpoint_policies
  policy = {
    'none': policies.save_anything_except_these_names(FETCHED),
    # the products with weights, and of attention its weights and result rather than its logits; a
    # parameter's cast or gather is no matrix product, so it is fetched again as well
    'dots': policies.save_from_both_policies(
      policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(KEPT)
    ),
    'full': policies.nothing_saveable,
  }[remat]
  return jax.checkpoint(run, policy=policy, prevent_cse=False)


def name_of(path: tuple) -> str:
  """The name of a parameter from the path of attributes that leads to it."""
  return '/'.join(str(part) for part in path)


def _stacked(states: list[Any]) -> Any:
  flats = [nnx.to_flat_state(state) for state in states]
  out = []
  for leaves in zip(*flats, strict=True):
    path, first = leaves[0]
    value = jnp.stack([variable[...] for _, variable in leaves])
    out.append((path, nnx.Param(value, axes=('layers', *first.get_metadata()['axes']))))
  return nnx.from_flat_state(out)


def _fetched(layer: Any, fetch: Fetch, prefix: str) -> Any:
  out = []
  for path, variable in nnx.to_flat_state(layer):
    value = checkpoint_name(fetch(f'{prefix}/{name_of(path)}', variable.get_value()), FETCHED)
    out.append((path, variable.replace(value)))
  return nnx.from_flat_state(out)
