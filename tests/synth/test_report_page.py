import dataclasses
import html.parser
import io
import json

import numpy as np
import pytest
from PIL import Image

from align_jax.errors import UserError
from align_jax.evaluation.distribution import compare, dispersion
from align_jax.evaluation.report import Details, Facts, Figures, Pictures, Table
from align_jax.synth.report import drawing
from align_jax.synth.report.categories import count_categories, make_categories
from align_jax.synth.report.data import ReportConfig, ReportData, Threshold
from align_jax.synth.report.funnel import make_funnel, outcomes
from align_jax.synth.report.maps import make_maps
from align_jax.synth.report.page import build_report, verdict, write_report
from align_jax.synth.report.prompts import make_prompts
from align_jax.synth.report.samples import MOST_BYTES, make_samples, wanted_pictures
from align_jax.synth.report.spread import make_spread
from align_jax.synth.report.thresholds import make_thresholds
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


def test_the_page_has_every_section_and_fetches_nothing(tmp_path):
  numbers = write_report(FULL, tmp_path / 'report.html')
  page = Page((tmp_path / 'report.html').read_text())
  titles = [
    'From prompts to shards',
    'By generator',
    'By prompt strategy',
    'Reasons for dropping',
    'Masks, comparisons and notes',
    'Kept, by category and generator',
    'Dropped, by reason',
    'Kept, but nearest to the cut',
    'Thresholds',
    'Images of each category',
    'Prompt diversity',
    'Prompts drawn at random',
    'Map of real and generated images',
    'Distribution: kept and dropped',
    'How this was made',
  ]
  assert all(title in page.words for title in titles)
  assert '2 of 8 images kept (25.0 %); 4 dropped, 2 of them for similarity' in page.words
  assert 'not FID (a tiny encoder)' in page.words
  assert page.fetched and all(a.startswith('data:image/') for a in page.fetched)
  assert 'script' not in page.tags
  assert json.loads((tmp_path / 'report.json').read_text()) == numbers


def test_funnel_counts_add_up():
  found = outcomes(FULL)
  part = make_funnel(FULL, found)
  numbers = part.numbers
  assert numbers['funnel.asked'] == 8 and numbers['funnel.prompts'] == 3
  assert numbers['funnel.failed.not_finite'] == numbers['funnel.failed'] == 1
  assert numbers['funnel.undecided'] == 1
  assert numbers['funnel.kept'] == 2
  dropped = {k: v for k, v in numbers.items() if k.startswith('funnel.dropped.')}
  assert list(dropped) == [f'funnel.dropped.{r}' for r in ('blank', 'similarity', 'duplicate')]
  assert sum(dropped.values()) == numbers['funnel.dropped'] == 4
  assert numbers['funnel.flagged.area'] == 1 and 'funnel.dropped.area' not in numbers
  assert table(part, 'By generator') == {
    'flow': ['6', '1', '1', '1', '0', '2', '33.3 %'],
    'cvae': ['2', '0', '0', '1', '1', '0', '0.0 %'],
  }
  assert numbers['strategy.llm.kept'] == 1
  assert table(part, 'Reasons for dropping')['area'] == ['0', '0.0 %', '1']
  notes = dict(part.sections[-1].rows)
  assert notes['masks'] == '2 of 3, mean area 40.0 %'
  assert notes['mask: empty'] == notes['threshold fell back'] == notes['compared with: text'] == '1'


def test_many_reasons_share_a_column():
  reasons = [f'r{i:02d}' for i in range(20) for _ in range(20 - i)]
  data = ReportData(
    images=[image(str(i)) for i in range(len(reasons))],
    decisions=[DecisionRow(str(i), False, (f'{r} 1 < 2',)) for i, r in enumerate(reasons)],
  )
  part = make_funnel(data, outcomes(data))
  (cells,) = table(part, 'By generator').values()
  assert cells[2:7] == ['20', '19', '18', '17', '16']
  assert cells[7] == str(len(reasons) - 90)
  assert b'9 other reasons' in part.sections[0].figures[0].image


def test_categories_own_first_then_extra():
  counts = count_categories(FULL, outcomes(FULL))
  assert [(c.category.name, c.asked, c.kept, c.reason) for c in counts] == [
    ('cat', 4, 1, 'similarity'),
    ('dog', 3, 0, 'blank'),
    ('owl', 1, 1, ''),
  ]
  part = make_categories(counts)
  assert part.numbers['category.dog.real'] == 2
  assert part.numbers['categories.extra'] == part.numbers['categories.without_kept'] == 1
  assert table(part, 'Images of each category')['owl'][0] == 'extra, 0.31'
  assert any(isinstance(s, Facts) and s.figures for s in part.sections)


