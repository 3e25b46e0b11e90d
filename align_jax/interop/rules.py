"""A rule says which tensors of another library are which parameter of ours, in both directions.

A table of rules is all that import and export know of an architecture. What a rule does to numbers
(transpose, join, split, stack by layer) is a permutation, so that both ways and back is the same
bit for bit.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

Form = Literal['same', 'linear', 'patches']
Shape = tuple[int, ...]

STACKED = '/blocks/layer/'  # in the names of parameters whose first axis is the layer


@dataclasses.dataclass(frozen=True)
class Rule:
  """Some parameters of ours and the tensors elsewhere that hold the same numbers.

  Where either side has several, they are joined along the axis of the outputs: our `qkv` is their
  `q_proj`, `k_proj` and `v_proj`; our `query` and `key_value` are their `in_proj`.

  Attributes:
    ours: parameter names.
    theirs: tensor names; `{i}` stands for the layer.
    form: `same`; `linear`, a matrix `[out, in]` there and `[in, out]` here; `patches`, a
      convolution `[out, channel, row, column]` there and `[row · column · channel, out]` here.
    lead: axes of length 1 that a tensor has before ours.
  """

  ours: tuple[str, ...]
  theirs: tuple[str, ...]
  form: Form = 'same'
  lead: int = 0

  @property
  def stacked(self) -> bool:
    return STACKED in self.ours[0]


# our name -> shape, all layers in one
Shapes = Mapping[str, Shape]
Read = Callable[[str], np.ndarray]


def tensor_shapes(rule: Rule, shapes: Shapes, patch: int) -> list[Shape]:
  """The shape of each of `rule.theirs` (of one layer), given ours."""
  whole = _whole_shape(rule, shapes, patch)
  parts = len(rule.theirs)
  return [(*(1,) * rule.lead, whole[0] // parts, *whole[1:]) if whole else (1,) * rule.lead] * parts


def layers(rule: Rule, shapes: Shapes) -> int | None:
  """How many layers a rule goes over; None where it is about no block."""
  return shapes[rule.ours[0]][0] if rule.stacked else None


def import_layer(rule: Rule, shapes: Shapes, read: Read, layer: int | None) -> list[np.ndarray]:
  """Reads one layer of a rule: an array for each of `rule.ours`, without the axis of layers."""
  tensors = [read(name_at(name, layer)) for name in rule.theirs]
  tensors = [tensor.reshape(tensor.shape[rule.lead :]) for tensor in tensors]
  whole = tensors[0] if len(tensors) == 1 else np.concatenate(tensors)
  if rule.form == 'linear':
    whole = whole.T
  elif rule.form == 'patches':
    whole = whole.transpose(2, 3, 1, 0).reshape(-1, whole.shape[0])
  if len(rule.ours) == 1:
    return [whole]
  ends = np.cumsum([shapes[name][-1] for name in rule.ours])[:-1]
  return np.split(whole, ends, axis=-1)


def export_layer(
  rule: Rule, read: Callable[[str, int | None], np.ndarray], layer: int | None, patch: int
) -> Iterator[tuple[str, np.ndarray]]:
  """Writes one layer of a rule: each of `rule.theirs` with its tensor; `read(ours, layer)`."""
  arrays = [read(name, layer) for name in rule.ours]
  whole = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=-1)
  if rule.form == 'linear':
    whole = whole.T
  elif rule.form == 'patches':
    whole = whole.reshape(patch, patch, -1, whole.shape[-1]).transpose(3, 2, 0, 1)
  for name, tensor in zip(rule.theirs, _pieces(whole, len(rule.theirs)), strict=True):
    yield name_at(name, layer), tensor.reshape((1,) * rule.lead + tensor.shape)


def name_at(name: str, layer: int | None) -> str:
  """The name of a tensor in a layer."""
  return name if layer is None else name.replace('{i}', str(layer))


def prefixed(rules: Sequence[Rule], prefix: str) -> list[Rule]:
  """The same rules for tensors whose names begin with `prefix`."""
  return [dataclasses.replace(r, theirs=tuple(prefix + name for name in r.theirs)) for r in rules]


def linear(ours: str, *theirs: str, bias: bool = True) -> list[Rule]:
  """A linear layer, its bias included; several of theirs are one of ours."""
  rules = [Rule((f'{ours}/kernel',), tuple(f'{name}.weight' for name in theirs), 'linear')]
  if bias:
    rules.append(Rule((f'{ours}/bias',), tuple(f'{name}.bias' for name in theirs)))
  return rules


def norm(ours: str, theirs: str) -> list[Rule]:
  """A layer norm."""
  return [
    Rule((f'{ours}/scale',), (f'{theirs}.weight',)),
    Rule((f'{ours}/bias',), (f'{theirs}.bias',)),
  ]


def _whole_shape(rule: Rule, shapes: Shapes, patch: int) -> Shape:
  """The shape of all of `rule.theirs` joined, in their orientation, without leading ones."""
  ours = [shapes[name][1:] if rule.stacked else shapes[name] for name in rule.ours]
  joined = (*ours[0][:-1], sum(shape[-1] for shape in ours)) if ours[0] else ()
  if rule.form == 'linear':
    return joined[::-1]
  if rule.form == 'patches':
    return (joined[1], joined[0] // patch**2, patch, patch)
  return joined


def _pieces(whole: np.ndarray, count: int) -> list[np.ndarray]:
  return [whole] if count == 1 else np.split(whole, count)


def numbers(shape: Shape) -> int:
  """How many numbers a tensor of this shape holds."""
  return math.prod(shape)
