"""Reads the text of an optimised HLO module: computations, instructions, shapes, source lines.

Only what a cost count needs is kept; see `hlo_costs.py` and `hlo_memory.py` for the counts.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

_ARRAY = re.compile(r'([a-z]\w*)\[([^\]]*)\](?:\{([^}]*)\})?')
_BITS = re.compile(r'[a-z]+(\d+)')
_TILES = re.compile(r'T((?:\([\d,*]+\))+)')
_SPACE = re.compile(r'S\((\d+)\)')
_PACKED = re.compile(r'E\((\d+)\)')
_HEAD = re.compile(r'^(ENTRY )?%?([^\s(]+) \(.*\{$')
_INSTRUCTION = re.compile(r'^\s+(ROOT )?%?([^\s=]+) = (.*)$')
_NAME = re.compile(r'%([\w.\-]+)')
_WORD = re.compile(r'[\w.\-]+')


@dataclasses.dataclass(frozen=True)
class Shape:
  """An array shape with its TPU layout.

  Attributes:
    dtype: as HLO writes it, `bf16`.
    dims: sizes, logical order.
    layout: the text between the braces, `2,1,0:T(8,128)(2,1)S(1)`.
  """

  dtype: str
  dims: tuple[int, ...]
  layout: str = ''

  @property
  def elements(self) -> int:
    """Number of elements, without padding."""
    return math.prod(self.dims)

  @property
  def bits(self) -> int:
    """Bits that one element takes in memory."""
    packed = _PACKED.search(self.layout)
    if packed:
      return int(packed[1])
    if self.dtype in ('token', 'opaque'):
      return 0
    named = _BITS.match(self.dtype)  # pred has no number and takes a byte
    return int(named[1]) if named else 8

  @property
  def size(self) -> int:
    """Bytes of the elements alone: what a collective sends."""
    return -(-self.elements * self.bits // 8)

  @property
  def padded(self) -> int:
    """Bytes in memory: the TPU rounds the minor dimensions up to whole tiles."""
    tiles = _TILES.search(self.layout)
    if not tiles or self.elements == 0:
      return self.size
    tile = [int(t) for t in tiles[1][1:-1].split(')(')[0].split(',') if t.isdigit()]
    minor_to_major = [int(d) for d in self.layout.split(':')[0].split(',') if d]
    dims = [self.dims[d] for d in reversed(minor_to_major)]
    dims = [1] * (len(tile) - len(dims)) + dims
    for place, size in enumerate(reversed(tile), start=1):
      dims[-place] = -(-dims[-place] // size) * size
    return -(-math.prod(dims) * self.bits // 8)

  @property
  def space(self) -> int:
    """Memory space: 0 is HBM, 1 is VMEM, others hold flags and scalars."""
    space = _SPACE.search(self.layout)
    return int(space[1]) if space else 0

  @property
  def hbm(self) -> int:
    """Bytes in HBM."""
    return self.padded if self.space == 0 else 0

  def __str__(self) -> str:
    return f'{self.dtype}[{",".join(map(str, self.dims))}]'


@functools.lru_cache(maxsize=65536)
def shapes(text: str) -> tuple[Shape, ...]:
  """Reads a shape; the parts of a tuple in order, nested tuples flattened."""
  return tuple(
    Shape(dtype, tuple(int(d.lstrip('<=')) for d in dims.split(',') if d.strip()), layout or '')
    for dtype, dims, layout in _ARRAY.findall(text)
  )


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation.

  Attributes:
    name: unique in its computation.
    opcode: `fusion`, `while`, ….
    shape_text: its output, unread.
    operands: names.
    arguments: what stood between the parentheses; a constant's value, a parameter's number.
    attributes: the rest of the line.
    root: whether it is the computation's result.
  """

  name: str
  opcode: str
  shape_text: str
  operands: tuple[str, ...]
  arguments: str
  attributes: str
  root: bool

  @property
  def shapes(self) -> tuple[Shape, ...]:
    """The output arrays."""
    return shapes(self.shape_text)

  def attribute(self, name: str) -> str:
    """Text of an attribute up to the next comma or blank, '' where it is missing."""
    found = re.search(rf'[ ,]{name}=(\{{[^}}]*\}}|[^\s,]+)', self.attributes)
    return found[1] if found else ''

  def called(self, *names: str) -> tuple[str, ...]:
    """Computations that the attributes of these names call."""
    found: list[str] = []
    for name in names:
      found += _WORD.findall(self.attribute(name).replace('%', ''))
    return tuple(found)

  @property
  def index(self) -> int:
    """Which part of a tuple a get-tuple-element takes."""
    return int(self.attribute('index'))

  @property
  def op_name(self) -> str:
    """The JAX operation it came from, `jit(step)/…/dot_general`."""
    found = re.search(r'op_name="([^"]*)"', self.attributes)
    return found[1] if found else ''


@dataclasses.dataclass(frozen=True)
class Computation:
  """Instructions by name, in the order of the text: the schedule, once a program is compiled."""

  name: str
  instructions: Mapping[str, Instruction]

  def __iter__(self) -> Iterator[Instruction]:
    return iter(self.instructions.values())

  def __getitem__(self, name: str) -> Instruction:
    return self.instructions[name]

  @functools.cached_property
  def root(self) -> Instruction:
    """The result."""
    return next(i for i in self if i.root)

  @functools.cached_property
  def parameters(self) -> Mapping[int, Instruction]:
    """Parameters by number."""
    return {int(i.arguments): i for i in self if i.opcode == 'parameter'}

  @functools.cached_property
  def users(self) -> Mapping[str, list[Instruction]]:
    """Instructions that read a value, by its name."""
    users: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
    for instruction in self:
      for operand in dict.fromkeys(instruction.operands):
        if operand in users:
          users[operand].append(instruction)
    return users


