"""The front page of the documentation is the README, read when the site is built (mkdocs.yml)."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent.parent
LINK = re.compile(r'(?<=\]\()(?!\w+:|#)([^)\s]+)(?=\))')  # but those to other sites


def on_files(files: Files, config: MkDocsConfig) -> Files:
  """Adds the README as `index.md`, and what it links to outside of docs/, such as notebooks.

  A link to a file that does not exist is left as it is: mkdocs warns of it.
  """
  readme = (ROOT / 'README.md').read_text()
  files.append(File.generated(config, 'index.md', content=LINK.sub(_from_docs, readme)))
  for name in dict.fromkeys(LINK.findall(readme)):
    path = ROOT / name
    if not name.startswith('docs/') and path.is_file():
      files.append(File.generated(config, name, abs_src_path=str(path)))
  return files


def _from_docs(link: re.Match[str]) -> str:
  return link[1].removeprefix('docs/')
