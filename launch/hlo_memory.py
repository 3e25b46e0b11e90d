"""Bytes of an HLO module: what moves through HBM, and which buffers are large."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from launch.hlo import Computation, Instruction, Module, Shape

# Instructions that move nothing by themselves: names for parts of what is there, or calls whose
# bodies are counted on their own.
FREE = frozenset(
  {
    'parameter',
    'constant',
    'get-tuple-element',
    'tuple',
    'bitcast',
    'after-all',
    'partition-id',
    'replica-id',
    'opt-barrier',
    'while',
    'conditional',
    'call',
    'domain',
    'add-dependency',
    'get-dimension-size',
  }
)
# Custom calls of the TPU compiler that only name memory; the collective's own bytes are at its
# start.
_FREE_TARGETS = (
  'AllocateBuffer',
  'ConcatBitcast',
  'AsyncCollectiveStart',
  'AsyncCollectiveDone',
  'Sharding',
  'SPMDFullToShardShape',
  'SPMDShardToFullShape',
)
COLLECTIVES = (
  'all-reduce',
  'all-gather',
  'reduce-scatter',
  'all-to-all',
  'ragged-all-to-all',
  'collective-permute',
  'collective-broadcast',
)
_SLICES = ('dynamic-slice', 'slice', 'gather')
_ROOT = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Buffer:
  """A large array in HBM.

  Attributes:
    size: bytes per chip, with padding.
    shape: as HLO writes it.
    count: how many such arrays this line makes (they need not live at once).
    op_name: JAX operation.
    source: `file:line` in this project where there is one.
  """

  size: int
  shape: str
  count: int
  op_name: str
  source: str


def is_free(instruction: Instruction) -> bool:
  """Whether an instruction moves nothing and makes no array of its own."""
  opcode = instruction.opcode
  if opcode == 'custom-call':
    return any(f'custom_call_target="{t}"' in instruction.attributes for t in _FREE_TARGETS)
  return opcode in FREE or opcode.endswith(('-done', '-update'))


def is_continuation(computation: Computation) -> bool:
  """Whether a fused computation carries on a collective that another one began.

  The TPU compiler spreads a collective over several fusions, which hand the flags of its start on;
  each of them shows the collective again.
  """
  return any(s.space == 2 for p in computation.parameters.values() for s in p.shapes)


def traffic(module: Module, computation: Computation, instruction: Instruction) -> int:
  """Bytes one execution of an instruction (not inside a fusion) moves through HBM, per chip.

  Operands that are read and results that are written, where they are in HBM; of a slice, or of an
  update in place, only the part that is touched.
  """
  opcode = instruction.opcode
  if is_free(instruction):
    return 0
  if opcode in ('fusion', 'async-start'):
    inner = module[instruction.called('calls')[0]]
    aliased = 'output_to_operand_aliasing={{}' in instruction.attributes  # the whole result
    written = 0 if aliased else _written(module, inner, instruction)
    return written + sum(
      _read(module, inner, inner.parameters[k], shape)
      for k, shape in enumerate(_operand_shapes(computation, instruction))
    )
  read = [s.hbm for s in _operand_shapes(computation, instruction)]
  written = sum(s.hbm for s in instruction.shapes)
  if opcode == 'copy-start':  # (to, from, flag)
    return written
  if opcode == 'slice-start':  # ((from), to, flag)
    source, target = instruction.shapes[0], instruction.shapes[1]
    return target.hbm + (target.padded if source.space == 0 else 0)
  if opcode in _SLICES:
    sliced = computation[instruction.operands[0]].shapes
    inside = instruction.shapes[0].padded if sliced and sliced[0].space == 0 else 0
    return written + min(inside, read[0])
  if opcode == 'dynamic-update-slice':
    return read[1] + (computation[instruction.operands[1]].shapes[0].padded if read[0] else 0)
  if opcode == 'scatter':
    return read[1] + 2 * read[2]
  if opcode.endswith('-start'):  # a collective: (operands, results, flags)
    return written
  return sum(read) + written


def _operand_shapes(computation: Computation, instruction: Instruction) -> list[Shape]:
  """Shapes of the operands; a tuple counts as nothing, its parts are read where they are taken."""
  out = []
  for name in instruction.operands:
    found = computation.instructions[name].shapes if name in computation.instructions else ()
    out.append(found[0] if len(found) == 1 else Shape('token', ()))
  return out


def _read(module: Module, inner: Computation, value: Instruction, full: Shape) -> int:
  """Bytes a fused computation reads of one of its parameters, which has the shape `full`."""
  if full.space != 0:
    return 0
  total = 0
  for user in inner.users[value.name]:
    first = user.operands[0] == value.name
    if user.opcode in _SLICES and first:
      total += user.shapes[0].padded
    elif user.opcode == 'bitcast':
      total += _read(module, inner, user, full)
    elif user.opcode == 'fusion':
      nested = module[user.called('calls')[0]]
      for k, operand in enumerate(user.operands):
        if operand == value.name:
          total += _read(module, nested, nested.parameters[k], full)
    elif not (
      user.opcode == 'tuple'
      or (user.opcode == 'dynamic-update-slice' and first)  # written in place
      or (user.opcode.startswith(COLLECTIVES) and is_continuation(inner))
      or (is_free(user) and user.opcode == 'custom-call')
    ):
      return full.padded
  return min(total, full.padded)


def _results(inner: Computation, root: Instruction) -> list[Instruction]:
  """The instructions that make the parts of a result, seen through names for them."""
  if root.opcode == 'tuple':
    return [r for o in root.operands for r in _results(inner, inner[o])]
  if root.opcode == 'bitcast':
    return _results(inner, inner[root.operands[0]])
  return [root]


def _written(module: Module, inner: Computation, call: Instruction) -> int:
  """Bytes a fusion writes to HBM."""
  results = _results(inner, inner.root)
  if len(results) != len(call.shapes):  # a part that is a tuple itself
    return sum(s.hbm for s in call.shapes)
  return sum(
    _part(module, inner, result, shape)
    for result, shape in zip(results, call.shapes, strict=True)
    if shape.space == 0
  )


def _part(module: Module, inner: Computation, result: Instruction, shape: Shape) -> int:
  """Bytes written of one part of a fusion's result."""
  if result.opcode == 'parameter':
    return 0  # handed through
  if result.opcode == 'dynamic-update-slice':
    return min(shape.padded, inner[result.operands[1]].shapes[0].padded)
  if result.opcode == 'fusion' and len(result.shapes) == 1:
    nested = module[result.called('calls')[0]]
    return _part(module, nested, _results(nested, nested.root)[0], shape)
  if result.opcode.startswith(COLLECTIVES) and is_continuation(inner):
    return 0
  return shape.padded