@dataclasses.dataclass(frozen=True)
class Module:
  """A compiled program.

  Attributes:
    entry: where it begins.
    computations: by name.
    partitions: devices that run it together.
    tables: `FileNames`, `FunctionNames`, `FileLocations`, `StackFrames`: id -> line of the table.
  """

  entry: Computation
  computations: Mapping[str, Computation]
  partitions: int
  tables: Mapping[str, Mapping[int, str]]

  def __getitem__(self, name: str) -> Computation:
    return self.computations[name]

  def frames(self, instruction: Instruction) -> list[tuple[str, int]]:
    """File and line of each frame of the trace that made the instruction, innermost first."""
    found = re.search(r'stack_frame_id=(\d+)', instruction.attributes)
    if not found:
      plain = re.search(r'source_file="([^"]*)" source_line=(\d+)', instruction.attributes)
      return [(plain[1], int(plain[2]))] if plain else []
    out: list[tuple[str, int]] = []
    number = int(found[1])
    while number in self._frames and len(out) < 100:
      file, line, number = self._frames[number]
      out.append((file, line))
    return out

  @functools.cached_property
  def _frames(self) -> Mapping[int, tuple[str, int, int]]:
    """Frame id -> file, line, id of its parent (0: none)."""

    def fields(line: str) -> dict[str, int]:
      return {k: int(v) for k, v in re.findall(r'(\w+)=(\d+)', line)}

    files = {k: v.strip('"') for k, v in self.tables.get('FileNames', {}).items()}
    places = {k: fields(v) for k, v in self.tables.get('FileLocations', {}).items()}
    frames = {k: fields(v) for k, v in self.tables.get('StackFrames', {}).items()}
    # parents are written one too high by the XLA of JAX 0.10: a frame is never its own parent
    shift = int(any(f.get('parent_frame_id') == k for k, f in frames.items()))
    out = {}
    for key, frame in frames.items():
      place = places.get(frame.get('file_location_id', 0), {})
      file = files.get(place.get('file_name_id', 0), '')
      out[key] = (file, place.get('line', 0), frame.get('parent_frame_id', 0) - shift)
    return out


def parse(text: str) -> Module:
  """Reads the text of a compiled module, `compiled.as_text()`."""
  computations: dict[str, Computation] = {}
  tables: dict[str, dict[int, str]] = {}
  entry = name = table = ''
  inside: dict[str, Instruction] | None = None
  counts = {'num_partitions': 1, 'replica_count': 1}
  for line in _lines(text):
    if inside is not None:
      if line == '}':
        computations[name] = Computation(name, inside)
        inside = None
      else:
        instruction = _instruction(line)
        if instruction is not None:
          inside[instruction.name] = instruction
    elif line.startswith('HloModule'):
      for key in counts:
        found = re.search(rf'{key}=(\d+)', line)
        counts[key] = int(found[1]) if found else 1
    elif line in ('FileNames', 'FunctionNames', 'FileLocations', 'StackFrames'):
      table = line
      tables[table] = {}
    elif line[:1].isdigit() and table:
      number, _, value = line.partition(' ')
      tables[table][int(number)] = value
    else:
      head = _HEAD.match(line)
      if head:
        name, inside = head[2], {}
        entry = name if head[1] else entry
  partitions = counts['num_partitions'] * counts['replica_count']
  return Module(computations[entry], computations, partitions, tables)


def _lines(text: str) -> Iterator[str]:
  """Lines, those of an instruction joined: the attributes of a Pallas kernel go over several."""
  whole: list[str] = []
  for line in text.splitlines():
    # an instruction is indented, what goes on with it is not
    if whole and not (line.startswith((' ', '%', 'ENTRY', 'HloModule')) or line in ('', '}')):
      whole.append(line)
      continue
    if whole:
      yield ' '.join(whole)
      whole = []
    if line.startswith('  '):
      whole = [line]
    else:
      yield line
  if whole:
    yield ' '.join(whole)


def _instruction(line: str) -> Instruction | None:
  found = _INSTRUCTION.match(line)
  if not found:
    return None
  root, name, rest = found.groups()
  end = _closing(rest, 0) + 1 if rest.startswith('(') else rest.index(' ')
  opcode_end = rest.index('(', end + 1)
  close = _closing(rest, opcode_end)
  arguments = rest[opcode_end + 1 : close]
  opcode = rest[end:opcode_end].strip()
  if opcode == 'constant':
    operands: tuple[str, ...] = ()
  elif '%' in arguments:
    operands = tuple(_NAME.findall(arguments))
  else:
    operands = tuple(_WORD.findall(arguments)) if opcode != 'parameter' else ()
  return Instruction(
    name, opcode, rest[:end], operands, arguments, rest[close + 1 :], root is not None
  )


def _closing(text: str, start: int) -> int:
  """Where the parenthesis that opens at `start` closes."""
  depth = 0
  place = start
  while True:
    close = text.index(')', place)
    depth += text.count('(', place, close) - 1
    if depth == 0:
      return close
    place = close + 1
