"""Makes one run out of many processes: who starts it, who coordinates, how a death is noticed."""

import dataclasses
import importlib.util
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from align_jax.errors import UserError, require

# Set by launch.local; a scheduler that JAX does not know may set them too.
COORDINATOR = 'ALIGN_JAX_COORDINATOR'
PROCESSES = 'ALIGN_JAX_PROCESSES'
PROCESS_ID = 'ALIGN_JAX_PROCESS_ID'

_LOOPBACK = ('127.0.0.1', 'localhost')
# Where a TPU VM learns about the other hosts of its slice (JAX reads the same attribute).
_METADATA = 'http://{host}/computeMetadata/v1/instance/attributes/worker-network-endpoints'


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
  """How the processes of a run find each other, and how soon they miss one.

  Attributes:
    coordinator: HOST:PORT where process 0 listens; '' with the two below unset: the environment
      decides (launch.local, SLURM, TPU VM, GKE).
    processes: how many there are.
    process_id: which one this is, from 0.
    heartbeat_seconds: a process that is silent for so long counts as dead, and the others end.
    start_seconds: how long the processes wait for each other at the start.
    end_seconds: how long one that has finished waits for those that have not; None: for
      `heartbeat_seconds`.
  """

  coordinator: str = ''
  processes: int | None = None
  process_id: int | None = None
  heartbeat_seconds: int = 60
  start_seconds: int = 300
  end_seconds: int | None = None

  def __post_init__(self) -> None:
    require(
      self.heartbeat_seconds >= 5,
      '--heartbeat_seconds',
      'must be 5 or more, or a busy process counts as dead',
    )
    require(self.start_seconds >= 1, '--start_seconds', 'must be 1 or more')
    given = (self.coordinator or None, self.processes, self.process_id)
    if given != (None, None, None):
      _check('--coordinator', '--processes', '--process_id', *given)


@dataclasses.dataclass(frozen=True)
class Cluster:
  """A run of several processes; the fields that are None are found by JAX itself.

  `method` is JAX's name of the cluster it should look at; None lets it try those it knows.
  """

  coordinator: str | None = None
  processes: int | None = None
  process_id: int | None = None
  method: str | None = None


def initialize(
  config: DistributedConfig | None = None, environ: Mapping[str, str] = os.environ
) -> bool:
  """Joins the other processes of this run; call it before JAX looks at a device.

  When one process dies, the others are ended by JAX with a message: at once where the connection
  breaks, else after `heartbeat_seconds`. A second call changes nothing.

  Returns: whether this run has several processes.

  Raises:
    UserError: addresses or numbers that cannot be.
  """
  import jax  # launch/ takes the names above without waiting for JAX

  config = config or DistributedConfig()
  if jax.distributed.is_initialized():
    return True
  cluster = find_cluster(config, environ)
  if cluster is None:
    return False
  bind = None
  if cluster.coordinator:
    # JAX aborts without naming the address when it is left alone: say first what is waited for
    print(
      f'process {cluster.process_id} of {cluster.processes}: joins {cluster.coordinator}, waits at '
      f'most {config.start_seconds} s',
      file=sys.stderr,
      flush=True,
    )
    if cluster.coordinator.rpartition(':')[0] in _LOOPBACK:
      bind = cluster.coordinator  # nobody outside this machine has to reach it
  jax.distributed.initialize(
    coordinator_address=cluster.coordinator,
    num_processes=cluster.processes,
    process_id=cluster.process_id,
    cluster_detection_method=cluster.method,
    initialization_timeout=config.start_seconds,
    heartbeat_timeout_seconds=config.heartbeat_seconds,
    # a process that ends with an error waits here for the others, which wait for it in a collective
    shutdown_timeout_seconds=config.end_seconds or config.heartbeat_seconds,
    coordinator_bind_address=bind,
  )
  return True


