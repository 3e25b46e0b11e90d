"""The rows of a small run, for the tests of its report."""

import html.parser
import io

import numpy as np
from PIL import Image

from align_jax.evaluation.report import Details
from align_jax.synth.report.data import ReportConfig, ReportData, Threshold
from align_jax.synth.rows import (
  AnnotationRow,
  Category,
  DecisionRow,
  ImageRow,
  PromptRow,
  ScoreRow,
)

CONFIG = ReportConfig()
KEPT = 'Kept, by category and generator'


class Page(html.parser.HTMLParser):
  """Collects tags, the addresses they would fetch, and all text."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.fetched, self.words = [], [], ''
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.fetched += [v for k, v in attrs if k in ('src', 'srcset', 'data') or tag == 'link']

  def handle_data(self, data):
    self.words += data


def png(colour='red', size=4):
  buffer = io.BytesIO()
  Image.new('RGB', (size, size), colour).save(buffer, 'PNG')
  return buffer.getvalue()


def unit(rows, dim=5, seed=0):
  x = np.random.default_rng(seed).normal(size=(rows, dim))
  return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def image(id_, category='cat', generator='flow', strategy='template', failure=''):
  return ImageRow(
    id_, category, f'p-{category}', f'a {category}', strategy, generator, f'{generator}-v1', 0,
    failure=failure,
  )  # fmt: skip


IMAGES = [
  image('a'),
  image('b', generator='cvae'),
  image('c', 'dog', strategy='llm'),
  image('d', 'dog', generator='cvae'),
  image('e', 'owl', strategy='llm'),
  image('f', failure='not_finite'),
  image('g', 'dog'),
  image('h'),
]
DECISIONS = [
  DecisionRow('a', True, notes=('threshold fell back',)),
  DecisionRow('b', False, ('similarity 0.41 < 0.60', 'area 0.01 < 0.05')),
  DecisionRow('c', False, ('blank 0.00 < 1.00',)),
  DecisionRow('d', False, ('duplicate 0.99 > 0.95',), duplicate_of='a'),
  DecisionRow('e', True),
  DecisionRow('h', False, ('similarity 0.20 < 0.60',)),
]
FULL = ReportData(
  categories=[
    Category('cat', real_images=9),
    Category('dog', real_images=2),
    Category('owl', extra=True, similarity=0.31),
  ],
  prompts=[
    PromptRow('p-cat', 'cat', 'a cat', 'template'),
    PromptRow('p-dog', 'dog', 'a dog', 'template'),
    PromptRow('p-owl', 'owl', 'an owl of glass', 'llm'),
  ],
  images=IMAGES,
  annotations=[
    AnnotationRow('a', 8, 8, 0.5),
    AnnotationRow('e', 8, 8, 0.3),
    AnnotationRow('c', 8, 8, failure='empty'),
  ],
  scores=[
    ScoreRow('a', similarity=0.7, text=0.3),
    ScoreRow('b', similarity=0.41),
    ScoreRow('h', similarity=0.2),
    ScoreRow('e', similarity=0.65, similarity_to='text'),
  ],
  decisions=DECISIONS,
  embedded=['a', 'b', 'c', 'e'],
  embeddings=unit(4),
  real_ids=['r1', 'r2', 'r3'],
  real_categories=['cat', 'cat', 'dog'],
  real_embeddings=unit(3, seed=1),
  prompt_diversity={
    'template': {'mean_pairwise_distance': 0.25, 'distinct_2': 0.5},
    'llm': {'mean_pairwise_distance': 0.75},
  },
  thresholds=[Threshold('similarity', lower=0.6, real=np.asarray([0.7, 0.8, 0.5]), note='fixed')],
  thumbnails={i: png() for i in 'abcdeh'},
  real_thumbnails={i: png('blue') for i in ('r1', 'r2', 'r3')},
  title='Trial',
  encoder='a tiny encoder',
  details=Details('How this was made', (('Command', 'python -m x'),)),
)


def table(part, title):
  (found,) = [s for s in part.sections if s.title == title]
  return {name: [c.text for c in cells] for name, cells in found.rows}
