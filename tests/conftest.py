"""Every test runs with shape-checked signatures and eight simulated devices."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('HF_HUB_OFFLINE', '1')
# many tests, and the processes they start, train the same tiny programs: each compiles once
os.environ.setdefault(
  'JAX_COMPILATION_CACHE_DIR', str(Path(__file__).parent.parent / '.pytest_cache/xla')
)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.2')
# compiling is most of the work; what is said of compiled programs is tested with `optimised`
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update('jax_num_cpu_devices', 8)
# tracing makes millions of small objects, of which few are garbage
gc.set_threshold(100_000, 50, 50)
# kept for the whole session: modules imported later are checked as well
_hook = install_import_hook('align_jax', 'beartype.beartype')


def pytest_addoption(parser: pytest.Parser) -> None:
  parser.addoption(
    '--update-golden',
    action='store_true',
    help='rewrite the files of tests/golden after a change that is meant (make golden)',
  )


@pytest.fixture(scope='session')
def update_golden(request: pytest.FixtureRequest) -> bool:
  """Whether golden files are to be rewritten rather than compared with."""
  return request.config.getoption('--update-golden')


@pytest.fixture
def optimised() -> Iterator[None]:
  """Compiles as users do, for tests of what the compiler makes of a program."""
  jax.config.update('jax_disable_most_optimizations', False)
  yield
  jax.config.update('jax_disable_most_optimizations', True)


@pytest.fixture(scope='module', autouse=True)
def small_heap():
  """Forgets a module's programs when it ends: they would slow down all that comes after it."""
  yield
  jax.clear_caches()
  gc.collect()
  gc.freeze()  # what is alive now mostly stays: the next collections need not look at it