def test_prompt_diversity_of_each_strategy():
  part = make_prompts(FULL, CONFIG)
  assert table(part, 'Prompt diversity') == {
    'template': ['2', '2', '0.250', '0.500'],
    'llm': ['1', '1', '0.750', '–'],
  }
  assert part.numbers['prompts.llm.mean_pairwise_distance'] == 0.75
  assert 'an owl of glass' in dict(part.sections[1].items)['llm']


def test_maps_share_one_layout(monkeypatch):
  drawn = []
  monkeypatch.setattr(drawing, 'clouds', lambda items: drawn.append(items) or b'<svg/>')
  part = make_maps(FULL, outcomes(FULL), CONFIG)
  assert (part.numbers['map.real'], part.numbers['map.generated']) == (3, 4)
  by_generator, by_strategy, by_category, by_fate = drawn
  assert [c.name for c in by_generator] == ['real', 'flow', 'cvae']
  assert [c.name for c in by_strategy] == ['real', 'llm', 'template']
  assert [c.name for c in by_fate] == ['real', 'kept', 'dropped']
  names = {c.name for c in by_category}
  assert names == {'cat', 'dog', 'owl', ''}
  every = [np.sort(np.concatenate([c.points for c in clouds]), axis=0) for clouds in drawn]
  for points in every[1:]:
    np.testing.assert_array_equal(points, every[0])


def test_rare_names_are_grey_and_last_in_the_legend(monkeypatch):
  drawn = []
  monkeypatch.setattr(drawing, 'clouds', lambda items: drawn.append(items) or b'<svg/>')
  images = [image(f'{g}{i}', generator=f'g{g}') for g in range(7) for i in range(1 + (g < 6))]
  data = ReportData(
    images=images, embedded=[i.id for i in images[-7:]], embeddings=unit(7)
  )  # of g3 one, of the others up to two
  make_maps(data, outcomes(data), CONFIG)
  assert len(drawn) == 3  # nothing is decided
  data = dataclasses.replace(
    data, embedded=[images[2 * g].id for g in range(7)], embeddings=unit(7)
  )
  make_maps(data, outcomes(data), CONFIG)
  by_generator = drawn[3]
  assert by_generator[-1].name == '1 others' and not len(by_generator[-1].points)
  assert by_generator[0].name == '' and len(by_generator[0].points) == 1
  assert len({(c.colour, c.mark) for c in by_generator[1:-1]}) == 6


def test_a_map_is_drawn_with_points_and_letters():
  clouds = [
    drawing.Cloud('<flow>', unit(30, 2), '#1f83c4', '^'),
    drawing.Cloud('', unit(3, 2), '#bdbdbd', 'o'),
  ]
  svg = drawing.clouds(clouds)
  assert b'data:image/png;base64' in svg and b'&lt;flow&gt;' in svg
  assert b'UMAP, first axis' in svg
  assert svg == drawing.clouds(clouds)


def many(groups, real=500, dim=4):
  """A run with so many embedded images of each generator, all kept and of one category."""
  images = [image(f'{g}-{i}', generator=g) for g, n in groups.items() for i in range(n)]
  return ReportData(
    images=images,
    decisions=[DecisionRow(i.id, True) for i in images],
    embedded=[i.id for i in images],
    embeddings=unit(len(images), dim),
    real_ids=[f'r{i:04d}' for i in range(real)],
    real_categories=['cat'] * real,
    real_embeddings=unit(real, dim, seed=1),
  )


def test_groups_are_measured_on_equally_many_images():
  data = many({'flow': 400, 'cvae': 240, 'few': 30})
  part = make_spread(data, outcomes(data), CONFIG)
  rows = table(part, 'Distribution by generator')
  assert [(name, row[0], row[1]) for name, row in rows.items()] == [
    ('real images', '500', '240'),
    ('cvae', '240', '240'),
    ('few', '30', '30'),
    ('flow', '400', '240'),
  ]
  numbers = part.numbers
  flow = data.embeddings[:400]
  assert numbers['distribution.generator.flow.dispersion'] == dispersion(flow)
  assert numbers['distribution.generator.flow.category_dispersion'] == pytest.approx(
    dispersion(flow)
  )
  # real against real: what nothing can beat
  assert numbers['distribution.outcome.real_images.coverage'] > 0.9
  assert {k.split('.')[2] for k in numbers if k.startswith('distribution.outcome')} == {
    'real_images',
    'all',
    'kept',
  }
  assert 'Small samples (few)' in part.sections[0].note
  assert all('Small samples' not in s.note for s in part.sections[1:])


