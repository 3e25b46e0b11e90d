"""metrics.jsonl survives kills and repeats no step on resume."""

import json
import math

from align_jax.train.metrics import MetricWriter, read_metrics


def test_resume_drops_lines_after_the_restored_step(tmp_path):
  writer = MetricWriter(tmp_path, resume_step=0)
  for step in (1, 2, 3):
    writer.write(step, {'loss': float(step)})
  writer.close()
  writer = MetricWriter(tmp_path, resume_step=2)
  writer.write(3, {'loss': 30.0})
  writer.close()
  assert [(m['step'], m['loss']) for m in read_metrics(tmp_path)] == [(1, 1), (2, 2), (3, 30)]


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path):
  writer = MetricWriter(tmp_path, resume_step=0)
  writer.write(1, {'loss': 1.0})
  writer.close()
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 2, "lo')
  assert [m['step'] for m in read_metrics(tmp_path)] == [1]


def test_lines_are_json_even_when_a_value_is_not_finite(tmp_path):
  writer = MetricWriter(tmp_path, resume_step=0)
  writer.write(1, {'loss': math.inf})
  writer.close()
  line = (tmp_path / 'metrics.jsonl').read_text()
  assert json.loads(line) == {'step': 1, 'loss': None}
