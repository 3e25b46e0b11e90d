"""Compiles a step for TPUs that are not here, and reads what the compiler says of memory."""

import dataclasses
import importlib.util
import os
import re
from pathlib import Path
from typing import Any

import jax

from align_jax.errors import UserError

_UNITS = {'': 1, 'B': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
# libtpu's two messages: the first before buffers are laid out, the second after
_TOO_LARGE = (
  re.compile(
    r'total memory required for HLO temporaries \(([\d.]+)(\w?)\) exceeds available HBM '
    r'\(([\d.]+)(\w?)\)'
  ),
  re.compile(r'memory space hbm\. Used ([\d.]+)(\w?) of ([\d.]+)(\w?) hbm'),
)


@dataclasses.dataclass(frozen=True)
class Oversized:
  """The compiler's refusal.

  Attributes:
    needed: bytes per chip: state, batch, results and temporaries.
    limit: bytes there are.
  """

  needed: int
  limit: int


@dataclasses.dataclass(frozen=True)
class Memory:
  """HBM per chip of a program that fits, in bytes.

  Attributes:
    arguments: state and batch.
    outputs: results that do not take an argument's place.
    temporaries: activations, gradients and everything else that lives within a step, at the peak.
    code: the program itself.
    peak: at its highest, without the code.
  """

  arguments: int
  outputs: int
  temporaries: int
  code: int
  peak: int


def prepare() -> None:
  """Sets the process up to compile for TPUs on any machine; before JAX makes its first array.

  Raises:
    UserError: libtpu is missing.
  """
  path = os.environ.get('TPU_LIBRARY_PATH', '')
  if not Path(path).is_file() and importlib.util.find_spec('libtpu') is None:
    raise UserError(
      'preflight needs libtpu, the TPU compiler (but no TPU); it is not installed: '
      f'pip install "jax[tpu]=={jax.__version__}" (Linux, x86-64)'
    )
  # libtpu looks for the machine's TPUs when it is loaded and complains where there are none
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5litepod-4')
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
  jax.config.update('jax_platforms', 'cpu')
  # a program for devices that are not here cannot be read back from the cache
  jax.config.update('jax_enable_compilation_cache', False)


def compile_step(step: Any, *arguments: Any) -> Any:
  """Compiles a jitted function for the devices of its arguments' shardings.

  Returns: the compiled program, or `Oversized`.
  """
  return compile_lowered(step.trace(*arguments).lower(lowering_platforms=('tpu',)))


def compile_lowered(lowered: Any) -> Any:
  """Compiles a program that was lowered for a TPU; returns it, or `Oversized`."""
  try:
    return lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    refused = read_refusal(str(error))
    if refused is None:
      raise
    return refused


def read_refusal(message: str) -> Oversized | None:
  """Reads libtpu's message that a program does not fit HBM; None for any other message."""
  for pattern in _TOO_LARGE:
    found = pattern.search(message)
    if found and 'RESOURCE_EXHAUSTED' in message:
      return Oversized(_bytes(found[1], found[2]), _bytes(found[3], found[4]))
  return None


def _bytes(number: str, unit: str) -> int:
  return round(float(number) * _UNITS[unit])


def memory(compiled: Any) -> Memory:
  """HBM of a compiled program."""
  stats = compiled.memory_analysis()
  outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
  lasting = stats.argument_size_in_bytes + outputs
  # a small program's own figure for temporaries can be 0 where its peak shows them
  peak = max(getattr(stats, 'peak_memory_in_bytes', 0), lasting + stats.temp_size_in_bytes)
  return Memory(
    arguments=stats.argument_size_in_bytes,
    outputs=outputs,
    temporaries=peak - lasting,
    code=stats.generated_code_size_in_bytes,
    peak=peak,
  )


def hbm_limit(devices: list[jax.Device]) -> int | None:
  """Bytes of HBM that a program may use on these devices, from the refusal of one far too large."""
  here = jax.sharding.SingleDeviceSharding(devices[0])
  huge = jax.ShapeDtypeStruct((2**20, 2**21), 'float32', sharding=here)  # 8 TiB
  refused = compile_step(jax.jit(lambda x: x + 1), huge)
  return refused.limit if isinstance(refused, Oversized) else None


def bytes_per_device(tree: Any) -> int:
  """Bytes one device holds of a tree of shapes with shardings, without padding."""
  return sum(
    int(jax.numpy.dtype(leaf.dtype).itemsize) * _elements(leaf) for leaf in jax.tree.leaves(tree)
  )


def _elements(leaf: Any) -> int:
  shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding is not None else leaf.shape
  out = 1
  for size in shape:
    out *= size
  return out
