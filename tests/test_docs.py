"""The documentation site: which pages it has, and that it can read our docstrings."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent


def test_the_site_has_every_page_in_the_order_of_the_readme():
  first, *pages = yaml.safe_load((ROOT / 'mkdocs.yml').read_text())['nav']
  table = (ROOT / 'README.md').read_text().partition('## What is inside')[2]
  assert first == 'index.md'
  assert pages == list(dict.fromkeys(re.findall(r'\]\(docs/(\w+\.md)\)', table)))
  assert sorted(pages) == sorted(path.name for path in (ROOT / 'docs').glob('*.md'))


def test_docstrings_are_parsed():
  griffe = pytest.importorskip('griffe', reason='needs the extra docs')
  extensions = griffe.load_extensions(ROOT / 'docs' / 'hooks' / 'docstrings.py')
  module = griffe.load(
    'align_jax.api', search_paths=[ROOT], extensions=extensions, docstring_parser='google'
  )
  sections = {s.kind.value: s.value for s in module['nearest'].docstring.parsed}
  assert [p.name for p in sections['parameters']] == ['queries', 'candidates', 'count']
  assert str(sections['parameters'][0].annotation) == "Float[np.ndarray, 'q dim']"
  assert sections['returns'][0].description == 'their places, best first, and their cosines.'
  assert sections['raises'][0].description == 'no candidates, or a count below one.'