def test_measures_are_those_of_the_distribution_module():
  data = many({'flow': 50}, real=90)
  part = make_spread(data, outcomes(data), ReportConfig(neighbours=3))
  expected = compare(data.real_embeddings, data.embeddings, 3)
  found = {k.rsplit('.', 1)[1]: v for k, v in part.numbers.items() if '.kept.' in k}
  assert found['measured'] == 50
  assert found['coverage'] == expected.manifold.coverage
  assert found['precision'] == expected.manifold.precision
  assert found['frechet_not_fid'] == pytest.approx(expected.frechet)
  assert found['kernel'] == pytest.approx(expected.kernel)
  assert [s.title for s in part.sections] == ['Distribution: kept and dropped']  # one generator


def test_categories_without_real_images_are_a_row_of_their_own():
  numbers = make_spread(FULL, outcomes(FULL), CONFIG).numbers
  assert numbers['distribution.outcome.all.images'] == 3
  assert numbers['distribution.outcome.without_real_images.images'] == 1
  assert numbers['distribution.outcome.all.coverage'] is None  # 3 images, 5 neighbours


def test_thresholds_of_one_cut_and_of_many():
  part = make_thresholds(FULL)
  (figures,) = part.sections
  assert '50.0 % of 4 generated images pass' in figures.items[0].caption
  assert '66.7 % of 3 held-out real images would' in figures.items[0].caption
  assert b'cut at 0.60' in figures.items[0].image
  assert part.numbers['threshold.similarity.generated_passed'] == 0.5
  data = dataclasses.replace(
    FULL, thresholds=[Threshold('similarity', by_category={'cat': 0.1, 'owl': 0.66}, upper=0.69)]
  )
  part = make_thresholds(data)
  assert b'cuts, middle 0.38' in part.sections[0].items[0].image
  assert part.numbers['threshold.similarity.generated_passed'] == 0.5  # b and h; a is too high
  assert part.numbers['threshold.similarity.real_passed'] is None


def test_samples_by_category_and_by_reason():
  part = make_samples(FULL, outcomes(FULL), CONFIG)
  kept, dropped, nearest = part.sections
  assert [row.title for row in kept.rows] == [
    'cat · real',
    'cat · flow, 1 of 3 kept',
    'owl (extra) · flow, 1 of 1 kept',
  ]
  rows = {row.title: [p.caption for p in row.pictures] for row in dropped.rows}
  assert rows['blank, 1 dropped'] == ['0.00 < 1.00, dog']
  assert rows['duplicate, 1 dropped'] == ['0.99 > 0.95, dog', 'is like this one']
  assert sorted(rows['similarity, 2 dropped']) == ['0.20 < 0.60, cat', '0.41 < 0.60, cat']
  assert [p.caption for p in nearest.rows[0].pictures] == ['0.650, owl', '0.700, cat']


def test_wanted_pictures_are_those_shown():
  bare = dataclasses.replace(FULL, thumbnails={}, real_thumbnails={})
  real, generated = wanted_pictures(bare, CONFIG)
  assert set(real) == {'r1', 'r2'}  # dog has none kept
  assert set(generated) == set('abcdeh')
  assert not any(s.rows for s in make_samples(bare, outcomes(bare), CONFIG).sections)


