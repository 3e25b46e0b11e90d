"""How often a while loop of an HLO module runs."""

import re
from collections.abc import Callable
from typing import Any

from launch.hlo import Computation, Instruction, Module

# A value is a number, or for a tuple a function from the index to a value; None: not known.
Value = Any
_DEPTH = 200  # no counter of a loop hangs on a longer chain of instructions
_SAME = {'copy', 'bitcast', 'convert', 'reshape', 'copy-start', 'copy-done', 'opt-barrier'}
_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
  'add': lambda a, b: a + b,
  'subtract': lambda a, b: a - b,
  'multiply': lambda a, b: a * b,
  'minimum': min,
  'maximum': max,
}


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
  """Times the body of `loop` runs; None where the program does not tell.

  XLA notes the number where it knows it. The TPU compiler drops that note, so otherwise the counter
  is followed: where it starts, its step, and the bound that the condition compares it with.
  """
  noted = re.search(r'known_trip_count":\{"n":"?(\d+)', loop.attributes)
  if noted:
    return int(noted[1])
  condition = module[loop.called('condition')[0]]
  body = module[loop.called('body')[0]]

  def after(state: Value) -> Value:
    return _value(module, body, body.root.name, lambda _: state, 0)

  start = _value(module, computation, loop.operands[0], lambda _: None, 0)
  first = _comparison(module, condition, condition.root.name, lambda _: start, 0)
  if first is None:
    return None
  direction, left, right = first
  if left is None:  # a tuple we do not see into: JAX counts from 0
    start = _from_zero(start)
    left = (_comparison(module, condition, condition.root.name, lambda _: start, 0) or first)[1]
  second = _comparison(module, condition, condition.root.name, lambda _: after(start), 0)
  third = _comparison(module, condition, condition.root.name, lambda _: after(after(start)), 0)
  if second is None or third is None or None in (left, right, *second, *third):
    return None
  gap, step = right - left, (second[1] - left) - (second[2] - right)
  if (third[1] - third[2]) - (second[1] - second[2]) != step:
    return None  # no counter with equal steps
  if direction in ('GT', 'GE'):
    gap, step = -gap, -step
  if step <= 0:
    return None
  inclusive = direction in ('LE', 'GE')
  return max(0, gap // step + 1 if inclusive else -(-gap // step))


def _from_zero(state: Value) -> Value:
  """The state of a loop with 0 for every value that is not known."""

  def part(k: int) -> Value:
    value = state(k) if callable(state) else None
    return 0 if value is None else value

  return part


def _comparison(
  module: Module, computation: Computation, name: str, arguments: Value, depth: int
) -> tuple[str, Value, Value] | None:
  """Direction and both sides of the comparison that a condition ends in."""
  instruction = computation[name]
  if depth > _DEPTH:
    return None
  if instruction.opcode == 'compare':
    sides = [_value(module, computation, o, arguments, depth) for o in instruction.operands]
    return instruction.attribute('direction'), sides[0], sides[1]
  if instruction.opcode in ('fusion', 'call'):
    inner, values = _enter(module, computation, instruction, arguments, depth)
    return _comparison(module, inner, inner.root.name, values, depth + 1)
  if instruction.opcode in _SAME:
    return _comparison(module, computation, instruction.operands[0], arguments, depth + 1)
  return None


def _enter(
  module: Module, computation: Computation, call: Instruction, arguments: Value, depth: int
) -> tuple[Computation, Value]:
  """The called computation and its arguments, looked up when they are asked for."""
  inner = module[call.called('calls', 'to_apply')[0]]
  return inner, lambda k: _value(module, computation, call.operands[k], arguments, depth + 1)


def _value(
  module: Module, computation: Computation, name: str, arguments: Value, depth: int
) -> Value:
  """Works out a scalar (or a tuple of them) as far as the program fixes it."""
  instruction = computation[name]
  opcode = instruction.opcode
  if depth > _DEPTH:
    return None

  def operand(k: int) -> Value:
    return _value(module, computation, instruction.operands[k], arguments, depth + 1)

  if opcode == 'parameter':
    return arguments(int(instruction.arguments))
  if opcode == 'constant':
    return int(instruction.arguments) if re.fullmatch(r'-?\d+', instruction.arguments) else None
  if opcode == 'tuple':
    return operand
  if opcode == 'get-tuple-element':
    values = operand(0)
    return values(instruction.index) if callable(values) else None
  if opcode in _SAME:
    return operand(0)
  if opcode in _ARITHMETIC:
    pair = operand(0), operand(1)
    return None if None in pair else _ARITHMETIC[opcode](*pair)
  if opcode in ('fusion', 'call'):
    inner, values = _enter(module, computation, instruction, arguments, depth)
    return _value(module, inner, inner.root.name, values, depth + 1)
  return None
