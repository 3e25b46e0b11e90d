"""A folder's files to a repository of the Hugging Face hub."""

import re
from pathlib import Path

from align_jax.errors import UserError

_REPOSITORY = re.compile(r'[\w.-]+/[\w.-]+')


def check_push(repo: str, *, dry_run: bool) -> None:
  """Checks what can be before anything is written; nothing is asked of the hub.

  Raises:
    UserError: no name of a repository, or no token.
  """
  if not _REPOSITORY.fullmatch(repo):
    raise UserError(f'--push: {repo!r} is no repository; write OWNER/NAME')
  import huggingface_hub  # here: an export without a push does without

  if not dry_run and not huggingface_hub.get_token():
    raise UserError(
      f'--push={repo}: no token; set HF_TOKEN to one that may write there, or add --dry_run'
    )


def push_folder(folder: Path, repo: str, *, dry_run: bool) -> list[str]:
  """Uploads a folder; the token comes from the environment (`HF_TOKEN`).

  Args:
    folder: what to upload, whole.
    repo: `OWNER/NAME`; made, private, if it is not there.
    dry_run: upload nothing.

  Returns: the files and their sizes, one line each.

  Raises:
    UserError: the hub does not take it.
  """
  files = sorted(path for path in folder.rglob('*') if path.is_file())
  lines = [f'{path.relative_to(folder)}  {path.stat().st_size:,} bytes' for path in files]
  if dry_run:
    return lines
  import huggingface_hub

  api = huggingface_hub.HfApi()
  try:
    api.create_repo(repo, private=True, exist_ok=True)
    api.upload_folder(repo_id=repo, folder_path=str(folder), commit_message='Export from align_jax')
  except Exception as error:  # of many kinds: no network, no right, a hub out of order
    said = ' '.join(str(error).split())[:200]
    raise UserError(
      f'--push={repo}: the hub did not take it ({type(error).__name__}: {said}); the folder is '
      f'whole in {folder}; see that HF_TOKEN may write there, then: hf upload {repo} {folder}'
    ) from error
  return lines