def test_pictures_stop_before_the_page_grows_large():
  big = np.random.default_rng(0).bytes(MOST_BYTES // 3)
  data = dataclasses.replace(FULL, thumbnails=dict.fromkeys('abcdeh', png() + big))
  part = make_samples(data, outcomes(data), CONFIG)
  shown = sum(len(p.png) for s in part.sections for row in s.rows for p in row.pictures)
  assert shown <= MOST_BYTES
  assert part.numbers['samples.left_out'] > 0
  assert 'pictures are left out' in part.sections[0].note


def test_text_from_data_is_escaped(tmp_path):
  evil = '<script>alert(1)</script>"\'&'
  data = dataclasses.replace(
    FULL,
    categories=[Category(evil, evil, source=evil, real_images=3)],
    prompts=[PromptRow('p', evil, evil, evil)],
    images=[
      dataclasses.replace(
        i,
        category=evil,
        prompt=evil,
        strategy=evil,
        generator=evil,
        generator_id=evil,
        failure=i.failure and evil,
      )
      for i in IMAGES
    ],
    annotations=[AnnotationRow('c', 8, 8, failure=evil)],
    scores=[ScoreRow('a', similarity=0.7, similarity_to=evil)],
    decisions=[
      dataclasses.replace(d, reasons=(evil,) if d.reasons else (), notes=(evil,)) for d in DECISIONS
    ],
    real_categories=[evil] * 3,
    prompt_diversity={evil: {evil: 0.5}},
    thresholds=[Threshold('similarity', by_category={evil: 0.3}, note=evil)],
    title=evil,
    encoder=evil,
    details=Details(evil, ((evil, evil),)),
  )
  write_report(data, tmp_path / 'report.html')
  text = (tmp_path / 'report.html').read_text()
  page = Page(text)
  assert '<script' not in text and 'script' not in page.tags
  assert evil in page.words
  assert all(address.startswith('data:image/') for address in page.fetched)
  json.loads((tmp_path / 'report.json').read_text())


def strip(**fields):
  return dataclasses.replace(FULL, **fields)


@pytest.mark.parametrize(
  ('name', 'data', 'absent', 'present'),
  [
    ('nothing at all', ReportData(), ('Categories', 'By generator'), ('No image was asked',)),
    (
      'only prompts yet',
      ReportData(categories=FULL.categories, prompts=FULL.prompts),
      ('By generator', 'Map of real'),
      ('Prompts drawn at random', 'From prompts to shards'),
    ),
    (
      'no real images',
      strip(real_ids=[], real_categories=[], real_embeddings=np.zeros((0, 0)), real_thumbnails={}),
      ('cat · real',),
      ('Without embeddings of real images nothing is compared', 'Map of real'),
    ),
    (
      'nothing decided',
      strip(decisions=[], thresholds=[]),
      ('Dropped, by reason', 'Reasons for dropping', 'Kept, by category', 'Thresholds'),
      ('7 not decided yet',),
    ),
    (
      'nothing kept',
      strip(decisions=[DecisionRow(d.id, False, ('area 0 < 1',)) for d in DECISIONS]),
      ('Kept, by category', 'nearest to the cut'),
      ('0 of 8 images kept (0.0 %)', 'Dropped, by reason'),
    ),
    (
      'no embeddings, no scores',
      strip(embedded=[], embeddings=np.zeros((0, 0)), scores=[], annotations=[]),
      ('Map of real', 'Distribution', 'Thresholds'),
      ('By generator',),
    ),
    (
      'no prompts',
      strip(prompts=[], prompt_diversity={}),
      ('Prompt diversity', 'drawn at random of each'),
      ('By prompt strategy',),
    ),
    (
      'no details, no pictures',
      strip(details=None, thumbnails={}, real_thumbnails={}),
      ('How this was made', 'Dropped, by reason'),
      ('Reasons for dropping',),
    ),
    (
      'one category',
      ReportData(
        categories=[Category('cat')],
        images=[image('a')],
        decisions=[DecisionRow('a', True)],
        embedded=['a'],
        embeddings=unit(1),
      ),
      ('Reasons for dropping', 'Categories that lost most'),
      ('1 of 1 image kept (100.0 %)', '1 category'),
    ),
  ],
)
def test_what_is_not_there_is_left_out(name, data, absent, present, tmp_path):
  write_report(data, tmp_path / 'report.html')
  words = Page((tmp_path / 'report.html').read_text()).words
  assert not [a for a in absent if a in words]
  assert not [p for p in present if p not in words]


def test_1500_categories_stay_small(tmp_path):
  rng = np.random.default_rng(0)
  categories = [
    Category(f'a category with a long name, number {i}', extra=i > 1200, real_images=1500 - i)
    for i in range(1500)
  ]
  noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8))
  buffer = io.BytesIO()
  noise.save(buffer, 'PNG')  # the worst that a thumbnail can be
  generators = ('flow', 'cvae', 'diffusers', 'external')
  images = [image(f'{c.name}-{g}', c.name, generators[g % 4]) for c in categories for g in range(8)]
  decisions = [
    DecisionRow(i.id, *((True,) if rng.random() < 0.7 else (False, (f'r{rng.integers(9)} 1 < 2',))))
    for i in images
  ]
  data = ReportData(
    categories=categories,
    images=images,
    decisions=decisions,
    scores=[ScoreRow(i.id, similarity=float(rng.normal())) for i in images],
    thresholds=[Threshold('similarity', by_category={c.name: 0.1 for c in categories})],
    thumbnails={i.id: buffer.getvalue() for i in images},
  )
  numbers = write_report(data, tmp_path / 'report.html')
  assert (tmp_path / 'report.html').stat().st_size < 1_300_000  # and 0.5 MB for the maps
  assert numbers['category.a category with a long name, number 7.real'] == 1493
  page, _ = build_report(data)
  tables = [s for s in page.sections if isinstance(s, Table)]
  assert max(len(t.rows) for t in tables) == 20
  (listing,) = [s for s in page.sections if isinstance(s, Details) and s.title == 'All categories']
  lines = listing.items[0][1].splitlines()
  assert len(lines) == 1501 and max(map(len, lines)) < 110
  grids = {s.title: s for s in page.sections if isinstance(s, Pictures)}
  assert len(grids) == 3 and all(grid.rows for grid in grids.values())
  # of each row at least one picture
  found = {row.title.split(' (extra)')[0].split(' · ')[0] for row in grids[KEPT].rows}
  assert len(found) == CONFIG.categories_shown
  assert numbers['samples.left_out'] > 0


