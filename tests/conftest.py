"""Every test runs with shape-checked signatures and eight simulated devices."""

import os
from pathlib import Path

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('HF_HUB_OFFLINE', '1')

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update('jax_num_cpu_devices', 8)
# many tests train the same tiny programs: each compiles once
jax.config.update(
  'jax_compilation_cache_dir', str(Path(__file__).parent.parent / '.pytest_cache/xla')
)
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)
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
