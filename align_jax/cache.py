"""The user's cache folder, where drawn packs and compiled programs are kept between runs."""

import os
from pathlib import Path


def cache_folder() -> Path:
  """Returns $ALIGN_JAX_CACHE, else $XDG_CACHE_HOME/align_jax, else ~/.cache/align_jax."""
  own = os.environ.get('ALIGN_JAX_CACHE')
  if own:
    return Path(own).expanduser()
  shared = os.environ.get('XDG_CACHE_HOME')
  return (Path(shared) if shared else Path.home() / '.cache') / 'align_jax'


def keep_compiled_programs() -> None:
  """Lets XLA keep compiled programs, so that the same step compiles once for all seeds and arms.

  A folder the user chose with JAX's own flag is left as it is.
  """
  import jax  # the pack is drawn by processes that need no JAX

  chosen: str | None = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
  if chosen is None:
    jax.config.update('jax_compilation_cache_dir', str(cache_folder() / 'xla'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
