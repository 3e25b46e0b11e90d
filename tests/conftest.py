"""Every test runs with shape-checked signatures and eight simulated devices."""

import os
from pathlib import Path

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('HF_HUB_OFFLINE', '1')

import jax
from jaxtyping import install_import_hook

jax.config.update('jax_num_cpu_devices', 8)
# many tests train the same tiny programs: each compiles once
jax.config.update(
  'jax_compilation_cache_dir', str(Path(__file__).parent.parent / '.pytest_cache/xla')
)
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)
# kept for the whole session: modules imported later are checked as well
_hook = install_import_hook('align_jax', 'beartype.beartype')
