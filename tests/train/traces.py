"""What a trace holds."""

import jax


def step_numbers(folder):
  """The numbers of the steps in the traces below a folder."""
  files = sorted(folder.glob('plugins/profile/*/*.xplane.pb'))
  assert all(path.stat().st_size > 0 for path in files)
  return {
    value
    for path in files
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes
    for line in plane.lines
    for event in line.events
    for name, value in event.stats
    if name == 'step_num'
  }
