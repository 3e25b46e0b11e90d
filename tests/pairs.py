"""Pairs by hand, vectors for them, and a page's contents."""

import hashlib
import html.parser

import numpy as np

from align_jax.data.pair_record import Content, PairRecord
from align_jax.errors import UserError


class Source:
  """Pairs given one by one; a text in place of one says why it cannot be read."""

  spec, licence = 'tests:pairs', ''

  def __init__(self, pairs):
    self.pairs = pairs

  def __len__(self):
    return len(self.pairs)

  def __getitem__(self, index):
    if isinstance(self.pairs[index], str):
      raise UserError(self.pairs[index])
    return self.pairs[index]

  def ids(self):
    return [f'{i:03}' for i in range(len(self.pairs))]


def pair(number, query=None, positive=None, task='t', label=''):
  query = query or Content(f'query {number}')
  return PairRecord(f'{number:03}', task, query, positive or Content(f'{number}'), label=label)


def hashed(contents, role, instruction):
  """Unit vectors that depend on the content alone."""
  seeds = [int(hashlib.sha256(c.id.encode()).hexdigest()[:8], 16) for c in contents]
  x = np.stack([np.random.default_rng(seed).standard_normal(8) for seed in seeds])
  return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


class Page(html.parser.HTMLParser):
  """What a page shows."""

  def __init__(self, text):
    super().__init__()
    self.images, self.tags, self.words = [], [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    if tag == 'img':
      self.images.append(dict(attrs)['src'])

  def handle_data(self, data):
    self.words.append(data.strip())
