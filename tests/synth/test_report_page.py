"""The page as a whole: what it shows, its size, its numbers, bad input."""

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

from align_jax.errors import UserError
from align_jax.evaluation.report import Details, Figures, Pictures, Table
from align_jax.synth.report.data import ReportConfig, ReportData, Threshold
from align_jax.synth.report.funnel import outcomes
from align_jax.synth.report.page import build_report, verdict, write_report
from align_jax.synth.rows import (
  AnnotationRow,
  Category,
  DecisionRow,
  PromptRow,
  ScoreRow,
)
from tests.synth.report_rows import CONFIG, DECISIONS, FULL, IMAGES, KEPT, Page, image, unit


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