def largest_buffers(
  module: Module, computations: Iterable[Computation], top: int = 10
) -> list[Buffer]:
  """The largest arrays in HBM that the program makes, alike ones of the same line put together.

  Arguments are left out: they are the state and the batch.
  """
  found: dict[tuple[int, str, str, str], int] = {}
  for computation in computations:
    for instruction in computation:
      for shape in _made(module, instruction):
        if shape.hbm:
          origin = _origin(computation, instruction)
          key = shape.hbm, str(shape), origin.op_name, source(module, origin)
          found[key] = found.get(key, 0) + 1
  rows = sorted(found.items(), key=lambda item: (-item[0][0], item[0]))[:top]
  return [Buffer(size, shape, n, op, where) for (size, shape, op, where), n in rows]


def _origin(computation: Computation, instruction: Instruction) -> Instruction:
  """The instruction whose origin is on record: for a bare copy, what it copies."""
  first = instruction
  for _ in range(20):
    if instruction.op_name or not instruction.operands:
      return instruction
    if instruction.operands[0] not in computation.instructions:
      break
    instruction = computation[instruction.operands[0]]
  return first


def _made(module: Module, instruction: Instruction) -> list[Shape]:
  """Arrays for which an instruction takes memory of its own."""
  opcode, parts = instruction.opcode, instruction.shapes
  if 'custom_call_target="AllocateBuffer"' in instruction.attributes:
    return list(parts)
  if is_free(instruction) or opcode == 'dynamic-update-slice':
    return []
  if opcode == 'copy-start':
    return [parts[0]]
  if opcode.endswith('-start'):
    return list(parts[1:])
  if opcode == 'fusion':
    inner = module[instruction.called('calls')[0]]
    results = _results(inner, inner.root)
    if is_continuation(inner) or len(results) != len(parts):
      return []
    return [
      shape for result, shape in zip(results, parts, strict=True) if not _in_place(inner, result)
    ]
  return list(parts)


def _in_place(inner: Computation, result: Instruction) -> bool:
  """Whether a part of a fusion's result is one of its operands, as it was or updated."""
  while result.opcode in ('bitcast', 'dynamic-update-slice'):
    result = inner[result.operands[0]]
  return result.opcode == 'parameter'


def source(module: Module, instruction: Instruction) -> str:
  """`file:line` of an instruction: the innermost frame of this project, else of no library."""
  frames = [f for f in module.frames(instruction) if f[0]]
  own = [f for f in frames if 'site-packages' not in f[0] and 'dist-packages' not in f[0]]
  here = [f for f in own if Path(f[0]).is_relative_to(_ROOT)]
  here = [f for f in here if not Path(f[0]).is_relative_to(_ROOT / 'launch')]  # our own call
  for file, line in (here or own or frames)[:1]:
    return f'{Path(file).relative_to(_ROOT) if here else file}:{line}'
  return ''
