"""Every test runs with shape-checked signatures and eight simulated devices."""

import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('HF_HUB_OFFLINE', '1')

import jax
from jaxtyping import install_import_hook

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_threefry_partitionable', True)
# kept for the whole session: modules imported later are checked as well
_hook = install_import_hook('align_jax', 'beartype.beartype')
