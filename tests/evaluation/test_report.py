import html.parser
import io
import os

import pytest
from PIL import Image

from align_jax.errors import UserError
from align_jax.evaluation import report as rp
from align_jax.evaluation.pictures import Picture, Row


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


def png(colour='red'):
  buffer = io.BytesIO()
  Image.new('RGB', (4, 4), colour).save(buffer, 'PNG')
  return buffer.getvalue()


def page(*sections, **fields):
  return rp.Report('Title', 'It held.', sections, **fields)


def test_every_section_is_in_a_page_that_fetches_nothing():
  text = rp.render(
    page(
      rp.metric_table('Results', {'aligned': {'probe.knn': 0.5}}),
      rp.Curves('Curves', (rp.Curve({'loss': [(0, 2.0), (1, 1.0)], 'empty': []}, 'falls'),)),
      rp.Figures('Map', (rp.Figure(png(), 'after', (('#1f83c4', 'real'),)),)),
      rp.Pictures('Samples', (Row('a cat', (Picture(png(), 'real', 'right'), Picture(b''))),)),
      rp.Text('Words', 'First.\n\nSecond.'),
      rp.Details('Made by', (('Command', 'python -m x'),)),
      lead='short',
    )
  )
  parsed = Page(text)
  assert parsed.tags.count('section') == 6
  assert parsed.fetched
  assert all(address.startswith('data:image/') for address in parsed.fetched)
  assert 'script' not in parsed.tags
  assert 'Content-Security-Policy' in text
  for words in ('It held.', 'falls', 'a cat', 'Second.', 'python -m x', 'real'):
    assert words in parsed.words


def test_several_findings_are_a_list():
  drawn = rp.Figures('Drawn', (rp.Figure(png(), wide=True),))
  text = rp.render(rp.Report('Title', 'First.\nSecond <b>.\nThird.', (drawn,)))
  assert Page(text).tags.count('li') >= 3 and '<li>Second &lt;b&gt;.</li>' in text
  assert 'class="wide"' in text
  assert 'class="verdict"' in rp.render(rp.Report('Title', 'One.', (drawn,)))


def test_text_from_data_is_escaped():
  evil = '<img src=x onerror=alert(1)>"\'&'
  text = rp.render(
    rp.Report(
      evil,
      evil,
      (
        rp.metric_table(evil, {evil: {'own.key': 1.0}}, keys=['own.key'], note=evil),
        rp.Curves(evil, (rp.Curve({evil: [(0, 1)]}, evil, evil, evil),)),
        rp.Figures(evil, (rp.Figure(png(), evil, (('red', evil),)),)),
        rp.Pictures(evil, (Row(evil, (Picture(png(), evil),)),)),
        rp.Text(evil, evil),
        rp.Details(evil, ((evil, evil),)),
      ),
      evil,
    )
  )
  parsed = Page(text)
  assert 'x' not in parsed.fetched
  assert evil in parsed.words


def test_empty_sections_are_left_out():
  text = rp.render(page(rp.Pictures('Nothing', ()), rp.Curves('None', (rp.Curve({'a': []}),))))
  assert 'section' not in Page(text).tags


def test_table_marks_the_best_and_spreads_over_seeds():
  table = rp.metric_table(
    'Results',
    {
      'a': {'probe.knn': [0.5, 0.6, 0.7], 'retrieval.t2i.median_rank': 4.0, 'gap.auc': 0.9},
      'b': {'probe.knn': [0.4, 0.4, 0.4], 'retrieval.t2i.median_rank': 2.0, 'gap.auc': 0.5},
      'c': {},
    },
    keys=['probe.knn', 'retrieval.t2i.median_rank', 'gap.auc'],
    names={'a': 'Arm A'},
  )
  assert table.heads[0] == 'kNN probe (%)'
  assert [name for name, _ in table.rows] == ['Arm A', 'b', 'c']
  a, b, c = (cells for _, cells in table.rows)
  assert (a[0].text, a[0].spread, a[0].best) == ('60.0', '10.0', True)
  assert (b[0].text, b[0].spread, b[0].best) == ('40.0', '0.0', False)
  assert (a[1].best, b[1].best) == (False, True)  # a lower rank is better
  assert not a[2].best and not b[2].best  # a small gap is no merit by itself
  assert [cell.text for cell in c] == ['–'] * 3
  assert '3 seeds' in table.note


def test_table_of_headline_metrics_by_default():
  table = rp.metric_table('R', {'a': {'gap.auc': 0.7, 'probe.knn': 0.5, 'other': 1.0}})
  assert table.heads == ('kNN probe (%)', 'Gap AUC')
  assert not table.rows[0][1][0].best  # one arm: nothing to be best of


def test_what_reads_the_same_is_marked_the_same():
  table = rp.metric_table('R', {'a': {'probe.knn': 0.5001}, 'b': {'probe.knn': 0.5002}})
  assert [cells[0].best for _, cells in table.rows] == [True, True]


def test_write_replaces_the_whole_page(tmp_path):
  path = tmp_path / 'new' / 'report.html'
  rp.write_report(path, page(rp.Text('One', 'first')))
  rp.write_report(path, page(rp.Text('Two', 'second')))
  assert 'second' in path.read_text(encoding='utf-8')
  assert os.listdir(path.parent) == ['report.html']


def test_a_failed_write_leaves_the_page_before(tmp_path, monkeypatch):
  path = tmp_path / 'report.html'
  path.write_text('before')

  def full(descriptor):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', full)
  with pytest.raises(UserError, match='no space left'):
    rp.write_report(path, page(rp.Text('One', 'first')))
  assert path.read_text() == 'before'
  assert os.listdir(tmp_path) == ['report.html']


def test_a_file_in_the_way_of_the_folder(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='cannot write'):
    rp.write_report(tmp_path / 'file' / 'report.html', page())
