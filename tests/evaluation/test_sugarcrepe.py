"""SugarCrepe's accuracies and those of SugarCrepe++, against the definitions by hand."""

import json

import numpy as np
import pytest

from align_jax.data.pair_sources import open_pairs
from align_jax.evaluation import sugarcrepe

VECTORS = {'right': (0.9, 0.1), 'also': (0.8, 0.3), 'wrong': (0.1, 0.9), 'far': (-1.0, 0.0)}


@pytest.fixture
def folder(tmp_path):
  for name in ('a', 'b'):
    (tmp_path / f'{name}.jpg').write_bytes(name.encode())
  return tmp_path


def write(folder, category, *items):
  keys = ('filename', 'caption', 'caption2', 'negative_caption')
  keys = keys if len(items[0]) == 4 else (keys[0], keys[1], keys[3])
  value = [dict(zip(keys, item, strict=True)) for item in items]
  (folder / f'{category}.json').write_text(json.dumps(value))


class Embed:
  def __init__(self):
    self.asked = []

  def __call__(self, contents, role, instruction):
    self.asked += [(c.id, role, instruction) for c in contents]
    rows = [(1.0, 0.0) if c.images else VECTORS[c.text] for c in contents]
    return np.array(rows, np.float32)


def test_accuracies_and_averages(folder):
  write(folder, 'swap_att', ('a.jpg', 'right', 'wrong'), ('b.jpg', 'wrong', 'right'))
  write(folder, 'swap_obj', ('a.jpg', 'right', 'wrong'))
  write(folder, 'add_obj', ('a.jpg', 'right', 'right'))  # a tie is no hit
  embed = Embed()
  scores = sugarcrepe.evaluate(open_pairs(f'sugarcrepe:{folder}'), embed)
  assert scores == {
    'swap_obj': 1.0, 'swap_att': 0.5, 'add_obj': 0.0, 'swap': 0.75, 'add': 0.0, 'average': 0.5,
  }  # fmt: skip
  assert len(embed.asked) == len(set(embed.asked)) == 4  # two images, two captions
  roles = {(role, instruction) for _, role, instruction in embed.asked}
  assert roles == {('candidate', ''), ('query', sugarcrepe.INSTRUCTION)}
  assert '| average | 50.0 |' in sugarcrepe.table(scores)


def test_plus_plus(folder):
  write(
    folder,
    'replace_att',
    ('a.jpg', 'right', 'also', 'wrong'),  # both ways
    ('b.jpg', 'right', 'wrong', 'also'),  # the image is nearer to the wrong one than to one of them
    ('b.jpg', 'right', 'also', 'far'),
    ('b.jpg', 'wrong', 'wrong', 'right'),  # equal texts, but of another image
  )
  write(folder, 'swap_obj', ('a.jpg', 'wrong', 'far', 'also'))
  scores = sugarcrepe.evaluate(open_pairs(f'sugarcrepe:{folder}'), Embed())
  assert scores == {
    'itt.replace_att': 0.5, 'itt.swap_obj': 0.0, 'itt.average': 0.25,
    'tot.replace_att': 0.75, 'tot.swap_obj': 0.0, 'tot.average': 0.375,
  }  # fmt: skip


def test_hits_against_a_loop():
  rng = np.random.default_rng(0)
  image, first, second, wrong = rng.normal(size=(4, 50, 3))
  itt = [
    p @ i > n @ i and q @ i > n @ i for i, p, q, n in zip(image, first, second, wrong, strict=True)
  ]
  tot = [p @ q > p @ n and p @ q > q @ n for p, q, n in zip(first, second, wrong, strict=True)]
  assert sugarcrepe.image_hits(image, np.stack([first, second], 1), wrong).tolist() == itt
  assert sugarcrepe.text_hits(first, second, wrong).tolist() == tot
  assert 5 < sum(itt) < 45 and 5 < sum(tot) < 45
