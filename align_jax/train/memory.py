"""The most memory that a run has held so far, on its devices and on the host."""

import resource
import sys

import jax

_GIB = 2**30


def high_water() -> dict[str, float]:
  """Returns `memory/device_peak_gib`, of this process's fullest device, and `…/host_peak_gib`.

  A backend that does not count (the CPU's) leaves the first out.
  """
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  peaks = [s['peak_bytes_in_use'] for s in stats if 'peak_bytes_in_use' in s]
  out = {'memory/device_peak_gib': max(peaks) / _GIB} if peaks else {}
  resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  unit = 1 if sys.platform == 'darwin' else 1024  # bytes there, KiB on Linux
  return out | {'memory/host_peak_gib': resident * unit / _GIB}
