import dataclasses

import numpy as np
import pytest

from align_jax.errors import UserError
from align_jax.evaluation.tasks import Embedded, EvalData, Retrieval, evaluate, measure


def test_every_task_yields_its_keys(world, encoder):
  test, generated = world
  scores = evaluate(encoder, EvalData(test, generated, templates='scene'))
  assert set(scores) >= {
    *(f'retrieval.{way}.r{k}' for way in ('t2i', 'i2t') for k in (1, 5, 10)),
    'zero_shot.top1',
    'zero_shot.top5',
    'probe.linear',
    'probe.knn',
    *(
      f'gap.{name}'
      for name in (
        'auc',
        'paired_cosine',
        'unpaired_cosine',
        'centroid_distance',
        'alignment',
        'uniformity',
      )
    ),
  }
  assert all(isinstance(v, float) and np.isfinite(v) for v in scores.values())
  assert scores['retrieval.t2i.r1'] == scores['probe.knn'] == scores['zero_shot.top1'] == 1
  assert scores['gap.auc'] == 1  # the encoder shifts generated images
  assert scores['gap.paired_cosine'] > scores['gap.unpaired_cosine']


def test_the_aligned_encoder_reads_real_images(world, encoder):
  test, generated = world
  evaluate(encoder, EvalData(test, generated), ['probe'], inference='aligned_encoder')
  assert encoder.calls == [('generated', 'real'), ('generated', None)]


def test_each_source_is_embedded_once(world, encoder):
  test, generated = world
  embedded = Embedded(encoder, EvalData(test, generated, partners=test))
  measure(embedded, ['retrieval', 'zero_shot', 'probe', 'gap'])
  assert encoder.calls == [('real', None), ('generated', None), ('real', None)]


def test_only_named_partners_are_embedded(world, encoder, list_source):
  test, generated = world
  some = list_source(generated.records[:3] + [dataclasses.replace(generated[5], pair_id='')])
  pairs = Embedded(encoder, EvalData(test, some)).pairs
  assert pairs.real.ids == ['r0', 'r1', 'r2']
  assert pairs.generated_rows.tolist() == [0, 1, 2]
  assert len(pairs.generated.ids) == 4


def test_a_task_object_brings_its_settings(world, encoder):
  strict = evaluate(encoder, EvalData(world[0]), [Retrieval(same_caption=False)])
  assert strict['retrieval.t2i.r1'] < 1  # four images share each caption


def test_missing_data_is_named_before_any_work(world, encoder):
  with pytest.raises(UserError, match='gap needs generated images: --generated=SPEC'):
    evaluate(encoder, EvalData(world[0]), ['retrieval', 'gap'])
  with pytest.raises(UserError, match='probe needs generated images'):
    evaluate(encoder, EvalData(world[0]), ['probe'])
  assert not encoder.calls


def test_unknown_names(world, encoder):
  with pytest.raises(UserError, match="unknown task 'retrival'; did you mean 'retrieval'"):
    evaluate(encoder, EvalData(world[0]), ['retrival'])
  with pytest.raises(UserError, match="unknown set 'photos'; did you mean 'photo'"):
    evaluate(encoder, EvalData(world[0], templates='photos'), ['zero_shot'])
  for wrong in ('a photo', '{} {}', 'a {colour} {}'):
    with pytest.raises(UserError, match='needs one'):
      evaluate(encoder, EvalData(world[0], templates=(wrong,)), ['zero_shot'])


def test_records_without_what_a_task_reads(world, encoder, list_source):
  test, generated = world
  records = [dataclasses.replace(r, captions=(), labels=()) for r in test.records]
  bare = list_source(records, 'list:b')
  with pytest.raises(UserError, match='list:b has no captions'):
    evaluate(encoder, EvalData(bare), ['retrieval'])
  with pytest.raises(UserError, match='list:b has no images with exactly one label'):
    evaluate(encoder, EvalData(bare), ['zero_shot'])
  with pytest.raises(UserError, match='exactly one label'):
    evaluate(encoder, EvalData(bare, generated), ['probe'])
  assert 'gap.alignment' not in evaluate(encoder, EvalData(bare, generated), ['gap'])
  strangers = list_source([dataclasses.replace(r, pair_id='x') for r in generated.records])
  with pytest.raises(UserError, match=r'of 24 generated images 0 have a real partner.*--partners'):
    evaluate(encoder, EvalData(test, strangers), ['gap'])