def find_cluster(config: DistributedConfig, environ: Mapping[str, str]) -> Cluster | None:
  """Says what this process belongs to, or None if it is alone.

  Flags come first, then our own variables, SLURM, and the hosts of a TPU slice.
  """
  if config.processes is not None:
    return _explicit(config.coordinator, config.processes, config.process_id)
  own = [environ.get(name) or None for name in (COORDINATOR, PROCESSES, PROCESS_ID)]
  if own != [None, None, None]:
    processes, process_id = _integer(PROCESSES, own[1]), _integer(PROCESS_ID, own[2])
    _check(COORDINATOR, PROCESSES, PROCESS_ID, own[0], processes, process_id)
    return _explicit(own[0] or '', processes or 1, process_id)
  # srun sets the step's nodes; a batch script or salloc shell has SLURM_NTASKS too, and is alone
  if 'SLURM_STEP_NODELIST' in environ and (_integer('SLURM_NTASKS', _tasks(environ)) or 1) > 1:
    return Cluster(method='slurm')
  platforms = environ.get('JAX_PLATFORMS', '')
  if platforms and 'tpu' not in platforms:
    return None  # a side job on the CPU of one TPU host
  return Cluster() if _tpu_hosts(environ) > 1 else None


def _explicit(coordinator: str, processes: int, process_id: int | None) -> Cluster | None:
  if processes == 1:
    return None
  return Cluster(coordinator, processes, process_id, method='deactivate')


def _tasks(environ: Mapping[str, str]) -> str:
  return environ.get('SLURM_STEP_NUM_TASKS') or environ.get('SLURM_NTASKS', '1')


def _tpu_hosts(environ: Mapping[str, str]) -> int:
  """Hosts of the TPU slices this process is part of; 1 where there is no TPU."""
  # GKE injects them into each pod that asks for google.com/tpu; MEGASCALE_ for several slices
  names = environ.get('TPU_PROCESS_ADDRESSES') or environ.get('TPU_WORKER_HOSTNAMES')
  if names is None and _has_tpu():
    names = _tpu_vm_hosts(environ)
  slices = _integer('MEGASCALE_NUM_SLICES', environ.get('MEGASCALE_NUM_SLICES') or '1') or 1
  return len((names or 'localhost').split(',')) * slices


def _has_tpu() -> bool:
  devices = Path('/dev')
  chips = [*devices.glob('accel[0-9]*'), *devices.glob('vfio/[0-9]*')]
  return bool(chips) and importlib.util.find_spec('libtpu') is not None


def _tpu_vm_hosts(environ: Mapping[str, str]) -> str:
  """The hosts of this TPU VM's slice, separated by commas; '' where there is no such machine."""
  host = environ.get('GCE_METADATA_IP') or 'metadata.google.internal'
  request = urllib.request.Request(
    _METADATA.format(host=host), headers={'Metadata-Flavor': 'Google'}
  )
  # the metadata server is on this machine's own link: a proxy would only lose the question
  opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
  try:
    with opener.open(request, timeout=5) as answer:
      return str(answer.read().decode())
  except (urllib.error.URLError, OSError):
    return ''


def _integer(name: str, value: str | None) -> int | None:
  if value is None:
    return None
  try:
    return int(value)
  except ValueError as error:
    raise UserError(f'{name}: {value!r} is no number') from error


def _check(
  coordinator_name: str,
  processes_name: str,
  process_id_name: str,
  coordinator: str | None,
  processes: int | None,
  process_id: int | None,
) -> None:
  """Raises a UserError unless the three name one process of a run."""
  names = (coordinator_name, processes_name, process_id_name)
  values = (coordinator, processes, process_id)
  missing = [n for n, v in zip(names, values, strict=True) if v is None]
  if missing:
    raise UserError(f'{", ".join(missing)}: missing; set {", ".join(names)} together, or none')
  assert coordinator is not None and processes is not None and process_id is not None
  host, _, port = coordinator.rpartition(':')
  if not host or not port.isdigit() or not 0 < int(port) < 65536:
    raise UserError(f'{coordinator_name}: {coordinator!r} is no HOST:PORT')
  require(processes >= 1, processes_name, 'must be 1 or more')
  if not 0 <= process_id < processes:
    raise UserError(
      f'{process_id_name}: {process_id} is not one of 0 to {processes - 1} ({processes_name})'
    )
