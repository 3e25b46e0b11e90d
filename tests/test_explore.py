"""What `align_jax.explore` shows: the numbers of the arrays, in HTML that needs nothing else."""

import html.parser
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from align_jax import explore
from align_jax.errors import UserError
from align_jax.evaluation import gap, plots
from tests import tiny

NASTY = '<img src=x onerror=alert(1)> & "quoted" </script>'
VOID = {'meta', 'img', 'path', 'line', 'input', 'br', 'hr', 'use', 'link'}


class Page(html.parser.HTMLParser):
  """The tags of a piece of HTML, in order; fails where they do not nest."""

  def __init__(self, text):
    super().__init__()
    self.open, self.tags, self.words = [], [], []
    self.feed(text)
    self.close()
    assert not self.open, self.open

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in VOID - {'path'}:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    if tag not in VOID - {'path'}:
      assert self.open.pop() == tag

  def handle_data(self, data):
    self.words.append(data)

  def every(self, tag, kind=''):
    return [a for t, a in self.tags if t == tag and kind in (a.get('class') or '').split() + ['']]


def unit(rows, dim=8, seed=0):
  x = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def pictures(count, seed=0):
  return [tiny.picture('red', 'disc', seed + i) for i in range(count)]


def fetched(text):
  """Every address that a browser would go to."""
  found = re.findall(r'url\(([^)]*)\)', text)
  for _, attributes in Page(text).tags:
    found += [v for k, v in attributes.items() if k in ('src', 'srcset', 'data', 'href')]
  return [address for address in found if not address.startswith(('data:', '#'))]


def test_a_map_has_a_mark_for_each_image_and_a_link_for_each_pair():
  real, generated = unit(3), unit(2, seed=1)
  shown = explore.map_images(
    real, generated, pictures(3), pictures(2, 9), captions=['a', NASTY, 'c'], partners=[1, -1]
  )
  page = Page(shown.html)
  assert len(page.every('path', 'mark')) == 5
  (link,) = page.every('line', 'link')
  assert (link['data-real'], link['data-generated']) == ('1', '3')
  assert float(link['data-cosine']) == pytest.approx(real[1] @ generated[0], abs=6e-3)
  places = {
    a['data-i']: (float(a['data-x']), float(a['data-y'])) for a in page.every('path', 'mark')
  }
  assert set(places) == set('01234')
  assert all(0 <= x <= 640 and 0 <= y <= 440 for x, y in places.values())
  assert (link['x1'], link['y1']) == tuple(map(str, places['1']))
  assert page.words.count(NASTY) == 2  # as text, under the image and its partner
  assert page.every('img') == []
  assert len(page.every('script')) == 1
  assert not fetched(shown.html)