def test_maps_of_many_points_stay_small():
  rng = np.random.default_rng(0)
  clouds = [
    drawing.Cloud(f'g{i}', rng.normal(size=(600, 2)), '#1f83c4', mark)
    for i, mark in enumerate('^sDvP')
  ]
  assert len(drawing.clouds(clouds)) < 130_000  # four of them, and a third more as base 64


def test_numbers_are_finite_or_null(tmp_path):
  embeddings = unit(4)
  embeddings[1] = np.nan
  data = strip(embeddings=embeddings, prompt_diversity={'llm': {'distinct_2': float('nan')}})
  numbers = write_report(data, tmp_path / 'report.html')
  assert numbers['embeddings.not_finite'] == 1
  assert numbers['map.generated'] == 3
  assert numbers['prompts.llm.distinct_2'] is None
  assert '1 embedding not finite' in (tmp_path / 'report.html').read_text()
  assert all(v is None or isinstance(v, int | float) for v in numbers.values())


def test_keys_of_the_numbers():
  _, numbers = build_report(FULL)
  groups = {key.split('.')[0] for key in numbers}
  assert groups == {
    'categories',
    'category',
    'distribution',
    'embeddings',
    'funnel',
    'generator',
    'map',
    'prompts',
    'samples',
    'strategy',
    'threshold',
  }


def test_the_order_of_rows_does_not_matter():
  turned = strip(
    decisions=DECISIONS[::-1],
    scores=FULL.scores[::-1],
    embedded=FULL.embedded[::-1],
    embeddings=FULL.embeddings[::-1],
  )
  (first, one), (second, two) = build_report(FULL), build_report(turned)
  assert one.keys() == two.keys()
  for key in one:
    assert one[key] == pytest.approx(two[key]), key
  maps = [[s for s in page.sections if isinstance(s, Figures)] for page in (first, second)]
  assert [f.title for f in maps[0]] == [f.title for f in maps[1]]


def test_verdict_of_one_reason():
  data = strip(images=IMAGES[:2], embedded=[], embeddings=np.zeros((0, 0)))
  assert verdict(outcomes(data)) == '1 of 2 images kept (50.0 %); 1 dropped, for similarity.'


def test_data_that_does_not_fit_together():
  with pytest.raises(ValueError, match='3 embeddings of 4 images'):
    strip(embeddings=unit(3))
  with pytest.raises(ValueError, match='differ in length'):
    strip(real_ids=['r1'])
  with pytest.raises(ValueError, match='not of one encoder'):
    strip(real_embeddings=unit(3, dim=7))
  with pytest.raises(ValueError, match="not there: \\['z'\\]"):
    strip(embedded=['a', 'b', 'c', 'z'])


def test_bad_config_and_full_disk(tmp_path):
  with pytest.raises(UserError, match=r'config\.report\.map_points: 0 must be at least 1'):
    ReportConfig(map_points=0)
  with pytest.raises(UserError, match=r'config\.report\.dropped_each'):
    ReportConfig(dropped_each=-1)
  with pytest.raises(UserError, match=r'config\.report\.seed'):
    ReportConfig(seed=-1)
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='cannot write'):
    write_report(ReportData(), tmp_path / 'file' / 'report.html')
