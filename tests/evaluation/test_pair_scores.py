"""Benchmarks of pairs by their specs."""

import json

import numpy as np
import pytest

from align_jax.data.pair_record import hash_id
from align_jax.errors import UserError
from align_jax.evaluation.pair_scores import PairBenchmark, is_pair_spec
from tests import tiny

pytest.importorskip('resvg_py')

TASKS = 'emojitasks:classification,caption_to_image?size=32&concepts=12&count=6&candidates=5'


def by_lot(contents, role, instruction):
  """Equal contents have equal vectors."""
  seeds = [int(hash_id(c.text, *c.images)[:8], 16) for c in contents]
  out = np.stack([np.random.default_rng(seed).normal(size=8) for seed in seeds])
  return (out / np.linalg.norm(out, axis=1, keepdims=True)).astype(np.float32)


def test_emoji_tasks_on_both_splits_or_one():
  benchmark = PairBenchmark(TASKS)
  scores = benchmark.scores(by_lot)
  tasks = {'classification/test', 'classification/compositions'}
  tasks |= {'caption_to_image/test', 'caption_to_image/compositions'}
  assert {name for name in scores if name.startswith('hit1.')} == {f'hit1.{t}' for t in tasks}
  assert scores['tasks'] == 4 and 0 <= scores['average'] <= 1
  assert 'Emoji-MMEB' in benchmark.table(scores)
  assert all('OpenMoji' in licence for licence in benchmark.licences.values())
  one = PairBenchmark(f'{TASKS}&split=test').scores(by_lot)
  assert one['tasks'] == 2
  assert one['hit1.classification/test'] == scores['hit1.classification/test']


def test_the_other_layouts(tmp_path):
  image = tiny.png(tiny.picture('red', 'disc', 0))
  (tmp_path / 'a.png').write_bytes(image)
  row = {'qry_text': 'What?', 'qry_img_path': 'a.png', 'tgt_text': ['one', 'two']}
  for name in ('N24News', 'GQA'):
    (tmp_path / 'mmeb' / name).mkdir(parents=True)
    file = tmp_path / 'mmeb' / name / 'test.jsonl'
    file.write_text(json.dumps({**row, 'tgt_img_path': ['', '']}) + '\n')
  spec = f'mmeb:{tmp_path / "mmeb"}?images={tmp_path}'
  scores = PairBenchmark(spec).scores(by_lot)
  assert scores['tasks'] == 2 and scores['average'] == np.mean(
    [scores['vqa'], scores['hit1.N24News']]
  )
  one = PairBenchmark(f'{spec}&subset=GQA').scores(by_lot)
  assert one['hit1.GQA'] == scores['hit1.GQA'] and one['tasks'] == 1
  assert PairBenchmark(f'{spec}&subset=GQA,N24News').scores(by_lot) == scores
  (tmp_path / 'GQA.jsonl').write_text((tmp_path / 'mmeb' / 'GQA' / 'test.jsonl').read_text())
  alone = PairBenchmark(f'mmeb:{tmp_path / "GQA.jsonl"}?images={tmp_path}').scores(by_lot)
  assert alone == one
  item = {'filename': 'a.png', 'caption': 'a red disc', 'negative_caption': 'a blue disc'}
  (tmp_path / 'swap_obj.json').write_text(json.dumps({'0': item}))
  benchmark = PairBenchmark(f'sugarcrepe:{tmp_path}')
  scores = benchmark.scores(by_lot)
  assert 'average' in scores and 'swap_obj' in benchmark.table(scores)


def test_what_no_embedder_is_evaluated_on():
  assert is_pair_spec(TASKS) and not is_pair_spec('emoji:scenes')
  with pytest.raises(UserError, match=r'emoji:scenes: an embedder is evaluated on'):
    PairBenchmark('emoji:scenes')
  with pytest.raises(UserError, match=r'split=train has no candidates'):
    PairBenchmark(f'{TASKS}&split=train')
  with pytest.raises(UserError, match=r"no split 'tset'.*test"):
    PairBenchmark(f'{TASKS}&split=tset')