def test_the_hover_shows_an_image_its_partner_and_their_cosine():
  """The script runs in Node, on a document that knows just what it asks for."""
  node = shutil.which('node')
  if node is None:
    pytest.skip('needs Node')
  shown = explore.map_images(
    unit(2), unit(2, seed=1), pictures(2), pictures(2, 9), captions=['first', 'second']
  )
  marks = Page(shown.html).every('path', 'mark')
  links = Page(shown.html).every('line', 'link')
  script = re.search(r'<script>(.*?)</script>', shown.html, re.S)[1]
  place = next(a for a in marks if a['data-i'] == '3')
  done = subprocess.run(
    [node, '-e', f'{_DOCUMENT}\n{script}\nreport()'],
    input='',
    env={'DATA': json.dumps([marks, links, place])},
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == 0, done.stderr
  cosine = float(unit(2)[1] @ unit(2, seed=1)[1])
  assert done.stdout.splitlines() == [
    'none: none',
    f'flex: generated|real, cosine {cosine:.2f}|words of 3; on: 1 3 link',
    'none: ',
  ]


_DOCUMENT = """
const [marks, links, place] = JSON.parse(process.env.DATA);
const element = attributes => {
  const classes = new Set((attributes.class || '').split(' '));
  const data = {};
  for (const [k, v] of Object.entries(attributes)) if (k.startsWith('data-')) data[k.slice(5)] = v;
  const made = {
    dataset: data, style: {}, children: [], textContent: '',
    offsetWidth: 10, offsetHeight: 10, clientWidth: 640,
    classList: {
      add: c => classes.add(c), remove: c => classes.delete(c), contains: c => classes.has(c),
    },
    replaceChildren: () => { made.children = []; },
    appendChild: child => { made.children.push(child); return child; },
    getBoundingClientRect: () => ({ left: 0, top: 0, width: 640, height: 440 }),
    name: attributes.class,
  };
  return made;
};
const points = marks.map(
  a => Object.assign(element(a), { textContent: `words of ${a['data-i']}` }));
const lines = links.map(element);
const svg = element({}), card = element({}), root = element({});
card.style.display = 'none';
svg.querySelectorAll = s => s === '.link' ? lines : s === '.on'
  ? [...points, ...lines].filter(n => n.classList.contains('on')) : points;
root.querySelector = s => s === '.aj-card' ? card : svg;
global.document = { querySelectorAll: () => [root], createElement: () => element({}) };
const words = n => n.children.length ? n.children.flatMap(words)
  : n.textContent ? [n.textContent] : [];
const say = () => `${card.style.display}: ${words(card).join('|')}`;
const report = () => {
  svg.onmousemove({ clientX: -500, clientY: -500 });
  console.log(say() + 'none');
  svg.onmousemove({ clientX: +place['data-x'], clientY: +place['data-y'] });
  const on = [...points, ...lines].filter(n => n.classList.contains('on'));
  console.log(say() + '; on: ' + on.map(n => n.dataset.i ?? 'link').sort().join(' '));
  svg.onmouseleave();
  console.log(say());
};
"""


def test_neighbours_stand_in_the_order_of_their_cosines():
  queries, candidates = unit(2), unit(6, seed=1)
  best = int(np.argmax(queries[0] @ candidates.T))
  shown = explore.show_neighbours(
    queries, candidates, ['a red disc', NASTY], pictures(6), count=3, partners=[best, 0]
  )
  page = Page(shown.html)
  expected = np.sort(queries @ candidates.T, axis=1)[:, ::-1][:, :3]
  assert [a['alt'] for a in page.every('img')] == [f'{c:.2f}' for c in expected.ravel()]
  assert len(page.every('div', 'query')) == 2
  assert page.every('div', 'partner')
  assert NASTY in page.words
  assert not fetched(shown.html)


def test_neighbours_of_an_image_may_be_texts(tmp_path):
  path = tmp_path / 'a.png'
  path.write_bytes(tiny.png(tiny.picture('red', 'disc', 0)))
  shown = explore.show_neighbours(unit(1), unit(3), [path], ['one', 'two', 'three'], count=1)
  assert '1.00  one' in Page(shown.html).words


def test_the_gap_is_that_of_the_evaluation():
  real, generated = unit(5), unit(5, seed=1)
  values = explore.measure_gap(real, generated)
  assert values['paired_cosine'] == pytest.approx(
    np.mean(np.sum(real * generated, axis=1)), abs=1e-6
  )
  assert values['centroid_distance'] == gap.centroid_distance(real, generated)
  assert values['unpaired_cosine'] == gap.unpaired_cosine(real, generated)
  shown = explore.show_gap({'before': (real, generated), NASTY: (real, real)})
  words = Page(shown.html).words
  assert {f'{v:.3f}' for v in values.values()} <= set(words)
  assert {'before', NASTY, '1.000'} <= set(words)
  assert not fetched(shown.html)


def test_views_are_small_to_print_and_whole_when_saved(tmp_path):
  shown = explore.show_images(pictures(2), ['one', NASTY])
  assert shown._repr_html_() == shown.html
  assert repr(shown) == "View(title='Images')"
  shown.save(tmp_path / 'deep' / 'page.html')
  text = (tmp_path / 'deep' / 'page.html').read_text()
  assert text.startswith('<!doctype html>')
  assert shown.html in text
  assert len(Page(text).every('img')) == 2


def test_one_sheet_of_pictures_is_smaller_than_a_file_each(monkeypatch):
  rng = np.random.default_rng(0)  # a layout by UMAP takes its time: tests/evaluation/test_plots.py
  monkeypatch.setattr(plots, 'umap_map', lambda *_: (rng.normal(size=(30, 2)),) * 2)
  shown = explore.map_images(unit(30), unit(30, seed=1), pictures(30), pictures(30, 50))
  assert len(shown.html) < 60 * len(tiny.png(pictures(1)[0])) / 2


def test_mistakes_say_what_is_missing(tmp_path):
  images, vectors = pictures(2), unit(2)
  for call, said in [
    (lambda: explore.show_images(images, ['one']), 'titles: 1 given for 2'),
    (lambda: explore.show_images([tmp_path / 'none.png']), 'image 0: no file'),
    (
      lambda: explore.show_neighbours(vectors, vectors, images[:1], images),
      'queries: 1 given for 2',
    ),
    (lambda: explore.show_neighbours(vectors, vectors, images, images, count=0), 'count from 1'),
    (lambda: explore.measure_gap(vectors[:1], vectors[:1]), 'two pairs or more, not 1'),
    (lambda: explore.show_gap({}), 'show_gap: needs a model'),
    (
      lambda: explore.map_images(vectors, vectors, images, images, partners=[0, 2]),
      'rows of 2, or',
    ),
    (lambda: explore.map_images(vectors[:0], vectors[:0], [], []), 'needs images'),
  ]:
    with pytest.raises(UserError, match=said):
      call()
