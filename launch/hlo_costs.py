"""Counts what an HLO module does in one run: FLOPs, HBM traffic, collectives; loops multiplied.

Everything is per chip. FLOPs are those of matrix products and convolutions (two for each
multiply-add), which is what a chip's peak is given for, and what kernels say of themselves.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Mapping

import numpy as np

from launch.hlo import Computation, Instruction, Module
from launch.hlo_loops import trip_count
from launch.hlo_memory import COLLECTIVES, is_continuation, traffic


@dataclasses.dataclass(frozen=True)
class Moved:
  """Collectives of one kind: how many, and the bytes each chip sends over its links."""

  count: float
  bytes: float


@dataclasses.dataclass(frozen=True)
class Cost:
  """What a run of a computation costs, per chip.

  Attributes:
    flops: of matrix products, convolutions and kernels.
    traffic: bytes through HBM, an estimate.
    collectives: kind -> number and bytes.
    unknown_loops: loops whose number of rounds is not known; they are counted once.
    unknown_kernels: custom calls that do not say what they cost.
  """

  flops: float = 0.0
  traffic: float = 0.0
  collectives: Mapping[str, Moved] = dataclasses.field(default_factory=dict)
  unknown_loops: tuple[str, ...] = ()
  unknown_kernels: tuple[str, ...] = ()

  @property
  def moved(self) -> float:
    """Bytes each chip sends over its links."""
    return sum(m.bytes for m in self.collectives.values())

  def times(self, n: int) -> 'Cost':
    """The cost of `n` runs."""
    moved = {k: Moved(m.count * n, m.bytes * n) for k, m in self.collectives.items()}
    return dataclasses.replace(
      self, flops=self.flops * n, traffic=self.traffic * n, collectives=moved
    )


def total(costs: Iterable[Cost]) -> Cost:
  """Adds costs up."""
  flops = moved_through = 0.0
  collectives: dict[str, Moved] = {}
  loops: dict[str, None] = {}
  kernels: dict[str, None] = {}
  for cost in costs:
    flops += cost.flops
    moved_through += cost.traffic
    for kind, moved in cost.collectives.items():
      sofar = collectives.get(kind, Moved(0, 0))
      collectives[kind] = Moved(sofar.count + moved.count, sofar.bytes + moved.bytes)
    loops |= dict.fromkeys(cost.unknown_loops)
    kernels |= dict.fromkeys(cost.unknown_kernels)
  return Cost(flops, moved_through, collectives, tuple(loops), tuple(kernels))


@dataclasses.dataclass(frozen=True)
class Counter:
  """Walks a module from its entry; a computation is counted once and multiplied where it is run."""

  module: Module
  _done: dict[str, Cost] = dataclasses.field(default_factory=dict)
  _fused: dict[str, Cost] = dataclasses.field(default_factory=dict)

  def cost(self) -> Cost:
    """The cost of one run of the program."""
    return self._computation(self.module.entry)

  @property
  def scheduled(self) -> list[Computation]:
    """The computations that `cost` met which are no fusions: whose values lie in memory."""
    return [self.module[name] for name in self._done]

  def _computation(self, computation: Computation) -> Cost:
    if computation.name not in self._done:
      self._done[computation.name] = total(self._instruction(computation, i) for i in computation)
    return self._done[computation.name]

  def _instruction(self, computation: Computation, instruction: Instruction) -> Cost:
    opcode = instruction.opcode
    if opcode == 'while':
      n = trip_count(self.module, computation, instruction)
      body = self._computation(self.module[instruction.called('body')[0]])
      if n is None:
        name = instruction.op_name or instruction.name
        return dataclasses.replace(body, unknown_loops=(*body.unknown_loops, name))
      return body.times(n)
    if opcode == 'conditional':
      names = instruction.called('branch_computations', 'true_computation', 'false_computation')
      branches = [self._computation(self.module[name]) for name in names]
      return max(branches, key=lambda c: (c.flops, c.traffic))
    if opcode == 'call':
      return self._computation(self.module[instruction.called('to_apply', 'calls')[0]])
    own = self._arithmetic(computation, instruction)
    return dataclasses.replace(
      own, traffic=own.traffic + traffic(self.module, computation, instruction)
    )

  def _arithmetic(self, computation: Computation, instruction: Instruction) -> Cost:
    """FLOPs and collectives of one instruction, with those of what is fused into it."""
    opcode = instruction.opcode
    if opcode in ('fusion', 'async-start'):
      name = instruction.called('calls')[0]
      if name not in self._fused:
        inner = self.module[name]
        self._fused[name] = total(self._arithmetic(inner, i) for i in inner)
      return self._fused[name]
    if opcode == 'dot':
      return Cost(flops=dot_flops(computation, instruction))
    if opcode == 'convolution':
      return Cost(flops=convolution_flops(computation, instruction))
    if opcode == 'custom-call':
      return _kernel(computation, instruction)
    kind = opcode.removesuffix('-start')
    if kind in COLLECTIVES and not is_continuation(computation):
      return Cost(collectives=collective(self.module, computation, instruction, kind))
    return Cost()


def dot_flops(computation: Computation, dot: Instruction) -> float:
  """FLOPs of a `dot`."""
  left = computation[dot.operands[0]].shapes[0]
  contracted = re.findall(r'\d+', dot.attribute('lhs_contracting_dims'))
  return 2.0 * dot.shapes[0].elements * math.prod(left.dims[int(d)] for d in contracted)


def convolution_flops(computation: Computation, conv: Instruction) -> float:
  """FLOPs of a `convolution`, the form that the TPU gives matrix products too.

  Positions where the window meets padding or the holes of a dilation cost nothing: a batched matrix
  product is written as a dilated window that meets one element each time.
  """
  labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', conv.attributes)
  if not labels:
    return 0.0
  left, right, out = labels.groups()
  image, kernel = (computation[o].shapes[0].dims for o in conv.operands[:2])
  result = conv.shapes[0].dims
  stride, pad, image_dilation, kernel_dilation = _window(conv)
  pairs = 1
  for k in range(len(left) - 2):
    digit = str(k)
    pairs *= _meetings(
      image[left.index(digit)],
      kernel[right.index(digit)],
      result[out.index(digit)],
      stride[k] if stride else 1,
      pad[k] if pad else (0, 0),
      image_dilation[k] if image_dilation else 1,
      kernel_dilation[k] if kernel_dilation else 1,
    )
  groups = int(conv.attribute('batch_group_count') or 1)
  # the kernel's input features are those of one feature group already
  each = kernel[right.index('i')] * kernel[right.index('o')]
  return 2.0 * pairs * each * image[left.index('b')] / groups


def _window(conv: Instruction) -> tuple[list[int], list[tuple[int, int]], list[int], list[int]]:
  """Stride, padding, dilation of the image, dilation of the kernel; one entry for a dimension."""
  text = conv.attribute('window')

  def field(name: str) -> list[str]:
    found = re.search(rf'\b{name}=([\dx_\-]+)', text)
    return found[1].split('x') if found else []

  pads = [(int(low), int(high)) for low, high in (p.split('_') for p in field('pad'))]
  stride, image, kernel = (
    [int(v) for v in field(n)] for n in ('stride', 'lhs_dilate', 'rhs_dilate')
  )
  return stride, pads, image, kernel


@functools.lru_cache(maxsize=4096)
def _meetings(
  image: int,
  kernel: int,
  result: int,
  stride: int,
  pad: tuple[int, int],
  image_dilation: int,
  kernel_dilation: int,
) -> int:
  """Pairs of a result's and a kernel's position, in one dimension, that meet a real element."""
  if pad == (0, 0) and image_dilation == 1:
    return result * kernel
  few, many = sorted(((result, stride), (kernel, kernel_dilation)))
  places = np.arange(many[0]) * many[1] - pad[0]
  last = (image - 1) * image_dilation
  count = 0
  for k in range(few[0]):
    at = places + k * few[1]
    count += int(np.count_nonzero((at >= 0) & (at <= last) & (at % image_dilation == 0)))
  return count


def _kernel(computation: Computation, call: Instruction) -> Cost:
  """What a Pallas kernel says it costs; its HBM bytes are counted from its operands."""
  said = re.search(r'"cost_estimate":\{([^}]*)\}', call.attributes)
  flops = re.search(r'"flops":"?(\d+)', said[1]) if said else None
  if flops:
    return Cost(flops=float(flops[1]))
  target = re.search(r'custom_call_target="([^"]*)"', call.attributes)
  silent = target is not None and target[1] == 'tpu_custom_call'
  return Cost(unknown_kernels=(call.op_name or call.name,)) if silent else Cost()


def collective(
  module: Module, computation: Computation, instruction: Instruction, kind: str
) -> dict[str, Moved]:
  """What a collective sends over each chip's links, by the ring formulas."""
  root = computation.root
  if kind == 'all-reduce' and root.opcode == 'dynamic-slice':
    # the TPU's fused reduce-scatter: an all-reduce of which each chip keeps its slice
    kind = 'reduce-scatter' if root.operands[0] == instruction.name else kind
  size = sum(
    s.size
    for o in instruction.operands
    for s in computation[o].shapes
    if o in computation.instructions
  )
  if kind == 'collective-permute':
    return {kind: Moved(1, size)}
  n = group_size(instruction.attributes, module.partitions)
  if n <= 1:
    return {}
  share = (n - 1) / n
  factor = {'all-reduce': 2 * share, 'all-gather': n - 1, 'collective-broadcast': 1.0}
  return {kind: Moved(1, size * factor.get(kind, share))}


def group_size(attributes: str, partitions: int) -> int:
  """How many devices take part in one group of a collective."""
  found = re.search(r'replica_groups=\{\{([\d,]*)\}', attributes)
  if found:
    return len(found[1].split(','))
  found = re.search(r'replica_groups=\[([\d,]+)\]<=', attributes)
  if found:
    return int(found[1].split(',')[-1])
  found = re.search(r'replica_groups=mesh\[(.*?)\][^{]*\{(.*?)\}', attributes)
  if found:
    sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", found[1])}
    named = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found[2])
    return math.prod(int(part) if part else sizes[axis] for axis, part in named)
  return partitions
