import dataclasses
import json

import numpy as np

from align_jax.evaluation import sections
from align_jax.evaluation.report import Report, render
from align_jax.evaluation.tasks import Embedded, EvalData


def test_a_page_from_features(world, encoder):
  test, generated = world
  embedded = Embedded(encoder, EvalData(test, generated))
  pairs = {'before': embedded.pairs, 'after': embedded.pairs}
  text = render(
    Report(
      'Demo',
      'It works.',
      (
        sections.umap_section(pairs),
        sections.cosine_section(pairs),
        sections.sample_section(generated, test, embedded.pairs, count=3),
        sections.neighbour_section(pairs, test, generated, count=2),
        *sections.retrieval_sections(embedded.test, test),
        sections.run_details(['python', '-m', 'a b'], {'x': 1}, {test.spec: test.licence}),
      ),
    )
  )
  assert text.count('<figure>') == 3
  assert 'list:real: CC0' in text
  assert len(text) < 1_000_000


def test_the_same_pairs_are_drawn_whatever_their_order(world, encoder, list_source):
  test, generated = world
  turned = list_source(generated.records[::-1])
  drawn = []
  for source in (generated, turned):
    pairs = Embedded(encoder, EvalData(test, source)).pairs
    real, made = sections._draw(pairs, 5, seed=0)
    drawn.append([pairs.generated.ids[i] for i in made])
    assert [pairs.generated.pair_ids[i] for i in made] == [pairs.real.ids[i] for i in real]
  assert drawn[0] == drawn[1]


def test_a_shared_partner_is_one_point(world, encoder, list_source):
  test, generated = world
  twice = [*generated.records, dataclasses.replace(generated[0], id='again')]
  pairs = Embedded(encoder, EvalData(test, list_source(twice))).pairs
  assert len(pairs.real.ids) == 24
  assert len(pairs.generated_rows) == 25
  assert len(sections.umap_section({'now': pairs}).items) == 1


def test_details_repeat_the_run():
  @dataclasses.dataclass(frozen=True)
  class Config:
    steps: int = 3

  details = sections.run_details(
    ['python', '-m', 'align_jax.main', '--name=two words'], Config(), {'list:x': ''}, {'train': 2.5}
  )
  blocks = dict(details.items)
  assert blocks['Command'] == "python -m align_jax.main '--name=two words'"
  assert json.loads(blocks['Config']) == {'steps': 3}
  assert blocks['Licence and attribution'] == 'list:x: licence not recorded'
  assert '2.5 s' in blocks['Timings']
  assert f'numpy {np.__version__}' in blocks['Versions']
