"""The sections of the page, one by one."""

import dataclasses

import numpy as np
import pytest

from align_jax.evaluation.distribution import compare, dispersion
from align_jax.evaluation.report import Facts
from align_jax.synth.report import drawing
from align_jax.synth.report.categories import count_categories, make_categories
from align_jax.synth.report.data import ReportConfig, ReportData, Threshold
from align_jax.synth.report.funnel import make_funnel, outcomes
from align_jax.synth.report.maps import make_maps
from align_jax.synth.report.prompts import make_prompts
from align_jax.synth.report.samples import MOST_BYTES, make_samples, wanted_pictures
from align_jax.synth.report.spread import make_spread
from align_jax.synth.report.thresholds import make_thresholds
from align_jax.synth.rows import (
  DecisionRow,
)
from tests.synth.report_rows import CONFIG, FULL, image, png, table, unit


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


def test_maps_of_many_points_stay_small():
  rng = np.random.default_rng(0)
  clouds = [
    drawing.Cloud(f'g{i}', rng.normal(size=(600, 2)), '#1f83c4', mark)
    for i, mark in enumerate('^sDvP')
  ]
  assert len(drawing.clouds(clouds)) < 130_000  # four of them, and a third more as base 64
