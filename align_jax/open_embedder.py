"""The embedder of whatever a user names: a run, or a Hugging Face folder."""

from typing import Literal

from jax.sharding import Mesh

from align_jax.answerer import read_llava
from align_jax.api import load
from align_jax.data.embed_prompt import Level
from align_jax.embedder import ContentEmbedder, longest_prompt
from align_jax.errors import UserError
from align_jax.interop.folder import find_folder, read_folder
from align_jax.storage import open_path
from align_jax.tower_embedder import TowerEmbedder, load_embedder, with_roles


def open_embedder(
  spec: str,
  level: Level | Literal[''] = '',
  *,
  step: int | None = None,
  mesh: Mesh | None = None,
) -> ContentEmbedder | TowerEmbedder:
  """The embedder of a run, or of a Hugging Face folder.

  Args:
    spec: a run folder, or `hf:` and the folder or hub id of a LLaVA, CLIP or SigLIP.
    level, step, mesh: see `load_embedder`; the level of a LLaVA is hierarchical unless named.

  Raises:
    UserError: see `load_embedder`; a folder of another architecture, or a step of one.
  """
  if not spec.startswith('hf:'):
    return load_embedder(open_path(spec), level, step=step, mesh=mesh)
  if step is not None:
    raise UserError(f'{spec}: a Hugging Face folder has no steps; leave the step out')
  name = spec.removeprefix('hf:')
  if 'decoder' not in read_folder(find_folder(name)).model:
    if level:
      raise UserError(f'{spec}: a dual encoder has no prompt; leave the level {level!r} out')
    return TowerEmbedder(load(spec).encoder)
  llava = read_llava(name)
  embedder = ContentEmbedder(
    llava.config,
    llava.params,
    llava.chat,
    llava.transform,
    longest_prompt(llava.config),
    level or 'hierarchical',
    mesh=mesh,
  )
  return with_roles(embedder, spec)
