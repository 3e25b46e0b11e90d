"""Settings of mesh and memory to try for a config, the search over them, and advice."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

from align_jax.errors import UserError
from align_jax.train.config import TrainConfig
from launch.analysis import Report

# The fields of config.compute that trade time for memory, and the values of the second, the one
# that computes least first.
MICRO_BATCH = 'micro_batch'
REMAT = 'remat'
REMATS = ('none', 'dots', 'full')
_TENSOR = (1, 2, 4)


@dataclasses.dataclass(frozen=True)
class Candidate:
  """One setting: the mesh, and what `config.compute` says of memory."""

  data: int
  fsdp: int
  tensor: int
  micro_batch: int
  remat: str

  @property
  def mesh(self) -> tuple[int, int, int]:
    """The mesh alone."""
    return self.data, self.fsdp, self.tensor

  def flags(self) -> str:
    """The flags that set it."""
    mesh = ' '.join(
      f'--config.mesh.{axis}={getattr(self, axis)}' for axis in ('data', 'fsdp', 'tensor')
    )
    return (
      f'{mesh} --config.compute.{MICRO_BATCH}={self.micro_batch} '
      f'--config.compute.{REMAT}={self.remat}'
    )

  def applied(self, config: TrainConfig) -> TrainConfig:
    """The config with these settings."""
    mesh = dataclasses.replace(config.mesh, data=self.data, fsdp=self.fsdp, tensor=self.tensor)
    memory = {MICRO_BATCH: self.micro_batch, REMAT: self.remat}
    compute = dataclasses.replace(config.compute, **memory)  # type: ignore[arg-type]
    return dataclasses.replace(config, mesh=mesh, compute=compute)

  def saves_more_than(self, other: 'Candidate', own: int) -> bool:
    """Whether it only computes more than `other`, on the same mesh, to hold less.

    Args:
      other: the setting to compare with.
      own: examples of one device.
    """
    parts, other_parts = (c.micro_batch or own for c in (self, other))
    return (
      self.mesh == other.mesh
      and parts <= other_parts
      and bool(self.micro_batch) >= bool(other.micro_batch)
      and REMATS.index(self.remat) >= REMATS.index(other.remat)
    )


@dataclasses.dataclass(frozen=True)
class Found:
  """What came of a candidate."""

  candidate: Candidate
  report: Report


def candidates(config: TrainConfig, devices: int) -> Iterator[Candidate]:
  """Settings to try: of every mesh first the one that computes least, then those that save more."""
  levels = []
  for mesh in _meshes(config, devices):
    own = config.batch_size // (mesh[0] * mesh[1])
    sizes = [0, *(s for s in (own // 2, own // 8, own // 32) if s and own % s == 0)]
    levels.append([Candidate(*mesh, size, remat) for size in sizes for remat in REMATS])
  for k in range(max(map(len, levels), default=0)):
    yield from (level[k] for level in levels if k < len(level))


def _meshes(config: TrainConfig, devices: int) -> list[tuple[int, int, int]]:
  """Meshes whose axes make up the devices, and over which the batch divides."""
  found: dict[tuple[int, int, int], None] = {}
  for tensor in dict.fromkeys((max(1, config.mesh.tensor), *_TENSOR)):
    if devices % tensor:
      continue
    ways = devices // tensor
    if config.batch_size % ways:
      continue
    fsdp = 1
    while fsdp < ways:
      if ways % fsdp == 0:
        found[(ways // fsdp, fsdp, tensor)] = None
      fsdp *= 4
    found[(1, ways, tensor)] = None
  return list(found)


def search(
  config: TrainConfig,
  devices: int,
  analyse: Callable[[TrainConfig], Report],
  *,
  limit: int,
  say: Callable[[str], None],
) -> list[Found]:
  """Tries settings and ranks them: those that fit by projected time, then the rest by need.

  What only saves more than a setting that fits on the same mesh is left out: it computes more. So
  is what, by the temporaries of those compiled before, needs far more than there is.

  Args:
    config: the experiment.
    devices: of the topology.
    analyse: compiles and counts a config.
    limit: compiles at most.
    say: told how far it is.
  """
  fitting: list[Candidate] = []
  found: list[Found] = []
  examples = _Examples()
  begin = time.monotonic()
  for candidate in candidates(config, devices):
    own = config.batch_size // (candidate.data * candidate.fsdp)
    if any(candidate.saves_more_than(other, own) for other in fitting):
      continue
    held = candidate.micro_batch or own
    if examples.too_many(candidate, held):
      continue
    if len(found) == limit:
      break
    try:
      report = analyse(candidate.applied(config))
    except UserError as error:  # this model does not divide that way
      say(f'search: {candidate.flags()}: {error}')
      continue
    found.append(Found(candidate, report))
    examples.add(candidate, held, report)
    if report.fits:
      fitting.append(candidate)
    each = (time.monotonic() - begin) / len(found)
    answer = f'{report.roofline.seconds * 1e3:.3f} ms' if report.roofline else 'compiled'
    left = each * (limit - len(found)) / 60
    say(
      f'search {len(found)}/{limit}: {answer if report.fits else "does not fit"}: '
      f'{candidate.flags()}; at most {left:.1f} min left'
    )
  return sorted(found, key=_rank)


class _Examples:
  """What the settings compiled so far say of how many examples a chip can hold at a time."""

  def __init__(self) -> None:
    # remat -> least bytes of temporaries for one example, over the chips that share it
    self._each: dict[str, float] = {}
    self._limit = 0

  def add(self, candidate: Candidate, held: int, report: Report) -> None:
    """Takes in a compiled setting that held so many examples at a time."""
    each = report.temporaries * candidate.tensor / held
    self._each[candidate.remat] = min(each, self._each.get(candidate.remat, each))
    self._limit = report.limit

  def too_many(self, candidate: Candidate, held: int) -> bool:
    """Whether so many examples need more than a chip has, by a quarter: it is an estimate."""
    each = self._each.get(candidate.remat, 0.0)
    return each * held / candidate.tensor > 1.25 * self._limit


def _rank(found: Found) -> tuple[bool, float, int]:
  report = found.report
  seconds = report.roofline.seconds if report.roofline else 0.0
  return (False, seconds, report.peak) if report.fits else (True, 0.0, report.peak)


def advice(config: TrainConfig, report: Report) -> Sequence[str]:
  """Flags to try for a step that does not fit, the one likely to help most first."""
  if report.fits:
    return ()
  compute = config.compute
  own = config.batch_size // (report.mesh['data'] * report.mesh['fsdp'])
  now = getattr(compute, MICRO_BATCH) or own
  state = sum(n for part, n in report.held.items() if part != 'batch')
  # temporaries grow with the examples held at a time
  room = max(0, report.limit - sum(report.held.values())) / max(1, report.temporaries)
  sizes = [n for n in range(1, now // 2 + 1) if own % n == 0]
  smaller = max((n for n in sizes if n <= 0.9 * room * now), default=min(sizes, default=0))
  tries = []
  if getattr(compute, REMAT) != REMATS[-1]:
    tries.append(f'--config.compute.{REMAT}={REMATS[-1]}')
  if smaller:
    tries.append(f'--config.compute.{MICRO_BATCH}={smaller}')
  if report.mesh['data'] > 1:
    more = min(report.mesh['fsdp'] * 4, report.mesh['data'] * report.mesh['fsdp'])
    while (report.mesh['data'] * report.mesh['fsdp']) % more:
      more -= 1
    shard = f'--config.mesh.fsdp={more} --config.mesh.data=-1'
    # a state that takes half the memory is what has to shrink
    tries.insert(0 if state > report.limit / 2 else len(tries), shard)
  return tries or ['a larger --topology']
